"""The truth-ratio figure: distribution functions of all models, with the KS distance D drawn in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.report.distributions import Distance, ecdf, ks_distance
from expunge.report.figure import Figure, axis, rule, safe
from expunge.report.model import ReportData, role_label
from expunge.report.text import DASH, number

OUTERMOST: Final = 1e6  # the axis goes from its inverse to it at most

_DASHES: Final = {"base": "dot", "target": "dash", "unlearned": "solid", "retain": "dashdot"}


def truth_ratio_figure(data: ReportData) -> Figure | None:
    """Distribution functions of the forget truth ratios, with D drawn where it is reached.

    None when no model has truth ratios.
    """
    ratios = _ratios(data)
    if not ratios:
        return None
    span = _axis_span(ratios.values())
    layout: dict[str, Any] = {
        "xaxis": axis(
            "truth ratio (log scale)",
            type="log",
            range=[math.log10(span.low), math.log10(span.high)],
            tickvals=span.ticks,
            ticktext=[f"{tick:g}" for tick in span.ticks],
        ),
        "yaxis": axis("share of questions at or below", range=[0, 1.02], tickformat=".0%"),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "shapes": [rule(x=1, dash="dot")],
    }
    traces = [_curve(role, values, span) for role, values in ratios.items()]
    distances = _distances(ratios)
    if (marked := distances.get("unlearned")) is not None:
        traces.append(_distance_trace(marked, span))
        layout["annotations"] = [_distance_label(marked, span)]
    caption = (
        "Truth ratio: probability of wrong answers over that of the right one, per token. At 1 "
        "(dotted line) both are equally likely; left of it the right answer is preferred. "
        f"{_distances_in_words(distances, ratios)}{_true_distance(data)}"
    )
    return Figure(
        name="truth-ratios",
        title="Distribution over the questions of the forget set",
        alternative=f"Distribution functions of truth ratios. {caption}",
        caption=caption,
        height=420,
        spec={"data": traces, "layout": layout},
    )


def _ratios(data: ReportData) -> dict[str, NDArray[np.float64]]:
    """Forget truth ratios by role, of models that have any."""
    found = {}
    for role in data.models:
        table = data.table(role, "forget")
        if table is not None and table.truth_ratios is not None:
            values = table.truth_ratios[~np.isnan(table.truth_ratios)]
            if values.size:
                found[role] = values
    return found


class Span(NamedTuple):
    """A log axis: its ends and round ticks between them."""

    low: float
    high: float
    ticks: list[float]


def _axis_span(samples: Iterable[NDArray[np.float64]]) -> Span:
    """An axis that holds all samples and the value 1, within `OUTERMOST`."""
    known = np.clip(np.concatenate([*samples, [1.0]]), 1 / OUTERMOST, OUTERMOST)
    low, high = float(known.min()) / 1.1, float(known.max()) * 1.1
    return Span(low, high, _ticks(low, high))


def _ticks(low: float, high: float) -> list[float]:
    """Three or more round values between the ends of a log axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks
    # Less than a decade: equal steps are rounder than equal ratios.
    unit = 10.0 ** math.floor(math.log10(high - low))
    for step in (unit, unit / 2, unit / 5, unit / 10):
        first, last = math.ceil(low / step), math.floor(high / step)
        ticks = [i * step for i in range(first, last + 1)]
        if len(ticks) >= 3:
            break
    return ticks


def _curve(role: str, values: NDArray[np.float64], span: Span) -> dict[str, Any]:
    xs, shares = ecdf(np.clip(values, span.low, span.high))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [span.low, *xs, span.high],
        "y": [0.0, *shares, 1.0],
        "name": safe(role_label(role)),
        "line": {"shape": "hv", "width": 2, "dash": _DASHES.get(role, "solid")},
        "meta": {"role": role},
        "hovertemplate": "truth ratio %{x:.3g}: %{y:.0%} at or below<extra></extra>",
    }


def _distances(ratios: Mapping[str, NDArray[np.float64]]) -> dict[str, Distance]:
    """Distance of every model to the retain model; empty without one."""
    if "retain" not in ratios:
        return {}
    found = {role: ks_distance(values, ratios["retain"]) for role, values in ratios.items()}
    return {role: d for role, d in found.items() if d is not None and role != "retain"}


def _distance_trace(distance: Distance, span: Span) -> dict[str, Any]:
    at = min(max(distance.at, span.low), span.high)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [at, at],
        "y": [distance.low, distance.high],
        "name": f"D = {number(distance.statistic)}",
        "line": {"width": 3},
        "marker": {"size": 7, "symbol": "line-ew-open"},
        "meta": {"role": "mark"},
        "hoverinfo": "name",
    }


def _distance_label(distance: Distance, span: Span) -> dict[str, Any]:
    at = min(max(distance.at, span.low), span.high)
    return {
        "x": math.log10(at),
        "y": (distance.low + distance.high) / 2,
        "text": f"<b>D = {number(distance.statistic)}</b>",
        "showarrow": False,
        "xanchor": "left",
        "xshift": 8,
        "bgcolor": "paper",  # the page replaces it by its own
    }


def _distances_in_words(
    distances: Mapping[str, Distance], ratios: Mapping[str, NDArray[np.float64]]
) -> str:
    if "retain" not in ratios:
        return "Without truth ratios of a retain model there is no distance D to mark."
    said = [f"{number(d.statistic)} for the {role_label(r).lower()}" for r, d in distances.items()]
    return f"D, the largest vertical distance to the retain model, is {'; '.join(said) or DASH}."


def _true_distance(data: ReportData) -> str:
    """How far the unlearned model may really be, and which of several retain models is drawn."""
    model = data.models.get("unlearned")
    test = model.forget_quality if model else None
    if test is None or test.low is None or test.high is None:
        return ""
    words = (
        f" Over all questions that might be asked, the unlearned model's true distance is between "
        f"{number(test.low)} and {number(test.high)} (95%)."
    )
    if len(test.distances) > 1:
        words += (
            f" The first of {len(test.distances)} retain models is drawn; the test is that against "
            f"the one at the median distance, D = {number(test.statistic)}."
        )
    return words
