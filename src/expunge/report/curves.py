"""The training figures: every term of the objective over the steps, and what else was logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from expunge.report.figure import Figure, axis, safe
from expunge.report.model import LogEntry
from expunge.report.text import count, number, one_line

MAX_POINTS: Final = 1000
PANEL_HEIGHT: Final = 120

Panels = Mapping[str, Sequence[float | None]]
"""Values per step, by name."""


def loss_curves(log: Sequence[LogEntry]) -> Figure | None:
    """The objective and each of its terms over the optimizer steps, one panel each."""
    panels: dict[str, list[float | None]] = {"total": [entry.total for entry in log]}
    for name in _names(entry.terms for entry in log):
        panels[name] = [entry.terms.get(name) for entry in log]
    return _figure(
        name="losses",
        title="Loss terms",
        caption="One panel per term, each with its own scale. Terms are means over the step "
        "without their weights; total has the weights. Which way a forget term runs depends on the "
        "method: gradient ascent drives it up, NPO and refusals drive it down.",
        log=log,
        panels=panels,
    )


def other_curves(log: Sequence[LogEntry]) -> Figure | None:
    """Everything else that was logged per step: active penalties, weights, learning rate."""
    names = [name for name in _names(entry.others for entry in log) if name != "seconds"]
    return _figure(
        name="others",
        title="Other logged values",
        caption="Penalty active counts the samples of a step whose proxy penalty acted. Values "
        "that end in min and max are the range over the samples of a step.",
        log=log,
        panels={name: [entry.others.get(name) for entry in log] for name in names},
    )


def _names(mappings: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _figure(
    *, name: str, title: str, caption: str, log: Sequence[LogEntry], panels: Panels
) -> Figure | None:
    panels = {key: values for key, values in panels.items() if any(v is not None for v in values)}
    if not panels:
        return None
    stride = math.ceil(len(log) / MAX_POINTS)
    steps = [entry.step for entry in log][::stride]
    layout: dict[str, Any] = {"showlegend": False, "annotations": []}
    traces = []
    for place, (label, values) in enumerate(panels.items()):
        _add_axes(layout, place, len(panels), label)
        traces.append(_trace(place, label, steps, list(values)[::stride]))
    thinned = f" Of every {count(stride, 'step')} one is drawn." if stride > 1 else ""
    return Figure(
        name=name,
        title=title,
        alternative=f"Curves over {count(len(log), 'logged step')}: {'; '.join(_ends(panels))}.",
        caption=caption + thinned,
        height=90 + PANEL_HEIGHT * len(panels),
        spec={"data": traces, "layout": layout},
    )


def _suffix(place: int) -> str:
    return "" if place == 0 else str(place + 1)


def _add_axes(layout: dict[str, Any], place: int, num_panels: int, label: str) -> None:
    """Stack a panel under the earlier ones; all share the step axis of the first."""
    gap = 0.3 / num_panels
    height = (1 - gap * (num_panels - 1)) / num_panels
    top = 1 - place * (height + gap)
    suffix, is_last = _suffix(place), place == num_panels - 1
    layout[f"yaxis{suffix}"] = {
        "domain": [max(top - height, 0), top],
        "automargin": True,
        "zeroline": False,
        "nticks": 4,
        "exponentformat": "e",
    }
    layout[f"xaxis{suffix}"] = axis(
        "optimizer step" if is_last else "", anchor=f"y{suffix}", showticklabels=is_last
    ) | ({"matches": "x"} if place else {})
    layout["annotations"].append(
        {
            "text": f"<b>{safe(one_line(label.replace('_', ' '), 60))}</b>",
            "showarrow": False,
            "xref": "paper",
            "yref": "paper",
            "x": 0,
            "y": top,
            "xanchor": "left",
            "yanchor": "bottom",
        }
    )


def _trace(
    place: int, label: str, steps: Sequence[int], values: Sequence[float | None]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(steps) <= 60 else "lines",
        "x": list(steps),
        "y": list(values),
        "name": safe(one_line(label, 60)),
        "xaxis": f"x{_suffix(place)}",
        "yaxis": f"y{_suffix(place)}",
        "marker": {"size": 4},
        "line": {"width": 1.5},
        "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
        "meta": {"role": "unlearned"},
    }


def _ends(panels: Panels) -> Iterator[str]:
    for label, values in panels.items():
        known = [value for value in values if value is not None]
        yield f"{one_line(label, 60)} from {number(known[0])} to {number(known[-1])}"
