"""What a method measured to steer itself: an automatic alpha, the checks of a stop rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.report.figure import Figure, axis, rule
from expunge.report.model import ReportData
from expunge.report.text import count, number


def alpha_figure(data: ReportData) -> Figure | None:
    """Utility over the extrapolation factors that were measured, with budget and choice."""
    found = _diagnostics(data).get("alpha_search")
    if not isinstance(found, Mapping) or not isinstance(found.get("curve"), list):
        return None
    points = [(float(p["alpha"]), float(p["utility"])) for p in found["curve"]]
    chosen, budget = float(found["alpha"]), float(found["budget"])
    measured = "; ".join(f"{share:.3f} at {number(alpha)}" for alpha, share in points)
    return Figure(
        name="alpha",
        title="Automatic alpha",
        alternative=f"Utility {measured}. The budget is {budget:.3f}, the chosen factor "
        f"{number(chosen)}.",
        caption=f"Utility of the extrapolated model on retain rows that did not train, as a share "
        f"of the target model's: higher is better, and the dotted line is the budget. -1 is the "
        f"target model, 0 the unlearned model before extrapolation; {number(chosen)} was chosen "
        f"(vertical line). {count(len(points), 'factor')} measured, no training.",
        height=300,
        spec={
            "data": [_points([p[0] for p in points], [p[1] for p in points], "alpha")],
            "layout": {
                "showlegend": False,
                "xaxis": axis("alpha"),
                "yaxis": axis("utility, share of the target model's"),
                "shapes": [rule(y=budget, dash="dot"), rule(x=chosen, dash="solid")],
            },
        },
    )


def stop_figures(data: ReportData) -> list[Figure]:
    """What a stop rule measured after its steps."""
    checks = _diagnostics(data).get("stop_checks")
    if not isinstance(checks, list) or not checks:
        return []
    figures = []
    for key, title, unit, limit in (
        ("proxy_gap", "Distance to the proxy boundary", "nats per token", 0.0),
        ("utility", "Utility spent", "share of the target model's utility", None),
    ):
        known = [(int(c["step"]), float(c[key])) for c in checks if c.get(key) is not None]
        if known:
            figures.append(_stop_figure(key, title, unit, known, limit, str(checks[-1]["reason"])))
    return figures


def _stop_figure(
    key: str,
    title: str,
    unit: str,
    known: Sequence[tuple[int, float]],
    limit: float | None,
    reason: str,
) -> Figure:
    ends = f"from {number(known[0][1])} to {number(known[-1][1])}"
    about = {
        "proxy_gap": "Mean NLL of the forget answers minus that of their proxies, over the whole "
        "forget set: above 0 the answers are less likely than made-up ones.",
        "utility": "Mean probability per token of retain answers that did not train, as a share of "
        "the target model's: higher is better.",
    }[key]
    return Figure(
        name=f"stop-{key}",
        title=title,
        alternative=f"{title} at {count(len(known), 'check')}, {ends}.",
        caption=f"{about} {_sentence(reason)}",
        height=260,
        spec={
            "data": [_points([k[0] for k in known], [k[1] for k in known], "step")],
            "layout": {
                "showlegend": False,
                "xaxis": axis("optimizer step"),
                "yaxis": axis(unit),
                "shapes": [] if limit is None else [rule(y=limit, dash="dot")],
            },
        },
    )


def _sentence(reason: str) -> str:
    return f"Training stopped: {reason}." if reason else "Training was not stopped early."


def _points(x: Sequence[float], y: Sequence[float], label: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": label,
        "mode": "lines+markers",
        "x": list(x),
        "y": list(y),
        "line": {"width": 1.5},
        "hovertemplate": f"{label} %{{x:.4g}}: %{{y:.4f}}<extra></extra>",
        "meta": {"role": "unlearned"},
    }


def _diagnostics(data: ReportData) -> Mapping[str, Any]:
    return {} if data.manifest is None else data.manifest.diagnostics
