"""The truth-ratio figure: distribution functions of all models, with the KS distance D drawn in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.report.distributions import Distance, ecdf, ks_distance
from expunge.report.figure import Figure, axis, rule, safe
from expunge.report.model import ReportData, role_label
from expunge.report.text import DASH, number

OUTERMOST: Final = 1e6  # the axis goes from its inverse to it at most

_DASHES: Final = {"base": "dot", "target": "dash", "unlearned": "solid", "retain": "dashdot"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ratios:
    """Truth ratios of one model on the forget set.

    Attributes:
        role: Its role.
        label: Its name in the figure.
        values: Those that could be computed, shape [n].
    """

    role: str
    label: str
    values: NDArray[np.float64]


def truth_ratio_figure(data: ReportData) -> Figure | None:
    """Distribution functions of the forget truth ratios, with D drawn where it is reached.

    Of several retain models all are drawn, and D to the one at the median distance, which is the
    one that forget quality is about. None when no model has truth ratios.
    """
    ratios = _ratios(data)
    if not ratios:
        return None
    span = _axis_span(each.values for each in ratios)
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
    retains = [each for each in ratios if each.role == "retain"]
    traces = [_curve(each, span, thin=each in retains[1:]) for each in ratios]
    distances = _distances(ratios, retains)
    if (marked := distances.get("unlearned")) is not None:
        traces.append(_distance_trace(marked, span))
        layout["annotations"] = [_distance_label(marked, span)]
    caption = (
        "Truth ratio: probability of wrong answers over that of the right one, per token. At 1 "
        "(dotted line) both are equally likely; left of it the right answer is preferred. "
        f"{_distances_in_words(distances, retains)}{_true_distance(data, len(retains))}"
    )
    return Figure(
        name="truth-ratios",
        title="Distribution over the questions of the forget set",
        alternative=f"Distribution functions of truth ratios. {caption}",
        caption=caption,
        height=420,
        spec={"data": traces, "layout": layout},
    )


def _ratios(data: ReportData) -> list[_Ratios]:
    """Forget truth ratios of the models that have any."""
    found = []
    for model in data.all_models:
        table = model.tables.get("forget")
        if table is not None and table.truth_ratios is not None:
            values = table.truth_ratios[~np.isnan(table.truth_ratios)]
            if values.size:
                found.append(_Ratios(role=model.role, label=model.label, values=values))
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


def _curve(ratios: _Ratios, span: Span, *, thin: bool) -> dict[str, Any]:
    xs, shares = ecdf(np.clip(ratios.values, span.low, span.high))
    dash = _DASHES.get(ratios.role, "solid")
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [span.low, *xs, span.high],
        "y": [0.0, *shares, 1.0],
        "name": safe(ratios.label),
        "line": {"shape": "hv", "width": 1 if thin else 2, "dash": dash},
        "meta": {"role": ratios.role},
        "hovertemplate": "truth ratio %{x:.3g}: %{y:.0%} at or below<extra></extra>",
    }


def _distances(ratios: Sequence[_Ratios], retains: Sequence[_Ratios]) -> dict[str, Distance]:
    """Distance of every model to the retain model by role; empty without one.

    To several retain models it is the median one, of two middle ones the larger, as in the test.
    """
    found = {}
    for each in ratios:
        if each.role != "retain":
            known = [ks_distance(each.values, retain.values) for retain in retains]
            to = sorted((d for d in known if d is not None), key=lambda d: d.statistic)
            if to:
                found[each.role] = to[len(to) // 2]
    return found


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


def _distances_in_words(distances: Mapping[str, Distance], retains: Sequence[_Ratios]) -> str:
    if not retains:
        return "Without truth ratios of a retain model there is no distance D to mark."
    said = [f"{number(d.statistic)} for the {role_label(r).lower()}" for r, d in distances.items()]
    to = "the retain model" if len(retains) == 1 else "the retain model at the median distance"
    return f"D, the largest vertical distance to {to}, is {'; '.join(said) or DASH}."


def _true_distance(data: ReportData, drawn: int) -> str:
    """How far the unlearned model may really be, and how many retain models are drawn."""
    model = data.models.get("unlearned")
    test = model.forget_quality if model else None
    words = ""
    if test is not None and test.low is not None and test.high is not None:
        words = (
            f" Over all questions that might be asked, the unlearned model's true distance is "
            f"between {number(test.low)} and {number(test.high)} (95%)."
        )
    asked = len(test.distances) if test is not None else 0
    if test is not None and drawn and drawn < asked:
        words += (
            f" Only {drawn} of {asked} retain models can be drawn; by all of them the median "
            f"distance is D = {number(test.statistic)}."
        )
    elif drawn > 1:
        words += (
            f" All {drawn} retain models are drawn: how far they are apart is what chance alone "
            "makes."
        )
    return words
