"""A table as Markdown, CSV, LaTeX and console rows, each with its own escaping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from expunge.report.differences import RunContrast, chance_note
from expunge.report.measures import column_label, mark
from expunge.report.tables import Cell, Column, Footnotes, Table, TableRow, count_text, counts
from expunge.report.text import DASH, csv_lines, latex_text, markdown_text, number

CSV_HEADER: Final = (
    "run", "model", "role", "method", "measure", "value", "low", "high", "n", "unscored",
    "unit", "better", "reason", "metric_version", "benchmark", "benchmark_version",
    "model_fingerprint", "two_sided", "note",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table as plain text, not escaped for any format.

    Attributes:
        headers: One per column.
        rows: As many texts per row as there are headers; a cell may have a second line.
        notes: Footnotes, then remarks.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def grid(
    table: Table, *, rows: Literal["models", "measures"] = "models", between: str = " "
) -> Grid:
    """The table as plain text.

    Args:
        table: What to show.
        rows: Whether a row is a model or a measure.
        between: What separates a value from its interval in a cell.
    """
    footnotes = Footnotes()
    shared = {
        column.key: counts(row.cells[column.key] for row in table.rows) for column in table.columns
    }

    def text(row: TableRow, column: Column) -> str:
        return _cell_text(row.cells[column.key], shared[column.key] is None, footnotes, between)

    if rows == "models":
        headers = ("Model", *(_header(column, shared[column.key]) for column in table.columns))
        body = [(row.label, *(text(row, column) for column in table.columns)) for row in table.rows]
    else:
        headers = ("Measure", "Better", "n", "Unscored", *(row.label for row in table.rows))
        body = [
            (column.label, _direction(column), *_count_cells(shared[column.key]),
             *(text(row, column) for row in table.rows))
            for column in table.columns
        ]  # fmt: skip
    reasons = [f"({position}) {reason}" for position, reason in enumerate(footnotes.texts, 1)]
    return Grid(headers=headers, rows=tuple(body), notes=(*reasons, *table.notes))


def _header(column: Column, shared: tuple[int, int] | None) -> str:
    n, unscored = shared or (0, 0)
    count = f"n = {n}, {unscored} unscored" if shared else ""
    arrow = mark(column.better, column.key).arrow
    return " ".join(part for part in (column.label, arrow, count) if part)


def _direction(column: Column) -> str:
    return " ".join(part for part in mark(column.better, column.key) if part)


def _count_cells(shared: tuple[int, int] | None) -> tuple[str, str]:
    return (str(shared[0]), str(shared[1])) if shared else ("see cells", "see cells")


def _cell_text(cell: Cell, with_count: bool, footnotes: Footnotes, between: str) -> str:
    if cell.score.value is None:
        return f"{DASH} ({footnotes.number(cell.score.reason or 'no reason was recorded')})"
    count = f"({count_text(cell.score)})" if with_count else ""
    parts = [cell.text, cell.interval, cell.remark, count]
    return between.join(part for part in parts if part)


def console_rows(table: Table, *, rows: Literal["models", "measures"] = "measures") -> Grid:
    """The headline measures for a terminal: interval under the value.

    Of several runs the notes also say what differs. The texts are plain; wrap them in
    `rich.text.Text`, so that no name is taken for markup.
    """
    headlines = table.headlines()
    plain = grid(headlines, rows=rows, between="\n")
    # The distance D of two runs is compared, not the p-value.
    keys = {column.key for column in headlines.columns} - {"forget_quality"}
    lines = [line for contrast in table.contrasts for line in contrast.lines_of(keys)]
    chance = chance_note(table.contrasts)
    return replace(plain, notes=(*plain.notes, *lines, *([chance] if chance else [])))


def contrast_grid(contrast: RunContrast) -> Grid:
    """Differences of two runs as plain text, a measure per row."""
    first, second = contrast.first, contrast.second
    headers = ("Measure", "Better", f"{second} minus {first}", "95% interval", "n", "Verdict")
    body = tuple(
        (
            column_label(item.key),
            " ".join(part for part in mark(item.better, item.key) if part),
            signed(item.difference.value),
            _interval(item.difference.low, item.difference.high),
            str(item.difference.n),
            item.verdict,
        )
        for item in contrast.contrasts
    )
    notes = tuple(f"Not compared: {reason}." for reason in contrast.reasons)
    return Grid(headers=headers, rows=body, notes=notes)


def signed(value: float) -> str:
    """A difference with its sign: "+0.120"."""
    return number(value) if value <= 0 else f"+{number(value)}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{signed(low)}, {signed(high)}]"


def to_markdown(table: Table, *, rows: Literal["models", "measures"] = "models") -> str:
    """GitHub-flavoured Markdown: caption, table, notes; then the differences of runs."""
    lines = [_markdown(table.caption, grid(table, rows=rows))]
    for contrast in table.contrasts:
        caption = f"{contrast.second} minus {contrast.first}, by the same questions"
        lines.append(_markdown(caption, contrast_grid(contrast)))
    chance = chance_note(table.contrasts)
    return "\n".join([*lines, *([markdown_text(chance), ""] if chance else [])])


def _markdown(caption: str, plain: Grid) -> str:
    lines = [
        f"**{markdown_text(caption)}**",
        "",
        _piped(plain.headers, markdown_text),
        "|" + " --- |" * len(plain.headers),
        *(_piped(row, markdown_text) for row in plain.rows),
        "",
    ]
    if plain.notes:
        lines += ["Notes:", "", *(f"- {markdown_text(note)}" for note in plain.notes), ""]
    return "\n".join(lines)


def _piped(cells: Iterable[str], escape: Callable[[str], str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def to_latex(table: Table, *, rows: Literal["models", "measures"] = "models") -> str:
    """A `table` environment for the packages booktabs and, with UTF-8 text, inputenc."""
    plain = grid(table, rows=rows)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(latex_text(cell) for cell in cells) + r" \\"

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.caption)}}}",
        rf"\begin{{tabular}}{{{'l' * len(plain.headers)}}}",
        r"\toprule",
        line(plain.headers),
        r"\midrule",
        *(line(row) for row in plain.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par {latex_text(note)}" for note in plain.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line per model and measure, all measures, with n, unscored, interval and origin."""
    rows: list[Sequence[str | int | float | None]] = [CSV_HEADER]
    for row in table.rows:
        results = row.model.results
        origin = (
            (results.benchmark, results.benchmark_version, results.model_fingerprint)
            if results
            else (None, None, None)
        )
        for column in table.columns:
            score = row.cells[column.key].score
            rows.append((
                row.run, row.label, row.role, row.method, column.key, score.value, score.low,
                score.high, score.n, score.unscored, column.unit, column.better, score.reason,
                score.metric_version, *origin, score.two_sided, score.note,
            ))  # fmt: skip
    return csv_lines(rows)


DIFFERENCES_HEADER: Final = (
    "first", "second", "measure", "difference", "low", "high", "n", "better", "verdict", "reason",
)  # fmt: skip


def differences_csv(table: Table) -> str:
    """One line per measure and pair of runs: second minus first, or why it was not compared."""
    rows: list[Sequence[str | int | float | None]] = [DIFFERENCES_HEADER]
    for pair in table.contrasts:
        for item in pair.contrasts:
            found = item.difference
            ends = (None, None) if math.isnan(found.low) else (found.low, found.high)
            rows.append((
                pair.first, pair.second, item.key, found.value, *ends, found.n, item.better,
                item.verdict, None,
            ))  # fmt: skip
        for reason, keys in pair.left_out.items():
            rows += [
                (pair.first, pair.second, key, None, None, None, None, None, None, reason)
                for key in keys or (None,)
            ]
    return csv_lines(rows)
