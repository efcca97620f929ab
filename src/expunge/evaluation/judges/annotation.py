"""The verdicts of the judges on a probe's table, as new columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

from expunge.core.errors import InputError
from expunge.evaluation.judges.classifier import Classifier
from expunge.evaluation.judges.encoder import Encoder
from expunge.evaluation.judges.fluency import FluencyModel, mean_nlls
from expunge.evaluation.judges.locate import judge_folder, judge_identity, judge_problem
from expunge.evaluation.judges.settings import (
    JUDGED_COLUMNS,
    PUBLISHED_GIBBERISH,
    TITLES,
    JudgeKind,
    Judges,
)
from expunge.evaluation.tables import ProbeTable

T = TypeVar("T")

NLI_ORIGINAL_PROBES = ("real_authors", "world_facts")
"""Probes on which arXiv:2410.08109's code compares with the original answer, not the true one."""


class Annotations(NamedTuple):
    """New columns of a table.

    Attributes:
        columns: By name, one value per row; None where the row has no generation.
        reasons: Wanted columns that could not be made, and why.
    """

    columns: dict[str, list[Any]]
    reasons: dict[str, str]


class JudgePanel:
    """The judges of one evaluation, loaded when first asked and kept for all its tables.

    What keeps a judge away is found out once as well, so that nobody waits for a network twice.

    Args:
        judges: Which ones.
    """

    def __init__(self, judges: Judges) -> None:
        self.judges = judges
        self._problems: dict[JudgeKind, str | None] = {}
        self._encoder: Encoder | None = None
        self._classifiers: dict[JudgeKind, Classifier] = {}

    def problem(self, kind: JudgeKind) -> str | None:
        """Why a judge cannot be used; None if it can, as far as its small files tell."""
        if kind not in self._problems:
            name = self.judges.name(kind)
            self._problems[kind] = _unnamed(kind) if name is None else judge_problem(name, kind)
        return self._problems[kind]

    def identity(self, kind: JudgeKind) -> dict[str, Any]:
        """What decides a judge's verdicts: see `judge_identity`, and our options.

        Raises:
            InputError: The judge cannot be used.
        """
        found = self._when_possible(kind, lambda name: judge_identity(name, kind))
        if kind == "gibberish":
            found["max_length"] = self.judges.gibberish_max_length
        return found

    def encoder(self) -> Encoder:
        """The sentence encoder.

        Raises:
            InputError: It cannot be used.
        """
        if self._encoder is None:
            self._encoder = self._when_possible(
                "encoder",
                lambda name: Encoder.load(judge_folder(name, "encoder"), name, **self._options()),
            )
        return self._encoder

    def classifier(self, kind: JudgeKind) -> Classifier:
        """The NLI or the gibberish classifier.

        Raises:
            InputError: It cannot be used.
        """
        if kind not in self._classifiers:
            self._classifiers[kind] = self._when_possible(
                kind,
                lambda name: Classifier.load(
                    judge_folder(name, kind), name, kind, **self._options()
                ),
            )
        return self._classifiers[kind]

    def _options(self) -> dict[str, Any]:
        return {"batch_size": self.judges.batch_size, "device": self.judges.device}

    def _when_possible(self, kind: JudgeKind, make: Callable[[str], T]) -> T:
        """What `make` gives for the judge's name; a failure becomes the judge's problem."""
        problem = self.problem(kind)
        if problem is not None:
            raise InputError(problem)
        try:
            return make(str(self.judges.name(kind)))
        except InputError as error:
            self._problems[kind] = str(error)
            raise


def annotate(
    table: ProbeTable,
    wanted: Collection[str],
    panel: JudgePanel,
    *,
    originals: Sequence[str | None] | None = None,
    prefer_originals: bool = False,
    base: FluencyModel | None = None,
    nli_original_probes: Collection[str] = NLI_ORIGINAL_PROBES,
) -> Annotations:
    """The wanted columns of a table, as far as judges for them are here.

    Args:
        table: Has the columns `generation` and `answer`, perhaps `original_answer`.
        wanted: Keys of `JUDGED_COLUMNS`.
        panel: The judges.
        originals: What the initial model generated, one per row, for rows without an
            `original_answer`. Where both are missing, generations are compared with the answer.
        prefer_originals: Take them also where a row has an `original_answer`.
        base: The model that judges fluency.
        nli_original_probes: Probes on which entailment is judged against `original_answer` where a
            row has one; on all others against `answer`.
    """
    unknown = sorted(set(wanted) - set(JUDGED_COLUMNS))
    if unknown:
        raise ValueError(f"no judge gives {unknown[0]}; possible: {', '.join(JUDGED_COLUMNS)}")
    chosen = [column for column in JUDGED_COLUMNS if column in wanted]
    if "generation" not in table:
        reason = f"nothing was generated for the probe {table.probe}"
        return Annotations({}, dict.fromkeys(chosen, reason))
    work = _Work(
        table, panel, originals, prefer_originals, base, table.probe in nli_original_probes
    )
    columns: dict[str, list[Any]] = {}
    reasons: dict[str, str] = {}
    for column in chosen:
        try:
            columns[column] = _MAKERS[column](work)
        except InputError as error:
            reasons[column] = str(error)
    return Annotations(columns, reasons)


class _Work(NamedTuple):
    """A table and everything its verdicts depend on."""

    table: ProbeTable
    panel: JudgePanel
    originals: Sequence[str | None] | None
    prefer_originals: bool
    base: FluencyModel | None
    nli_original: bool

    def references(self, *others: Sequence[str | None] | None) -> list[str]:
        """Per row the first text there is: of the given columns in turn, else the answer."""
        columns = [column for column in (*others, self.table["answer"]) if column is not None]
        rows = zip(*columns, strict=True)
        return [next(text for text in texts if text is not None) for texts in rows]

    def original_answers(self) -> Sequence[str | None] | None:
        return self.table.columns.get("original_answer")

    def judge(self, ask: Callable[[list[Any]], Sequence[Any]], inputs: Sequence[Any]) -> list[Any]:
        """Verdicts row by row; rows without a generation are not asked about."""
        said = [i for i, text in enumerate(self.table["generation"]) if text is not None]
        column: list[Any] = [None] * len(self.table)
        for row, verdict in zip(said, ask([inputs[row] for row in said]), strict=True):
            column[row] = verdict
        return column


def _similarity(work: _Work) -> list[Any]:
    columns = [work.original_answers(), work.originals]
    references = work.references(*(reversed(columns) if work.prefer_originals else columns))
    pairs = list(zip(work.table["generation"], references, strict=True))
    return work.judge(work.panel.encoder().similarities, pairs)


def _nli_generation_first(work: _Work) -> list[Any]:
    pairs = zip(work.table["generation"], _nli_references(work), strict=True)
    return work.judge(work.panel.classifier("nli").verdicts, list(pairs))


def _nli_reference_first(work: _Work) -> list[Any]:
    pairs = zip(_nli_references(work), work.table["generation"], strict=True)
    return work.judge(work.panel.classifier("nli").verdicts, list(pairs))


def _nli_references(work: _Work) -> list[str]:
    return work.references(work.original_answers() if work.nli_original else None)


def _clean_probability(work: _Work) -> list[Any]:
    classifier = work.panel.classifier("gibberish")
    limit = work.panel.judges.gibberish_max_length
    return work.judge(
        lambda texts: classifier.clean_probabilities(texts, max_length=limit),
        work.table["generation"],
    )


def _generation_base_nll(work: _Work) -> list[Any]:
    base = work.base
    if base is None:
        raise InputError("no base model is given to judge fluency")
    return work.judge(lambda texts: mean_nlls(base, texts), work.table["generation"])


_MAKERS: dict[str, Callable[[_Work], list[Any]]] = {
    "generation_similarity": _similarity,
    "nli_generation_first": _nli_generation_first,
    "nli_reference_first": _nli_reference_first,
    "clean_probability": _clean_probability,
    "generation_base_nll": _generation_base_nll,
}


def _unnamed(kind: JudgeKind) -> str:
    if kind == "gibberish":
        return f"no gibberish classifier is named; the published one is {PUBLISHED_GIBBERISH}"
    return f"no {TITLES[kind]} is named"
