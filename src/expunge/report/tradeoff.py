"""The trade-off figures: forget quality against model utility, one point per model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from expunge.core.results import Score
from expunge.report.figure import Figure, axis, rule, safe
from expunge.report.forget_quality import (
    SIGNIFICANCE,
    KnownTest,
    known_test,
    smallest_detectable,
)
from expunge.report.tables import Table, TableRow
from expunge.report.text import number, one_line

SMALLEST_P: Final = 1e-30  # below this a p-value is drawn here, so that the others stay apart
MOST_NAMES: Final = 4  # more points than this are numbered
HEIGHT: Final = 400

_SYMBOLS: Final = {
    "base": "circle-open",
    "target": "square",
    "unlearned": "diamond",
    "retain": "triangle-up",
}
_BY_DEFINITION: Final = (
    "The retain model is compared with itself, so it has p = 1 and D = 0 by definition."
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in the plane.

    Attributes:
        row: Its row of the table.
        utility: Its model utility, with a value.
        test: Its forget quality; None for the retain model, which has nothing to be tested against.
        label: What stands beside it: its name, or a number where names would cover each other.
    """

    row: TableRow
    utility: Score
    test: KnownTest | None
    label: str

    @property
    def x(self) -> float:
        """Model utility."""
        assert self.utility.value is not None
        return self.utility.value


def tradeoff(table: Table) -> list[Figure]:
    """Forget quality against model utility: by p-value, and by D, which does not saturate.

    Empty when no model has both values.
    """
    points = [point for row in table.rows if (point := _point(row)) is not None]
    if len(points) > MOST_NAMES:
        points = [replace(point, label=str(i)) for i, point in enumerate(points, 1)]
    if all(point.test is None for point in points):
        return []
    return [_by_p_value(points), _by_distance(points)]


def _point(row: TableRow) -> Point | None:
    utility, test = row.model.score("model_utility"), known_test(row.model)
    if utility is None or utility.value is None:
        return None
    label = one_line(row.label, 40)
    if row.role == "retain":
        return Point(row=row, utility=utility, test=None, label=label)
    return None if test is None else Point(row=row, utility=utility, test=test, label=label)


def _by_p_value(points: Sequence[Point]) -> Figure:
    p_values = [max(p.test.p_value, SMALLEST_P) if p.test else 1.0 for p in points]
    lowest = math.floor(math.log10(min([*p_values, 0.01]))) - 0.5
    y_axis = axis(
        "p-value (log scale)",
        type="log",
        range=[lowest, -0.06 * lowest],
        exponentformat="power",
        dtick=max(1, round(-lowest / 5)),
    )
    clipped = f" Values below {SMALLEST_P:g} are drawn there." if SMALLEST_P in p_values else ""
    return Figure(
        name="tradeoff-p",
        title="By p-value",
        alternative=f"Scatter plot of p-value against model utility. {_described(points)}",
        caption="Up: the test finds less difference from the retain model; above the dashed line "
        "it finds none, and higher is then not better. Right: more of what should stay is kept. "
        f"{_BY_DEFINITION}{clipped}{_legend(points)}",
        height=HEIGHT,
        spec={
            "data": _traces(points, p_values, [1 - math.log10(p) / lowest for p in p_values]),
            "layout": {
                "xaxis": _utility_axis(points),
                "yaxis": y_axis,
                "shapes": [rule(y=SIGNIFICANCE, dash="dash"), *_retain_rules(points)],
                "annotations": [_level_label(math.log10(SIGNIFICANCE), f"p = {SIGNIFICANCE}")],
                "showlegend": False,
            },
        },
    )


def _by_distance(points: Sequence[Point]) -> Figure:
    distances = [point.test.distance if point.test else 0.0 for point in points]
    sizes = {(point.test.n, point.test.m) for point in points if point.test}
    smallest = smallest_detectable(*next(iter(sizes))) if len(sizes) == 1 else None
    ends = [p.test.test.high or 0.0 for p in points if p.test]
    highest = min(max([*distances, *ends, smallest or 0.0, 0.1]) * 1.12, 1.12)
    caption = "Up: closer to the retain model. Right: more of what should stay is kept."
    shapes, labels = _retain_rules(points), []
    if smallest is not None:
        caption += f" From the dashed line down, D of {number(smallest)} or more, the test finds "
        caption += "a difference at this n."
        shapes.append(rule(y=smallest, dash="dash"))
        labels.append(_level_label(smallest, f"D = {number(smallest)}"))
    bands = {p.test.test.null_band.highest for p in points if p.test and p.test.test.null_band}
    if len(bands) == 1:
        band = next(iter(bands))
        caption += f" Dotted: D = {number(band)}, the largest between two retain models."
        shapes.append(rule(y=band, dash="dot"))
    return Figure(
        name="tradeoff-d",
        title="By distance D",
        alternative=f"Scatter plot of KS distance against model utility. {_described(points)}",
        caption=caption + _legend(points),
        height=HEIGHT,
        spec={
            "data": [
                trace | _distance_bars(point)
                for point, trace in zip(
                    points,
                    _traces(points, distances, [1 - d / highest for d in distances]),
                    strict=True,
                )
            ],
            "layout": {
                "xaxis": _utility_axis(points),
                "yaxis": axis("KS distance D (0 on top)", range=[highest, -0.06 * highest]),
                "shapes": shapes,
                "annotations": labels,
                "showlegend": False,
            },
        },
    )


def _described(points: Iterable[Point]) -> str:
    said = [
        f"{point.row.label}: utility {number(point.x)}"
        + (f", {point.test.text}" if point.test else "")
        for point in points
    ]
    return "; ".join(said) + "."


def _legend(points: Sequence[Point]) -> str:
    """What the numbers beside the points stand for; "" where names stand there."""
    if len(points) <= MOST_NAMES:
        return ""
    return f" Points: {'; '.join(f'{p.label} {one_line(p.row.label, 80)}' for p in points)}."


def _traces(
    points: Sequence[Point], heights: Sequence[float], up: Sequence[float]
) -> list[dict[str, Any]]:
    """A trace per point.

    Args:
        points: The models.
        heights: Their y values.
        up: Their heights on the screen, as shares of the axis.
    """
    places = ["bottom center" if below else "top center" for below in _labels_below(points, up)]
    if len(points) > MOST_NAMES:
        places = ["top right"] * len(points)
    return [
        _trace(point, height) | {"textposition": place}
        for point, height, place in zip(points, heights, places, strict=True)
    ]


def _trace(point: Point, height: float) -> dict[str, Any]:
    name, role, utility = safe(one_line(point.row.label, 80)), point.row.role, point.utility
    quality = point.test.text if point.test else "compared with itself"
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [point.x],
        "y": [height],
        "text": [safe(point.label)],
        "cliponaxis": False,
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{name}</b><br>model utility {number(point.x)} (n = {utility.n})<br>{safe(quality)}"
        ],
        "name": name,
        "marker": {"symbol": _SYMBOLS.get(role, "diamond"), "size": 11},
        "meta": {"role": role},
    }
    if utility.low is not None and utility.high is not None:
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [utility.high - point.x],
            "arrayminus": [point.x - utility.low],
            "thickness": 1,
            "width": 4,
        }
    return trace


def _distance_bars(point: Point) -> dict[str, Any]:
    """The 95% interval of the true distance as bars; nothing where it is not known."""
    test = point.test.test if point.test else None
    if test is None or test.statistic is None or test.low is None or test.high is None:
        return {}
    bars = {"type": "data", "symmetric": False, "thickness": 1, "width": 4}
    up, down = test.high - test.statistic, test.statistic - test.low
    return {"error_y": bars | {"array": [up], "arrayminus": [down]}}


def _labels_below(points: Sequence[Point], up: Sequence[float]) -> list[bool]:
    """Whether a label must stand below its point, because another point is close above it."""
    xs = [point.x for point in points]
    near = 0.4 * max(max(xs) - min(xs), 0.05)

    def stands_above(other: int, this: int) -> bool:
        gap = up[other] - up[this]
        # Of two points at the same height, the first counts as the upper one.
        higher = 0 < gap < 0.2 or (gap == 0 and other < this)
        return higher and abs(xs[other] - xs[this]) < near

    everyone = range(len(points))
    return [any(stands_above(other, this) for other in everyone) for this in everyone]


def _utility_axis(points: Sequence[Point]) -> dict[str, Any]:
    ends = [end for p in points for end in (p.x, p.utility.low, p.utility.high) if end is not None]
    margin = max(0.2 * (max(ends) - min(ends)), 0.05)
    return axis("model utility", range=[min(ends) - margin, max(ends) + margin])


def _level_label(height: float, text: str) -> dict[str, Any]:
    return {
        "xref": "paper",
        "x": 0,
        "y": height,
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "xshift": 4,
        "yanchor": "top",
    }


def _retain_rules(points: Iterable[Point]) -> list[dict[str, Any]]:
    return [rule(x=point.x, dash="dot") for point in points if point.test is None]
