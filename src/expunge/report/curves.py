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
FEW_STEPS: Final = 12

Series = Sequence[float | None]
"""One value per logged step."""

Panels = Mapping[str, Sequence[Series]]
"""The lines of every panel, by the panel's title."""


def loss_curves(log: Sequence[LogEntry]) -> Figure | None:
    """The objective and each of its terms over the optimizer steps, one panel each."""
    panels: dict[str, list[Series]] = {"total": [[entry.total for entry in log]]}
    for name in _names(entry.terms for entry in log):
        panels[name] = [[entry.terms.get(name) for entry in log]]
    return _figure(
        name="losses",
        title="Loss terms",
        caption="One panel per term, each with its own scale. Terms are means over the step "
        "without their weights; total has the weights. Losses are signed so that training drives "
        "them down, whatever they do to the data they are about.",
        log=log,
        panels=panels,
    )


def other_curves(log: Sequence[LogEntry]) -> Figure | None:
    """Everything else that was logged per step: active penalties, weights, learning rate."""
    panels: dict[str, list[Series]] = {}
    for name in _names(entry.others for entry in log):
        if name != "seconds":
            panels.setdefault(_panel_title(name), []).append([e.others.get(name) for e in log])
    return _figure(
        name="others",
        title="Other logged values",
        caption="Penalty active counts the samples of a step whose proxy penalty acted. Two lines "
        "are the smallest and the largest value over the samples of a step.",
        log=log,
        panels=panels,
    )


def _names(mappings: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _panel_title(name: str) -> str:
    """Title of a panel; the two ends of a range share one."""
    for end in ("_min", "_max"):
        if name.endswith(end):
            return f"{name.removesuffix(end)}, smallest and largest"
    return name


def _figure(
    *, name: str, title: str, caption: str, log: Sequence[LogEntry], panels: Panels
) -> Figure | None:
    panels = {
        label: lines
        for label, lines in panels.items()
        if any(value is not None for line in lines for value in line)
    }
    if not panels:
        return None
    stride = math.ceil(len(log) / MAX_POINTS)
    steps = [entry.step for entry in log][::stride]
    layout: dict[str, Any] = {"showlegend": False, "annotations": []}
    traces = []
    for place, (label, lines) in enumerate(panels.items()):
        _add_axes(layout, place, len(panels), label)
        traces += [_trace(place, label, steps, list(line)[::stride]) for line in lines]
    if steps[-1] - steps[0] <= FEW_STEPS:
        layout["xaxis"]["dtick"] = 1  # there are no half steps
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


def _trace(place: int, label: str, steps: Sequence[int], values: Series) -> dict[str, Any]:
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
    for label, lines in panels.items():
        for line in lines:
            known = [value for value in line if value is not None]
            if known:
                yield f"{one_line(label, 60)} from {number(known[0])} to {number(known[-1])}"
