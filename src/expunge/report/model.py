"""What a report is made of: values read from a run folder, and the reason for each that is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from expunge.core.results import ForgetQuality, ModelResults, RunManifest, Score

ROLES: Final = ("base", "target", "unlearned", "retain")
"""The models of a run, in the order of every table."""

ROLE_LABELS: Final = {
    "base": "Base model",
    "target": "Target model",
    "unlearned": "Unlearned model",
    "retain": "Retain model",
}

ROLE_MEANINGS: Final = {
    "base": "before it was taught anything of this run",
    "target": "taught the forget and the retain set; where unlearning starts",
    "unlearned": "what the method made of the target model",
    "retain": "taught without the forget set; the yardstick",
}


def role_label(role: str) -> str:
    """Readable name of a role: "Target model"; an unknown role is its own name."""
    return ROLE_LABELS.get(role, role)


@dataclass(frozen=True, kw_only=True)
class Absence:
    """Something that a complete report shows and this one cannot.

    Attributes:
        what: The thing: "truth ratios of the retain model".
        why: The reason, as a clause or sentence.
    """

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One optimizer step of the training log.

    Attributes:
        step: Optimizer step, from 1 or 0 as logged.
        epoch: Passes over the forget set so far, fractional.
        total: The objective's value.
        terms: Unweighted mean of every term in the step, by name: "forget/npo".
        others: All other numbers of the step: "learning_rate", "grad_norm", "penalty_active".
    """

    step: int
    epoch: float | None = None
    total: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model said to one question.

    Attributes:
        text: The generated text.
        num_tokens: Tokens generated.
        finished: Whether it ended by itself; False when the length limit cut it.
    """

    text: str
    num_tokens: int | None = None
    finished: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeTable:
    """What a report needs of one probe's per-sample table.

    Attributes:
        probe: Name of the probe: "forget".
        indices: Row numbers in the data set.
        questions: One per row.
        answers: The true answers, one per row.
        generations: One per row, or empty when the probe does not generate.
        truth_ratios: Wrong over right answer probability, one per row, nan where it cannot be
            computed; None when the probe has no wrong answers.
    """

    probe: str
    indices: tuple[int, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    generations: tuple[Generation, ...] = ()
    truth_ratios: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """One evaluated model.

    Attributes:
        role: "base", "target", "unlearned", "retain", or a free name.
        results: Its scores; None when they are missing.
        tables: Its per-sample tables, by probe.
        number: Its place among several models of the role, from 1; None where it is the only one.
    """

    role: str
    results: ModelResults | None = None
    tables: Mapping[str, ProbeTable] = field(default_factory=dict)
    number: int | None = None

    @property
    def label(self) -> str:
        """Readable name: that of the role, and the number where there are several."""
        label = role_label(self.role)
        return label if self.number is None else f"{label} {self.number}"

    def score(self, key: str) -> Score | None:
        """The score under `key`, also one without a value; None when there is no such entry."""
        return self.results.scores.get(key) if self.results else None

    @property
    def forget_quality(self) -> ForgetQuality | None:
        """The test against the retain model, when the results hold one."""
        return self.results.forget_quality if self.results else None


@dataclass(frozen=True, kw_only=True)
class ProxyAnswer:
    """One line of the proxy file: a question of the forget set and its made-up answer.

    Attributes:
        index: Line number in the file, from 0.
        question: The question.
        answer: The true answer; "" on lines made by hand.
        proxy: The made-up answer; "" when none was found.
        generator: Who wrote it: "in_context", "zero_shot", "perturbed_answer", "hand".
        by_hand: Whether a person wrote it or changed it since it was generated.
    """

    index: int
    question: str
    answer: str
    proxy: str
    generator: str = "hand"
    by_hand: bool = True


@dataclass(frozen=True, kw_only=True)
class ProxyExemplar:
    """One worked example of the prompt that proxies were written with.

    Attributes:
        question: A question from outside the forget set.
        informed: The answer of a model that knows.
        uninformed: The answer of one that does not.
    """

    question: str
    informed: str
    uninformed: str


@dataclass(frozen=True, kw_only=True)
class ProxyMaking:
    """How the proxy answers came about, from the files beside the proxy file.

    Attributes:
        model: The writing model; "" where it is not recorded.
        exemplars: The worked examples, in their order.
        exemplar_source: Where their uninformed answers come from: "base_model", "perturbed",
            "file"; "" where it is not recorded.
        figures: Numbers of the writing by name, such as "attempts" and "mean_nll_proxies"; those
            about the texts are left out when the file was edited since.
        nll_model: The model of the likelihoods.
        is_current: The file is as it was when the figures were made.
    """

    model: str = ""
    exemplars: tuple[ProxyExemplar, ...] = ()
    exemplar_source: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    nll_model: str = ""
    is_current: bool = True


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything one report shows, gathered from a run folder.

    Attributes:
        folder: The run folder.
        name: Name of the run.
        manifest: run.json; None when it is missing or unreadable.
        config: Text of config.yaml; None when missing.
        log: Training log, one entry per logged step; empty when nothing was trained.
        models: The evaluated models by role, in the order of `ROLES`.
        further_retains: The retain models after the first, where the scores were computed with
            several; the first stands among `models`.
        proxies: The proxy answers; None when the run has no proxy file.
        proxy_making: How they came about, as far as it is recorded.
        absences: What is missing and why.
        notes: What a reader of the scores must know, beside the notes of the manifest.
    """

    folder: Path
    name: str
    manifest: RunManifest | None = None
    config: str | None = None
    log: tuple[LogEntry, ...] = ()
    models: Mapping[str, ModelReport] = field(default_factory=dict)
    further_retains: tuple[ModelReport, ...] = ()
    proxies: tuple[ProxyAnswer, ...] | None = None
    proxy_making: ProxyMaking = ProxyMaking()
    absences: tuple[Absence, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all_models(self) -> tuple[ModelReport, ...]:
        """Every evaluated model, all retain models among them."""
        return (*self.models.values(), *self.further_retains)

    @property
    def retain_models(self) -> tuple[ModelReport, ...]:
        """The retain models in the order in which the scores were computed with them."""
        return tuple(model for model in self.all_models if model.role == "retain")

    def score(self, role: str, key: str) -> Score | None:
        """The score of a model; None when there is no such model or entry."""
        model = self.models.get(role)
        return model.score(key) if model else None

    def table(self, role: str, probe: str) -> ProbeTable | None:
        """The per-sample table of a model; None when it is missing."""
        model = self.models.get(role)
        return model.tables.get(probe) if model else None

    @property
    def method(self) -> str | None:
        """Notation of the unlearning method; None when none is recorded."""
        return self.manifest.method.notation if self.manifest and self.manifest.method else None
