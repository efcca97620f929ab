"""The report of several runs that belong together: one page, and every number beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from expunge.core.files import atomic_write_text
from expunge.core.results import Better, Record, Score
from expunge.core.scenario import ScenarioRecord
from expunge.report.differences import chance_note, compare_runs
from expunge.report.findings import NO_CERTIFICATE
from expunge.report.formats import contrast_grid, to_csv, to_markdown
from expunge.report.html import render_page
from expunge.report.measures import mark, metric_explanation, metric_label
from expunge.report.relations import HEADERS, INTRODUCTION, Relations, read_relations
from expunge.report.scenario_changes import Change, Changes
from expunge.report.scenario_figures import arm_figures, request_figures, time_figure
from expunge.report.scenario_values import (
    MAIN_MEASURES,
    Matrix,
    RequestRow,
    Scenario,
    StageReport,
    arms_table,
    cell_of,
    cells_of,
    columns_of,
    matrices,
    over_time,
    read_scenario,
)
from expunge.report.scenario_words import (
    BY_CHANCE,
    Return,
    arm_statements,
    quality_statements,
    returns,
    statements,
    summary,
    utility_statements,
)
from expunge.report.tables import Footnotes, Table, count_text, counts
from expunge.report.text import DASH, csv_lines, markdown_text

RESULTS: Final = "scenario_results.json"

CSV_HEADER: Final = (
    "scenario", "request", "title", "measure", "model", "after", "value", "low", "high", "n",
    "unscored", "unit", "better", "reason", "change", "change_low", "change_high", "change_n",
    "change_by", "verdict",
)  # fmt: skip


class RequestValues(Record):
    """One measure of one request in `scenario_results.json`.

    Attributes:
        request: Name of the request: "request_01".
        measure: Name of the measure: "probability".
        before: Of the model that its unlearning started from.
        retain: Of the retain model.
        after: By the name of the request after which it was measured.
        changes: Those after later requests compared with the one right after its own.
    """

    request: str
    measure: str
    before: Score
    retain: Score
    after: dict[str, Score]
    changes: dict[str, Change]


class ModelValues(Record):
    """All scores of one model in `scenario_results.json`.

    Attributes:
        label: "After request 2"; "Unlearned model, theta_1".
        run: Name of its run.
        role: "target", "unlearned", "retain", "base".
        scores: By key; the distance D has one as well.
    """

    label: str
    run: str
    role: str
    scores: dict[str, Score]


class ScenarioResults(Record):
    """What `scenario_results.json` holds.

    Attributes:
        schema_version: Version of this layout.
        scenario: What was asked.
        requests: The values of every request's own rows; empty for arms.
        models: Everything else, model by model.
        statements: What the report says about it.
        missing: What was not there when it was written.
    """

    schema_version: int = 1
    scenario: ScenarioRecord
    requests: list[RequestValues]
    models: list[ModelValues]
    statements: list[str]
    missing: list[str]


def write_scenario_report(folder: Path | str) -> Path:
    """Write report.html, .md, .csv and scenario_results.json of a scenario; returns the page.

    Runs that are not finished are named as missing; the report can be written again at any time.

    Args:
        folder: Folder of the scenario, with scenario.json and a run folder per request or arm.

    Raises:
        InputError: It is no such folder.
        RunError: The files cannot be written.
    """
    scenario = read_scenario(folder)
    write = _write_requests if scenario.record.kind == "requests" else _write_arms
    return write(scenario)


def _write_requests(scenario: Scenario) -> Path:
    found, changes = matrices(scenario), Changes(scenario)
    back = returns(scenario, found, changes)
    by_measure = statements(scenario, back)
    said = [text for texts in by_measure.values() for text in texts]
    kept = utility_statements(scenario, changes)
    qualities = quality_statements(scenario)
    table = over_time(scenario)
    shown = [matrix for matrix in found if matrix.name in MAIN_MEASURES]
    figures = request_figures(scenario, found)
    in_time = time_figure(scenario, table)
    results = _results(scenario, table, [*said, *qualities, *kept], found, back)
    page = render_page(
        "requests.html.jinja",
        title=f"Forget requests: {scenario.record.name}",
        figures=[*figures, *([in_time] if in_time else [])],
        scenario=scenario,
        summary=summary(scenario, back),
        statements=list(by_measure.items()),
        by_chance=BY_CHANCE if back else "",
        request_figures=figures,
        time_figure=in_time,
        matrices=[_shown(scenario, matrix, back) for matrix in shown],
        columns=columns_of(scenario),
        qualities=qualities,
        utility=kept,
        table=table.measured(),
        footnotes=Footnotes(),
        pages=_pages(scenario.stages),
        no_certificate=NO_CERTIFICATE,
    )
    markdown = _requests_markdown(scenario, shown, back, [said, qualities, kept], table)
    return _write(scenario, page, markdown, _requests_csv(scenario, found, back, table), results)


def _write_arms(scenario: Scenario) -> Path:
    table = arms_table(scenario)
    shown = arms_table(scenario, ("target", "unlearned")).measured()
    reports = [each.report for each in scenario.finished if each.report is not None]
    contrasts = compare_runs(reports)
    chance = chance_note(contrasts)
    figures = arm_figures(scenario, shown)
    said = arm_statements(contrasts)
    relations = read_relations(scenario.folder)
    page = render_page(
        "arms.html.jinja",
        title=f"Arms: {scenario.record.name}",
        figures=figures,
        scenario=scenario,
        summary=summary(scenario, ()),
        statements=said,
        arm_figures=figures,
        table=shown,
        footnotes=Footnotes(),
        contrast_grids=[(contrast, contrast_grid(contrast)) for contrast in contrasts],
        chance=chance,
        relations=relations,
        relation_headers=HEADERS,
        relation_text=INTRODUCTION,
        pages=_pages(scenario.stages),
        no_certificate=NO_CERTIFICATE,
    )
    markdown = _arms_markdown(scenario, replace(shown, contrasts=contrasts), said, relations)
    return _write(scenario, page, markdown, to_csv(table), _results(scenario, table, said))


def _write(scenario: Scenario, page: str, markdown: str, csv: str, results: Record) -> Path:
    folder = scenario.folder
    results.save(folder / RESULTS)
    atomic_write_text(folder / "report.csv", csv)
    atomic_write_text(folder / "report.md", markdown)
    atomic_write_text(folder / "report.html", page)
    return folder / "report.html"


def _results(
    scenario: Scenario,
    table: Table,
    said: Sequence[str],
    found: Sequence[Matrix] = (),
    back: Sequence[Return] = (),
) -> ScenarioResults:
    names = [stage.stage.name for stage in scenario.stages]
    return ScenarioResults(
        scenario=scenario.record,
        requests=[
            RequestValues(
                request=row.stage.stage.name,
                measure=matrix.name,
                before=row.before,
                retain=row.retain,
                after={
                    name: score
                    for name, score in zip(names, row.after, strict=True)
                    if score is not None
                },
                changes={
                    names[each.at - 1]: each.change
                    for each in back
                    if each.row is row and each.matrix is matrix
                },
            )
            for matrix in found
            for row in matrix.rows
        ],
        models=[
            ModelValues(
                label=row.label,
                run=row.run,
                role=row.role,
                scores={key: cell.score for key, cell in row.cells.items()},
            )
            for row in table.rows
        ],
        statements=list(said),
        missing=list(scenario.missing),
    )


def _pages(stages: Iterable[StageReport]) -> list[tuple[StageReport, str]]:
    """Every run with the address of its own page, relative to the scenario's; "" without one."""
    # Quoted, a folder's name can be neither another scheme nor the end of the attribute.
    return [
        (each, f"{quote(each.stage.folder)}/report.html" if each.has_page else "")
        for each in stages
    ]


def _shown(scenario: Scenario, matrix: Matrix, back: Sequence[Return]) -> dict[str, Any]:
    """What the page needs of one measure."""
    valued = [score for score in matrix.scores if score.value is not None]
    verdicts = {
        (each.row.stage.position, each.at): each.verdict for each in back if each.matrix is matrix
    }
    return {
        "label": metric_label(matrix.name),
        "unit": matrix.unit,
        "mark": mark(matrix.better, f"forget/{matrix.name}"),
        "meaning": metric_explanation(matrix.name),
        "shared": counts(cell_of(score) for score in valued),
        "footnotes": Footnotes(prefix=f"{matrix.name}-note-"),
        "rows": [
            {
                "stage": row.stage,
                "before": cell_of(row.before),
                "after": [
                    {
                        "cell": None if score is None else cell_of(score),
                        "remark": _remark(row, t, verdicts),
                        "is_own": t == row.stage.position,
                    }
                    for t, score in cells_of(scenario, row)
                ],
                "retain": cell_of(row.retain),
            }
            for row in matrix.rows
        ],
    }


def _remark(row: RequestRow, t: int, verdicts: dict[tuple[int, int], str]) -> str:
    """What a cell says beside its value; the page says once what it means that it says nothing."""
    verdict = verdicts.get((row.stage.position, t), "")
    return "" if verdict == "not distinguishable" else verdict


def _requests_markdown(
    scenario: Scenario,
    shown: Sequence[Matrix],
    back: Sequence[Return],
    said: Sequence[Sequence[str]],
    table: Table,
) -> str:
    parts = [
        f"# Forget requests: {markdown_text(scenario.record.name)}",
        markdown_text(summary(scenario, back)),
        *_listed("What came back", said[0]),
        *([BY_CHANCE] if back else []),
    ]
    for matrix in shown:
        arrow, words = mark(matrix.better, f"forget/{matrix.name}")
        parts += [
            f"## {metric_label(matrix.name)}",
            markdown_text(f"{matrix.unit}; {arrow} {words}; value and 95% interval."),
            _grid(scenario, matrix, back),
        ]
    parts += [*_listed("Forget quality", said[1]), *_listed("What should stay", said[2])]
    if table.rows:
        parts += ["## All models", to_markdown(table.measured(), rows="measures")]
    return _document([*parts, *_ending(scenario)])


def _arms_markdown(
    scenario: Scenario, table: Table, said: Sequence[str], relations: Relations
) -> str:
    parts = [
        f"# Arms: {markdown_text(scenario.record.name)}",
        markdown_text(summary(scenario, ())),
        *_listed("What differs", said),
        *(["## Models", to_markdown(table, rows="measures")] if table.rows else []),
        *_relations_markdown(relations),
    ]
    return _document([*parts, *_ending(scenario)])


def _relations_markdown(relations: Relations) -> list[str]:
    if not relations.rows:
        return _listed(
            "Gradients and the update", [f"{relations.problem}."] * bool(relations.problem)
        )
    lines = [HEADERS, ["---"] * len(HEADERS), *relations.rows]
    meanings = [f"{kind.label}: {kind.meaning}." for kind in relations.kinds]
    return [
        "## Gradients and the update",
        markdown_text(INTRODUCTION),
        "\n".join(map(_piped, lines)),
        "\n".join(f"- {markdown_text(text)}" for text in meanings),
    ]


def _piped(cells: Sequence[str]) -> str:
    return (
        "| " + " | ".join(each if each == "---" else markdown_text(each) for each in cells) + " |"
    )


def _document(parts: Iterable[str]) -> str:
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _ending(scenario: Scenario) -> list[str]:
    runs = [
        f"{each.label} ({each.title}), {each.stage.num_rows} rows: {each.stage.folder}"
        for each in scenario.stages
    ]
    return [*_listed("Missing", scenario.missing), *_listed("Runs", runs), NO_CERTIFICATE]


def _listed(title: str, texts: Iterable[str]) -> list[str]:
    lines = [f"- {markdown_text(text)}" for text in texts]
    return [f"## {title}", "\n".join(lines)] if lines else []


def _grid(scenario: Scenario, matrix: Matrix, back: Sequence[Return]) -> str:
    """One measure as a Markdown table: requests by times, then the reasons for what is absent."""
    verdicts = {(e.row.stage.position, e.at): e.verdict for e in back if e.matrix is matrix}
    shared = counts(cell_of(score) for score in matrix.scores if score.value is not None)
    footnotes = Footnotes()

    def text(score: Score | None, verdict: str = "") -> str:
        if score is None:
            return ""
        if score.value is None:
            return f"{DASH} ({footnotes.number(score.reason or 'no reason was recorded')})"
        cell = cell_of(score)
        count = "" if shared else f"({count_text(score)})"
        return " ".join(part for part in (cell.text, cell.interval, count, verdict) if part)

    after = columns_of(scenario)
    lines = [
        ["Request", "Before", *after, "Retain model"],
        ["---"] * (len(after) + 3),
        *(
            [
                f"{row.stage.position}: {row.stage.title}",
                text(row.before),
                *(text(score, _remark(row, t, verdicts)) for t, score in cells_of(scenario, row)),
                text(row.retain),
            ]
            for row in matrix.rows
        ),
    ]
    piped = [_piped(line) for line in lines]
    notes = [f"({i}) {reason}" for i, reason in enumerate(footnotes.texts, 1)]
    if verdicts:
        notes.insert(0, "Without a word a later value is not distinguishable from the first one.")
    if shared:
        notes.insert(0, f"n = {shared[0]}, {shared[1]} unscored in every cell.")
    return "\n".join([*piped, "", *(f"- {markdown_text(note)}" for note in notes)])


def _requests_csv(
    scenario: Scenario, found: Sequence[Matrix], back: Sequence[Return], table: Table
) -> str:
    """One line per value: of the requests' own rows first, then of everything else over time."""
    rows: list[Sequence[str | int | float | None]] = [CSV_HEADER]
    name = scenario.record.name
    changes = {(id(e.matrix), e.row.stage.position, e.at): e for e in back}
    for matrix in found:
        for row in matrix.rows:
            about = (name, row.stage.stage.name, row.stage.stage.title, matrix.name)
            units = (matrix.unit, matrix.better)
            rows.append((*about, "before", None, *_numbers(row.before, *units)))
            for t, score in enumerate(row.after, 1):
                if score is not None:
                    change = changes.get((id(matrix), row.stage.position, t))
                    rows.append((*about, "unlearned", t, *_numbers(score, *units, change)))
            rows.append((*about, "retain", None, *_numbers(row.retain, *units)))
    times = iter(stage.position for stage in scenario.finished)
    for model in table.rows:
        after = next(times) if model.role == "unlearned" else None
        for column in table.columns:
            score = model.cells[column.key].score
            about = (name, "", "", column.key)
            role = "before" if model.role == "target" else model.role
            rows.append((*about, role, after, *_numbers(score, column.unit, column.better)))
    return csv_lines(rows)


def _numbers(
    score: Score, unit: str, better: Better, back: Return | None = None
) -> tuple[str | int | float | None, ...]:
    change = back.change if back is not None else None
    moved = (
        (change.value, change.low, change.high, change.n, change.by, back.verdict)
        if change is not None and back is not None
        else (None,) * 6
    )
    return (
        score.value, score.low, score.high, score.n, score.unscored, unit, better, score.reason,
        *moved,
    )  # fmt: skip
