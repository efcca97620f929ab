"""How related facts hang together in the models of a scenario: relations.json as a table.

UIPE (arXiv:2503.04693, section 4): gradients of a fact to forget and of facts that imply it point
in similar directions, so that unlearning moves along both. None of these numbers has a good
direction: they say why related facts are forgotten or come back, not whether that is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from expunge.core.results import Score
from expunge.report.tables import count_text
from expunge.report.text import DASH, number

RELATIONS: Final = "relations.json"

HEADERS: Final = ("Arm", "Measure", "Facts", "Value", "95% interval", "n")

INTRODUCTION: Final = (
    "Gradients of the loss on facts to forget, on facts that imply them (related), and on facts of "
    "the same wording about other people (unrelated), before unlearning; and the update that "
    "unlearning made. n counts facts to forget; the interval is drawn over them. None of these has "
    "a better direction: they tell why related facts are forgotten or come back."
)


@dataclass(frozen=True, kw_only=True)
class RelationKind:
    """One diagnostic.

    Attributes:
        key: Its name in the file.
        label: Its name in the table.
        meaning: Unit, range, and what high and low say, as a clause.
    """

    key: str
    label: str
    meaning: str


KINDS: Final = (
    RelationKind(
        key="gradient_cosine",
        label="Gradient cosine",
        meaning="cosine between the gradient of a fact to forget and those of other facts; -1 to "
        "1, no unit. Higher: a step that forgets the one changes the other as well; 0: it does not",
    ),
    RelationKind(
        key="projection_share",
        label="Share of the update",
        meaning="norm of the update's part along the gradient of a fact, relative to the norm of "
        "the whole update; 0 to 1, no unit. Higher: more of what unlearning did lies along it",
    ),
    RelationKind(
        key="projection_cosine",
        label="Update cosine",
        meaning="cosine between the update and the gradient of a fact; -1 to 1, no unit. Above 0 "
        "unlearning raises the loss of the fact, to first order: it is forgotten along. Below 0 it "
        "lowers it",
    ),
)

_GROUPS: Final = {
    "target": "to forget",
    "related": "related",
    "unrelated": "unrelated",
    "difference": "related minus unrelated",
}


@dataclass(frozen=True, kw_only=True)
class Relations:
    """What relations.json holds, in its order.

    Attributes:
        rows: As many texts per row as there are `HEADERS`, not escaped for any format.
        kinds: The diagnostics among them.
        problem: Why the file could not be read; "" where it could.
    """

    rows: tuple[tuple[str, ...], ...] = ()
    kinds: tuple[RelationKind, ...] = ()
    problem: str = ""


def read_relations(folder: Path) -> Relations:
    """The diagnostics of a scenario; empty where there is no such file.

    Args:
        folder: Folder of the scenario.
    """
    path = folder / RELATIONS
    if not path.is_file():
        return Relations()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Relations(problem=f"{RELATIONS} could not be read")
    if not isinstance(found, Mapping):
        return Relations(problem=f"{RELATIONS} holds no arms")
    lines = list(_lines(found))
    shown = {kind.key for kind, _ in lines}
    return Relations(
        rows=tuple(row for _, row in lines),
        kinds=tuple(kind for kind in KINDS if kind.key in shown),
        problem="" if lines else f"{RELATIONS} holds no values",
    )


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[RelationKind, tuple[str, ...]]]:
    for arm, values in found.items():
        for kind in KINDS:
            groups = values.get(kind.key) if isinstance(values, Mapping) else None
            if not isinstance(groups, Mapping):
                continue
            for group, label in _GROUPS.items():
                if (score := _score(groups.get(group))) is not None:
                    yield kind, (str(arm), kind.label, label, *_cells(score))


def _score(value: Any) -> Score | None:
    try:
        return Score.model_validate(value) if isinstance(value, Mapping) else None
    except ValidationError:
        return None


def _cells(score: Score) -> tuple[str, str, str]:
    """Value, interval and n; the reason stands in place of an interval where there is no value."""
    count = count_text(score).removeprefix("n = ")
    if score.value is None:
        return DASH, score.reason or "no reason was recorded", count
    if score.low is None or score.high is None:
        return number(score.value), DASH, count
    return number(score.value), f"[{number(score.low)}, {number(score.high)}]", count
