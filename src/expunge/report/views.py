"""The parts of the page that need choosing or phrasing: key figures, samples, facts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from expunge.core.results import MethodSummary, RunManifest
from expunge.metrics.overlap import overlap
from expunge.report.forget_quality import known_test
from expunge.report.measures import FORGET_PROBABILITY, FORGET_ROUGE, probe_label
from expunge.report.model import Generation, ProxyAnswer, ReportData, role_label
from expunge.report.text import count, duration, gibibytes, number

NUM_FORGET_SAMPLES: Final = 20
NUM_RETAIN_SAMPLES: Final = 5
NUM_PROXY_SAMPLES: Final = 10
LONG_TEXT: Final = 500  # characters from which an answer may need its own scroll bar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """One of the few numbers at the top of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer to a question, by the data or by a model.

    Attributes:
        role: Role of the model; "truth" for the data's own answer.
        label: Who says it.
        text: What it says; None when nothing is stored.
        note: Its ROUGE-L recall, its length, and whether it was cut off.
    """

    role: str
    label: str
    text: str | None
    note: str = ""

    @property
    def is_long(self) -> bool:
        """Whether the text may need its own scroll bar."""
        return self.text is not None and len(self.text) > LONG_TEXT


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question and the answers to it, side by side."""

    index: int
    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Samples of one probe and how they were chosen."""

    set: str
    introduction: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A two-column table of the settings section."""

    title: str
    about: str
    entries: tuple[tuple[str, str], ...]
    numeric: bool = False


def spread(items: Sequence[T], num: int) -> list[T]:
    """`num` items spread evenly over the sequence, with both its ends; all when there are fewer."""
    if len(items) <= num:
        return list(items)
    return [items[round(i * (len(items) - 1) / (num - 1))] for i in range(num)]


def key_figures(data: ReportData) -> Iterator[KeyFigure]:
    """Forgetting, keeping and forget quality in one number each, where they exist."""
    for key, name in (
        (FORGET_ROUGE, "ROUGE-L recall on the forget set"),
        (FORGET_PROBABILITY, "Probability of the true answers, forget set"),
        ("model_utility", "Model utility"),
    ):
        before, after = data.score("target", key), data.score("unlearned", key)
        if before is None or after is None or before.value is None or after.value is None:
            continue
        retain = data.score("retain", key)
        yardstick = number(retain.value) if retain and retain.value is not None else "not known"
        yield KeyFigure(
            name=name,
            value=f"{number(before.value)} → {number(after.value)}",
            note=f"target → unlearned; retain model: {yardstick}; n = {after.n}",
        )
    test = known_test(data.models.get("unlearned"))
    if test is not None:
        yield KeyFigure(
            name="KS distance D to the retain model",
            value=number(test.distance),
            note=f"0: same distribution of truth ratios; p = {test.p_text}; n = {test.n}",
        )


def sample_sets(data: ReportData) -> Iterator[SampleSet]:
    """Forget samples, then a few retain samples, for whichever there are generations."""
    for probe, num in (("forget", NUM_FORGET_SAMPLES), ("retain", NUM_RETAIN_SAMPLES)):
        samples = _samples(data, probe, num)
        if not samples:
            continue
        label = probe_label(probe)
        yield SampleSet(
            set=label,
            introduction=f"{count(len(samples), 'question')} of the {label.lower()}, spread evenly "
            "over it and not chosen by outcome, with greedy answers.",
            samples=tuple(samples),
        )


_SHOWN_ROLES: Final = ("target", "unlearned", "retain")


def _samples(data: ReportData, probe: str, num: int) -> list[Sample]:
    tables = {role: table for role in data.models if (table := data.table(role, probe))}
    with_text = {role: table for role, table in tables.items() if table.generations}
    if not with_text:
        return []
    roles = [role for role in _SHOWN_ROLES if role in data.models] or list(with_text)
    first = next((with_text[role] for role in roles if role in with_text), None)
    if first is None:
        return []
    said: dict[str, dict[int, Generation]] = {
        role: dict(zip(table.indices, table.generations, strict=True))
        for role, table in with_text.items()
    }
    rows = list(zip(first.indices, first.questions, first.answers, strict=True))
    return [
        Sample(
            index=index,
            question=question,
            answers=(
                Answer(role="truth", label="True answer", text=answer),
                *(_answer(role, said.get(role, {}).get(index), answer) for role in roles),
            ),
        )
        for index, question, answer in spread(rows, num)
    ]


def _answer(role: str, generation: Generation | None, truth: str) -> Answer:
    if generation is None:
        return Answer(role=role, label=role_label(role), text=None)
    recall = overlap(truth, generation.text).rouge_l_recall
    parts = (
        "" if math.isnan(recall) else f"ROUGE-L recall {recall:.2f}",
        count(generation.num_tokens, "token") if generation.num_tokens is not None else "",
        "cut off at the length limit" if generation.finished is False else "",
    )
    note = ", ".join(part for part in parts if part)
    return Answer(role=role, label=role_label(role), text=generation.text, note=note)


_GENERATORS: Final = {
    "in_context": "by in-context learning",
    "zero_shot": "without worked examples",
    "perturbed_answer": "wrong answers that came with the data",
    "hand": "by hand",
}


def proxy_text(data: ReportData) -> str:
    """How good the proxy answers are, as far as their text tells."""
    proxies = data.proxies or ()
    if not proxies:
        return "The proxy file holds no answer."
    written = [proxy for proxy in proxies if proxy.proxy.strip()]
    by = Counter("hand" if proxy.by_hand else proxy.generator for proxy in written)
    origin = ", ".join(f"{num} {_GENERATORS.get(name, name)}" for name, num in by.items())
    equal = sum(proxy.proxy.strip().lower() == proxy.answer.strip().lower() for proxy in written)
    words = sum(len(proxy.proxy.split()) for proxy in written) / max(len(written), 1)
    return (
        "Made-up answers to the forget set's questions. The penalty of EGUP takes their loss as "
        f"the level at which forgetting a question should stop. {len(written)} of "
        f"{count(len(proxies), 'question')} have one ({origin or 'none'}); {equal} of them equal "
        f"the true answer{_shared_words(written)}; mean length {words:.1f} words."
    )


def proxy_making_text(data: ReportData) -> str:
    """How the proxy answers were written: by whom, with how many refusals, how plausible."""
    making = data.proxy_making
    parts = [f"Written by {making.model}." if making.model else ""]
    figures = making.figures
    if attempts := round(figures.get("attempts", 0)):
        refused, unread = (round(figures.get(n, 0)) for n in ("num_rejected", "parse_failures"))
        retried = round(figures.get("retried", 0))
        parts.append(
            f"{count(attempts, 'answer')} looked at, {refused} of them refused ({unread} could not "
            f"be read in their reply); {retried} of the proxies came from a later prompt."
        )
    proxies, truths = figures.get("mean_nll_proxies"), figures.get("mean_nll_truths")
    if not making.is_current and figures:
        parts.append("The file was edited since, so likelihoods are left out.")
    elif proxies is not None and truths is not None:
        parts.append(
            f"Mean negative log-likelihood per token under {making.nll_model}, which does not know "
            f"the facts: proxies {proxies:.2f}, true answers {truths:.2f} nats (the closer "
            "the two, the more plausible the proxies)."
        )
    return " ".join(part for part in parts if part)


EXEMPLAR_SOURCES: Final = {
    "base_model": "the uninformed answers are what the writing model says without help",
    "perturbed": "the uninformed answers are wrong answers that came with the data",
    "file": "taken from a file of the user",
}


def _shared_words(proxies: Sequence[ProxyAnswer]) -> str:
    """How much of the truth is in the proxies; the less, the better they are."""
    recalls = [overlap(proxy.answer, proxy.proxy).rouge_l_recall for proxy in proxies]
    known = [recall for recall in recalls if not math.isnan(recall)]
    if not known:
        return ""
    return f"; mean ROUGE-L recall against it {sum(known) / len(known):.2f} (lower is better)"


def method_rows(method: MethodSummary) -> list[tuple[str, str]]:
    """Notation, terms and hyperparameters of a method as names and values."""
    rows = [("notation", method.notation), *(("term", term) for term in method.terms)]
    # Those two stand in the description of a method as well.
    rest = {k: v for k, v in method.hyperparameters.items() if k not in ("notation", "terms")}
    return [*rows, *_flat(rest)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        label = prefix + name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}, ")
        else:
            yield label, plain(value)


def evaluation_rows(data: ReportData) -> list[tuple[str, str]]:
    """How the models were evaluated: preset, options, limits, template, rows."""
    evaluated = [model.results for model in data.models.values() if model.results]
    if not evaluated:
        return []
    results = evaluated[0]
    head = ("benchmark", f"{results.benchmark}, version {results.benchmark_version}")
    # Notes stand among the limits; without a named run there is nothing to say of it.
    left_out = {"notes", *(() if results.settings.get("retain_run") else ("retain_run",))}
    shown = {name: value for name, value in results.settings.items() if name not in left_out}
    return [head, *_flat(shown)]


def facts(run: RunManifest) -> Iterator[Facts]:
    """Time, memory, machine and versions of a run."""
    entries = [(stage, duration(seconds)) for stage, seconds in run.seconds.items()]
    if len(entries) > 1:
        entries.append(("all stages", duration(sum(run.seconds.values()))))
    if entries:
        yield Facts(
            title="Time", about="Wall clock per stage", entries=tuple(entries), numeric=True
        )
    machine = [_machine_entry(name, value) for name, value in run.machine.items()]
    machine.append(("processes", str(run.world_size)))
    if run.peak_memory_bytes is not None:
        machine.append(("peak memory", gibibytes(run.peak_memory_bytes)))
    if run.seed is not None:
        machine.append(("seed", str(run.seed)))
    machine.append(("started", run.started))
    machine.append(("finished", run.finished or "not finished"))
    yield Facts(title="Machine", about="What it ran on, and when", entries=tuple(machine))
    if run.versions:
        versions = tuple(run.versions.items())
        yield Facts(title="Versions", about="Packages that took part", entries=versions)


def _machine_entry(name: str, value: Any) -> tuple[str, str]:
    if name.endswith("_bytes") and isinstance(value, int):
        return name.removesuffix("_bytes").replace("_", " "), gibibytes(value)
    return name.replace("_", " "), "not known" if value is None else plain(value)


def plain(value: Any) -> str:
    """A setting as text: lists with commas, switches as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
