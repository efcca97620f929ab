"""Figures as plain plotly.js specifications, without colours: the page's style sheet has those.

A trace names its role in `meta.role`; the page maps it to a colour for light, dark and paper. All
text is escaped here, because plotly reads a subset of HTML in every label.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.report.text import visible


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        name: Identifier, unique in the page.
        title: Heading, as plain text.
        alternative: What a reader who cannot see it would be told.
        caption: How to read it, as plain text.
        height: In CSS pixels.
        spec: Data and layout for plotly.js.
    """

    name: str
    title: str
    alternative: str
    caption: str
    height: int
    spec: Mapping[str, Any]


def safe(text: str) -> str:
    """`text` for a plotly label: markup and templates in it mean nothing but themselves."""
    # A zero-width space keeps "%{" from opening a hover template.
    return html.escape(visible(text), quote=False).replace("%{", "%\u200b{")


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis with a title, and whatever else plotly knows of axes."""
    return {"title": {"text": safe(title)}, "automargin": True, "zeroline": False, **options}


def rule(*, x: float | None = None, y: float | None = None, dash: str) -> dict[str, Any]:
    """A thin line through the whole plot: vertical at `x` or horizontal at `y`."""
    line = {"type": "line", "line": {"dash": dash, "width": 1}}
    if x is not None:
        return line | {"yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x}
    return line | {"xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y}
