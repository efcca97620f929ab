"""Comparison tables as plain data: models by measures, with n, unscored, interval and reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from expunge.core.fingerprint import fingerprint
from expunge.core.results import Better, Score
from expunge.report.differences import RunContrast, compare_runs
from expunge.report.measures import (
    DISTANCE_KEY,
    column_label,
    distance_score,
    leak,
    ordered,
)
from expunge.report.model import ROLES, ModelReport, ReportData
from expunge.report.text import (
    listing,
    number,
    one_line,
    probability,
)

HEADLINES: Final = (
    "forget/rouge_l_recall",
    "forget/probability",
    "forget/truth_ratio",
    "forget_quality",
    DISTANCE_KEY,
    "model_utility",
    "retain/rouge_l_recall",
    "retain/probability",
)
"""The measures of a table that must fit on a page; CSV and HTML always have all."""

MORE_HEADLINES: Final = (
    "forget_efficacy",
    "privleak",
    "mia_min_k",
    "verbmem/rouge_l_f1",
    "knowmem_forget/rouge_l_f1",
    "knowmem_retain/rouge_l_f1",
)
"""Measures that such a table has as well where a model has a value for them."""

_KEPT_WITHOUT_VALUE: Final = ("model_utility", "forget_quality", DISTANCE_KEY)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measure.

    Attributes:
        key: Key of the score: "forget/rouge_l_recall".
        better: Good direction.
        unit: What the number is.
    """

    key: str
    better: Better
    unit: str

    @property
    def label(self) -> str:
        """Readable name with the set it is about: "ROUGE-L recall, forget set"."""
        return column_label(self.key)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One score and its value as text; the text is a dash when there is no value.

    Attributes:
        score: The score.
        text: Its value.
        digits: Decimals of the value and its interval.
    """

    score: Score
    text: str
    digits: int = 3

    @property
    def interval(self) -> str:
        """The 95% interval, "[0.120, 0.310]"; "" without one."""
        if self.score.value is None or self.score.low is None or self.score.high is None:
            return ""
        low, high = number(self.score.low, self.digits), number(self.score.high, self.digits)
        return f"[{low}, {high}]"

    @property
    def remark(self) -> str:
        """What the value gives away, whichever side of its ideal it is on; "" for most."""
        return leak(self.score)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One model.

    Attributes:
        label: Name in the table.
        run: Name of the run it comes from; several, comma-separated, when they share it.
        role: "base", "target", "unlearned", "retain", or a free name.
        method: Notation of the method that made it; "" for models that were not unlearned.
        model: The evaluated model.
        cells: By score key; every column of the table has one.
    """

    label: str
    run: str
    role: str
    method: str
    model: ModelReport
    cells: Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Models by measures.

    Attributes:
        caption: What is compared.
        columns: The measures.
        rows: The models, in the order of their roles.
        notes: What a reader must know before comparing numbers.
        contrasts: The unlearned models compared question by question, where there are several.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    contrasts: tuple[RunContrast, ...] = ()

    def headlines(self) -> Table:
        """The table with the most important measures only; unchanged when it has none of them."""
        chosen = tuple(
            column
            for column in self.columns
            if column.key in HEADLINES or (column.key in MORE_HEADLINES and self._has(column))
        )
        return replace(self, columns=chosen or self.columns)

    def measured(self) -> Table:
        """The table without measures that no model has a value for.

        What stands behind them is told by reason, see `expunge.report.assessable`. Model utility
        and forget quality stay, since a reader looks for them.
        """
        columns = [c for c in self.columns if c.key in _KEPT_WITHOUT_VALUE or self._has(c)]
        return replace(self, columns=tuple(columns))

    def _has(self, column: Column) -> bool:
        """Whether any model has a value for the measure."""
        return any(row.cells[column.key].score.value is not None for row in self.rows)


class Footnotes:
    """Numbers reasons in the order in which they are first needed.

    Args:
        prefix: What the identifier of a note in a page starts with.
    """

    def __init__(self, prefix: str = "note-") -> None:
        self.prefix = prefix
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        """The number of a reason; the same reason has one number."""
        return self._numbers.setdefault(reason, len(self._numbers) + 1)

    @property
    def texts(self) -> tuple[str, ...]:
        """The reasons, the first being number 1."""
        return tuple(self._numbers)


def table_of(data: ReportData) -> Table:
    """All models of one run by all measures."""
    named = [(model, model.label, data.name) for model in data.all_models]
    return _table(f"Models of the run {data.name}", named, data.method or "", ())


def compare_reports(reports: Sequence[ReportData]) -> Table:
    """The unlearned models of several runs and the base, target and retain models behind them.

    A model that several runs share, with equal scores, has one row. The unlearned model of every
    run is compared with that of the first one, question by question.
    """
    shared: dict[tuple[str, str], list[tuple[ReportData, ModelReport]]] = {}
    for position, report in enumerate(reports):
        for model in report.all_models:
            # Two runs of one method are two results, also when they came out equal.
            name = f"run {position}" if model.role not in _SHARED else _identity(model)
            shared.setdefault((model.role, name), []).append((report, model))
    rows = []
    for (role, _), group in shared.items():
        report, model = group[0]
        runs = ", ".join(one_line(each.name) for each, _ in group)
        label = _comparison_label(report, model, everywhere=len(group) == len(reports))
        method = (report.method or "") if role not in _SHARED else ""
        rows.append((role, model, label, runs, method))
    rows.sort(key=lambda row: ROLES.index(row[0]) if row[0] in ROLES else len(ROLES))
    columns = _columns([model for _, model, *_ in rows])
    table_rows = [
        TableRow(label=label, run=runs, role=role, method=method, model=model,
                 cells=_cells(model, columns))
        for role, model, label, runs, method in rows
    ]  # fmt: skip
    caption = f"Comparison of {listing([one_line(report.name) for report in reports])}"
    notes = _comparability(reports)
    return Table(
        caption=caption,
        columns=columns,
        rows=tuple(table_rows),
        notes=notes,
        contrasts=compare_runs(reports),
    )


_SHARED: Final = ("base", "target", "retain")


def _comparison_label(report: ReportData, model: ModelReport, *, everywhere: bool) -> str:
    if model.role in _SHARED:
        return model.label if everywhere else f"{model.label} of {one_line(report.name)}"
    name = report.method or model.label
    return name if name == report.name else f"{name} ({one_line(report.name)})"


def _identity(model: ModelReport) -> str:
    """Equal for two evaluations of the same weights with the same outcome."""
    results = model.results
    if results is None:
        return "no results"
    scores = {key: score.model_dump() for key, score in results.scores.items()}
    return fingerprint([results.model_fingerprint, results.benchmark, scores])


def _comparability(reports: Sequence[ReportData]) -> tuple[str, ...]:
    """Reasons why numbers of these runs cannot be held against each other."""
    notes = []
    for what, values in (
        ("forget set", [_data_fingerprint(report) for report in reports]),
        ("benchmark", [_benchmark(report) for report in reports]),
    ):
        known = [value for value in values if value is not None]
        if len(set(known)) > 1:
            notes.append(
                f"These runs were not evaluated with the same {what}: "
                f"{listing(list(dict.fromkeys(known)))}. Their numbers cannot be compared."
            )
    sizes = {quality.n for report in reports for model in report.models.values()
             if (quality := model.forget_quality) and quality.p_value is not None}  # fmt: skip
    if len(sizes) > 1:
        notes.append(
            f"Forget quality was tested with different n ({listing([*map(str, sorted(sizes))])}): "
            "the same distance D has another p-value at another n, so compare D."
        )
    return tuple(notes)


def _data_fingerprint(report: ReportData) -> str | None:
    data = report.manifest.data.get("forget") if report.manifest else None
    return f"{data.origin} ({data.num_rows} rows, {data.fingerprint})" if data else None


def _benchmark(report: ReportData) -> str | None:
    found = [model.results for model in report.models.values() if model.results]
    return f"{found[0].benchmark} version {found[0].benchmark_version}" if found else None


def _table(
    caption: str,
    models: Sequence[tuple[ModelReport, str, str]],
    method: str,
    notes: tuple[str, ...],
) -> Table:
    columns = _columns([model for model, _, _ in models])
    rows = tuple(
        TableRow(label=label, run=run, role=model.role, model=model,
                 method=method if model.role not in _SHARED else "",
                 cells=_cells(model, columns))
        for model, label, run in models
    )  # fmt: skip
    return Table(caption=caption, columns=columns, rows=rows, notes=notes)


def _columns(models: Iterable[ModelReport]) -> tuple[Column, ...]:
    """Every measure of any model, with the KS distance beside the forget quality."""
    found: dict[str, list[Score]] = {}
    for model in models:
        scores = dict(model.results.scores) if model.results else {}
        if model.forget_quality:
            scores[DISTANCE_KEY] = distance_score(model.forget_quality)
        for key, score in scores.items():
            found.setdefault(key, []).append(score)
    return tuple(
        Column(
            key=key,
            better=next((s.better for s in found[key] if s.better != "none"), "none"),
            unit=next((s.unit for s in found[key] if s.unit), ""),
        )
        for key in ordered(found)
    )


def _cells(model: ModelReport, columns: Iterable[Column]) -> dict[str, Cell]:
    return {column.key: _cell(model, column.key) for column in columns}


def _cell(model: ModelReport, key: str) -> Cell:
    test = model.forget_quality
    distance = distance_score(test) if test else None
    score = distance if key == DISTANCE_KEY else model.score(key)
    if score is None:
        why = "not measured on this model" if model.results else "its result file is missing"
        score = Score(n=0, reason=why)
    if key == "forget_quality" and score.value is not None:
        return Cell(score=score, text=probability(score.value, test.log10_p if test else None))
    digits = 1 if score.unit in ("tokens", "percent") or score.unit.endswith("x 100") else 3
    return Cell(score=score, text=number(score.value, digits), digits=digits)


def counts(cells: Iterable[Cell]) -> tuple[int, int] | None:
    """Scored and unscored samples where all cells with a value agree; None where they do not.

    Where no cell has a value, those of all cells count.
    """
    scores = [cell.score for cell in cells]
    valued = [score for score in scores if score.value is not None]
    found = {(score.n, score.unscored) for score in valued or scores}
    return found.pop() if len(found) == 1 else None


def count_text(score: Score) -> str:
    """n, and the unscored when there are any: "n = 38, 2 unscored"."""
    return f"n = {score.n}" + (f", {score.unscored} unscored" if score.unscored else "")
