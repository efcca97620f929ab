"""The figures of a scenario: requests over time, what should stay over time, arms as bars.

The unlearned models of all times have one colour, so every request has a panel of its own. The
panels stand under each other with one time axis, so that each request is seen to fall at its turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from expunge.core.results import Score
from expunge.report.figure import Figure, axis, safe
from expunge.report.measures import DISTANCE_KEY, column_label, metric_label, probe_label
from expunge.report.scenario_values import (
    ARM_MEASURES,
    FORGET_PROBES,
    Matrix,
    RequestRow,
    Scenario,
)
from expunge.report.tables import Table, TableRow
from expunge.report.text import number, one_line

PANEL: Final = 104
FRAME: Final = 90  # pixels for the time axis and the upper margin

DRAWN: Final = {
    "probability": "Probability per token",
    "rouge_l_recall": "ROUGE-L recall",
}
"""The measures with a figure over the requests."""

OVER_TIME: Final = (
    "model_utility",
    "model_utility_cl",
    "unrelated_utility",
    "knowmem_retain/rouge_l_f1",
    "retain/probability",
    "retain/rouge_l_recall",
    DISTANCE_KEY,
    "verbmem/rouge_l_f1",
    "knowmem_forget/rouge_l_f1",
    "privleak",
)
"""What has a panel in the figure over time, where it was measured."""

ARM_ROLES: Final = ("target", "unlearned")

Trace = dict[str, Any]
Points = Sequence[tuple[float, Score]]


def request_figures(scenario: Scenario, found: Sequence[Matrix]) -> list[Figure]:
    """One figure per drawn measure with a panel per request; empty without any value."""
    drawn = [matrix for matrix in found if matrix.name in DRAWN]
    return [_requests(scenario, matrix) for matrix in drawn]


def _requests(scenario: Scenario, matrix: Matrix) -> Figure:
    rows = [row for row in matrix.rows if _is_drawn(row)]
    num = len(rows)
    layout = _layout(num, [_request_title(row) for row in rows])
    layout |= _time_axes(num, len(scenario.stages), start="start")
    for place in range(num):
        layout[f"yaxis{_suffix(place)}"] |= {"range": [-0.06, 1.06], "tickvals": [0, 0.5, 1]}
    traces = [
        trace
        for place, row in enumerate(rows)
        for trace in _request_traces(row, place, len(scenario.stages), scenario.is_continual)
    ]
    later = (
        " then the models after it, with 95% intervals: a line that rises again has come back."
        if scenario.is_continual
        else " then the model it was unlearned from the target model for, with its 95% interval."
    )
    return Figure(
        name=f"requests-{matrix.name.replace('_', '-')}",
        title=DRAWN[matrix.name],
        alternative=f"{DRAWN[matrix.name]} on the rows of each request. {_described(matrix)}",
        caption="One panel per request. The square is the model before its unlearning,"
        f"{later} The dashed line is the retain model, which never saw the request.",
        height=FRAME + PANEL * num,
        spec={"data": traces, "layout": layout},
    )


def _is_drawn(row: RequestRow) -> bool:
    """Whether there is anything of a request yet; an empty panel would have no axis."""
    scores = (row.before, row.retain, *row.after)
    return any(score is not None and score.value is not None for score in scores)


def _request_title(row: RequestRow) -> str:
    return f"Request {row.stage.position}: {row.stage.title}"


def _described(matrix: Matrix) -> str:
    said = []
    for row in matrix.rows:
        values = [number(each.value) for each in row.after if each and each.value is not None]
        ends = [
            f"{number(score.value)} {what}"
            for score, what in ((row.before, "before"), (row.retain, "on the retain model"))
            if score.value is not None
        ]
        if values:
            against = f" ({', '.join(ends)})" if ends else ""
            said.append(f"{_request_title(row)}: {', '.join(values)}{against}")
    return "; ".join(said) + "."


def _request_traces(row: RequestRow, place: int, num: int, continual: bool) -> list[Trace]:
    at = row.stage.position
    points = [
        (float(t), score)
        for t, score in enumerate(row.after, 1)
        if score is not None and score.value is not None
    ]
    traces = []
    if row.before.value is not None:
        before: Points = [(at - 1.0, row.before)]
        if points:
            traces.append(_line([*before, points[0]], place, role="series", dash="dot"))
        traces.append(_markers(before, place, role="target", name=f"before request {at}"))
    traces += _measured(points, place)
    if row.retain.value is not None:
        ends: Points = [(at - 1.0, row.retain), (float(num if continual else at), row.retain)]
        name = "retain model"
        traces.append(_line(ends, place, role="retain", dash="dash", name=name))
    return traces


def _measured(points: Points, place: int) -> list[Trace]:
    """Unlearned models in time: their intervals, and the line through them."""
    if not points:
        return []
    x: list[float | None] = []
    y: list[float | None] = []
    for t, score in points:
        if score.low is not None and score.high is not None:
            x += [t, t, None]
            y += [score.low, score.high, None]
    intervals = _on(place) | {
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"width": 1},
        "hoverinfo": "skip",
        "name": "",
        "meta": {"role": "unlearned"},
    }
    line = _on(place) | {
        "mode": "lines+markers",
        "x": [t for t, _ in points],
        "y": [score.value for _, score in points],
        "line": {"width": 2},
        "marker": {"symbol": "diamond", "size": 8},
        "hoverinfo": "text",
        "hovertext": [_hover(f"after request {t:g}", score) for t, score in points],
        "name": "unlearned model",
        "meta": {"role": "unlearned"},
    }
    return [intervals, line] if x else [line]


def _on(place: int) -> Trace:
    return {
        "type": "scatter",
        "xaxis": f"x{_suffix(place)}",
        "yaxis": f"y{_suffix(place)}",
        "cliponaxis": False,
    }


def _line(points: Points, place: int, *, role: str, dash: str, name: str = "") -> Trace:
    hover = (
        {"hoverinfo": "text", "hovertext": [_hover(name, score) for _, score in points]}
        if name
        else {"hoverinfo": "skip"}
    )
    return (
        _on(place)
        | hover
        | {
            "mode": "lines",
            "x": [t for t, _ in points],
            "y": [score.value for _, score in points],
            "line": {"width": 1.5, "dash": dash},
            "name": name,
            "meta": {"role": role},
        }
    )


def _markers(points: Points, place: int, *, role: str, name: str) -> Trace:
    return _on(place) | {
        "mode": "markers",
        "x": [t for t, _ in points],
        "y": [score.value for _, score in points],
        "marker": {"symbol": "square", "size": 8},
        "hoverinfo": "text",
        "hovertext": [_hover(name, score) for _, score in points],
        "name": name,
        "meta": {"role": role},
    }


def _hover(what: str, score: Score) -> str:
    span = ""
    if score.low is not None and score.high is not None:
        span = f" [{number(score.low)}, {number(score.high)}]"
    return safe(f"{what}: {number(score.value)}{span}, n = {score.n}")


def time_figure(scenario: Scenario, table: Table) -> Figure | None:
    """What is not about a request's own rows, over the requests; None where nothing is drawn.

    Args:
        scenario: The requests.
        table: `over_time` of them.
    """
    times = [float(stage.position) for stage in scenario.finished]
    unlearned = [row for row in table.rows if row.role == "unlearned"]
    rows = {row.role: row for row in table.rows}
    keys = [
        key
        for key in OVER_TIME
        if any(key in row.cells and row.cells[key].score.value is not None for row in unlearned)
    ]
    if not keys:
        return None
    layout = _layout(len(keys), [column_label(key) for key in keys])
    layout |= _time_axes(len(keys), len(scenario.stages), start="start")
    traces: list[Trace] = []
    said = []
    for place, key in enumerate(keys):
        points = [
            (t, row.cells[key].score)
            for t, row in zip(times, unlearned, strict=True)
            if row.cells[key].score.value is not None
        ]
        traces += _over_time(scenario, key, rows, points, place)
        values = ", ".join(number(score.value) for _, score in points)
        said.append(f"{column_label(key)}: {values}")
    return Figure(
        name="over-time",
        title="Over the requests",
        alternative=f"Values after each request. {'; '.join(said)}.",
        caption="One panel per measure, each with its own scale, with 95% intervals. The square at "
        "the start is the target model before the first request, the dashed line the retain "
        "model. The distance D is about the rows of the request at hand: 0 is no difference from "
        "the retain model.",
        height=FRAME + PANEL * len(keys),
        spec={"data": traces, "layout": layout},
    )


def _over_time(
    scenario: Scenario, key: str, rows: Mapping[str, TableRow], points: Points, place: int
) -> list[Trace]:
    def score(role: str) -> Score | None:
        row = rows.get(role)
        found = row.cells[key].score if row is not None else None
        return found if found is not None and found.value is not None else None

    traces = []
    start, retain = score("target"), score("retain")
    if start is not None and key != DISTANCE_KEY:
        before: Points = [(0.0, start)]
        if scenario.is_continual:
            traces.append(_line([*before, points[0]], place, role="series", dash="dot"))
        traces.append(_markers(before, place, role="target", name="target model"))
    traces += _measured(points, place)
    if retain is not None and key != DISTANCE_KEY:
        ends: Points = [(0.0, retain), (float(len(scenario.stages)), retain)]
        traces.append(_line(ends, place, role="retain", dash="dash", name="retain model"))
    return traces


def arm_figures(scenario: Scenario, table: Table) -> list[Figure]:
    """Bars of what the arms still say about what was to be forgotten, a figure per measure.

    Args:
        scenario: The arms.
        table: `arms_table` of them, rows of target and unlearned models.
    """
    figures = []
    for name in ARM_MEASURES:
        keys = [
            f"{probe}/{name}"
            for probe in FORGET_PROBES
            if any(_value(row, f"{probe}/{name}") is not None for row in table.rows)
        ]
        if keys:
            figures.append(_arms(scenario, table, name, keys))
    return figures


def _arms(scenario: Scenario, table: Table, name: str, keys: Sequence[str]) -> Figure:
    labels = [stage.label for stage in scenario.stages]
    layout = _layout(len(keys), [probe_label(key.partition("/")[0]) for key in keys])
    for place in range(len(keys)):
        last = place == len(keys) - 1
        layout[f"yaxis{_suffix(place)}"] |= {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [safe(label) for label in reversed(labels)],
        }
        layout[f"xaxis{_suffix(place)}"] = axis(
            DRAWN[name] if last else "",
            anchor=f"y{_suffix(place)}",
            range=[0, 1.02],
            showticklabels=last,
        )
    traces = [
        trace
        for place, key in enumerate(keys)
        for role in reversed(ARM_ROLES)  # bars of a group are stacked upwards
        if (trace := _bars(scenario, table, key, role, place)) is not None
    ]
    said = [
        f"{row.label}, {column_label(key)}: {number(value)}"
        for key in keys
        for row in table.rows
        if (value := _value(row, key)) is not None
    ]
    return Figure(
        name=f"arms-{name.replace('_', '-')}",
        title=DRAWN[name],
        alternative=f"Bars of {metric_label(name)}. {'; '.join(said)}.",
        caption="Of each arm the upper bar is the target model, the lower one the unlearned model; "
        "lines are 95% intervals. Lower is forgotten.",
        height=FRAME + len(keys) * (24 + 36 * len(labels)),
        spec={"data": traces, "layout": layout | {"barmode": "group", "bargap": 0.25}},
    )


def _bars(scenario: Scenario, table: Table, key: str, role: str, place: int) -> Trace | None:
    found = [
        (stage, row.cells[key].score)
        for stage in scenario.stages
        for row in table.rows
        if row.role == role
        and stage.report is not None
        and row.model is stage.model(role)
        and _value(row, key) is not None
    ]
    if not found:
        return None
    scores = [score for _, score in found]
    values = [score.value or 0.0 for score in scores]
    return {
        "type": "bar",
        "orientation": "h",
        "xaxis": f"x{_suffix(place)}",
        "yaxis": f"y{_suffix(place)}",
        "x": values,
        "y": [safe(stage.label) for stage, _ in found],
        "marker": {"opacity": 0.55},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_above(score) for score in scores],
            "arrayminus": [_below(score) for score in scores],
            "thickness": 1.5,
            "width": 4,
        },
        "hoverinfo": "text",
        "hovertext": [
            _hover(f"{role} model, {one_line(stage.label, 40)}", score) for stage, score in found
        ],
        "textposition": "none",
        "name": role,
        "meta": {"role": role},
    }


def _above(score: Score) -> float:
    return 0.0 if score.high is None or score.value is None else score.high - score.value


def _below(score: Score) -> float:
    return 0.0 if score.low is None or score.value is None else score.value - score.low


def _value(row: TableRow, key: str) -> float | None:
    return row.cells[key].score.value if key in row.cells else None


def _suffix(place: int) -> str:
    return "" if place == 0 else str(place + 1)


def _layout(num: int, titles: Sequence[str]) -> dict[str, Any]:
    """Panels under each other, the first on top, each with a title above it."""
    gap = 0.3 / num
    height = (1 - gap * (num - 1)) / num
    layout: dict[str, Any] = {"showlegend": False, "annotations": []}
    for place, title in enumerate(titles):
        top = 1 - place * (height + gap)
        layout[f"yaxis{_suffix(place)}"] = {
            "domain": [max(top - height, 0), top],
            "automargin": True,
            "zeroline": False,
            "nticks": 4,
        }
        layout["annotations"].append(
            {
                "text": f"<b>{safe(one_line(title, 70))}</b>",
                "showarrow": False,
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": top,
                "xanchor": "left",
                "yanchor": "bottom",
            }
        )
    return layout


def _time_axes(num: int, last: int, *, start: str) -> dict[str, Any]:
    """A time axis per panel, labelled under the lowest: the start, then after each request."""
    stride = math.ceil(last / 12)
    times = [0, *range(stride, last + 1, stride)]
    axes = {}
    for place in range(num):
        is_last = place == num - 1
        axes[f"xaxis{_suffix(place)}"] = axis(
            "after request" if is_last else "",
            anchor=f"y{_suffix(place)}",
            range=[-0.3, last + 0.3],
            tickvals=times,
            ticktext=[start if t == 0 else str(t) for t in times],
            showticklabels=is_last,
        )
    return axes
