"""A recipe and how it is written: a comment with the sources, then every section."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Values = Mapping[str, Any]

WIDTH = 98  # of a comment line, without its mark


class Noted(NamedTuple):
    """A value with a comment behind it."""

    value: Any
    note: str


class Inline(dict[str, Any]):
    """A mapping that is written on one line."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One configuration with its comment.

    Attributes:
        name: Path below the folder of the recipes, without suffix.
        summary: First line of the comment.
        notes: Paragraphs below it: sources, open points, how to run it.
        seed: Of everything random.
        model: The section of that name, like all that follow.
    """

    name: str
    summary: str
    notes: tuple[str, ...]
    seed: int
    model: Values
    template: Values
    data: Values
    method: str
    training: Values
    evaluation: Values
    lora: Values | None = None
    finetune: Values | None = None

    def text(self) -> str:
        """The file."""
        assert len(self.summary) <= WIDTH, self.summary
        assert self.summary.endswith("."), self.summary
        lines = [f"# {self.summary}"]
        for note in self.notes:
            lines += ["#", *(f"# {line}" for line in textwrap.wrap(note, WIDTH, **_WHOLE_WORDS))]
        slug = self.name.replace("/", "-").replace("_", "-")
        first = {"name": slug, "output_dir": f"runs/{slug}", "seed": self.seed}
        lines += ["", *_lines(first)]
        for section in ("model", "template", "data", "method", "training", "lora", "finetune"):
            lines += ["", *_lines({section: getattr(self, section)})]
        return "\n".join([*lines, "", *_lines({"evaluation": self.evaluation})]) + "\n"


_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def _lines(values: Values, indent: str = "") -> Iterator[str]:
    for key, given in values.items():
        value, note = given if isinstance(given, Noted) else (given, "")
        behind = f"  # {note}" if note else ""
        if isinstance(value, Mapping) and not isinstance(value, Inline):
            yield f"{indent}{key}:{behind}"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {scalar(value)}{behind}"


def scalar(value: Any) -> str:
    """A value as YAML on one line; small numbers as 1.0e-5."""
    if isinstance(value, Inline):
        return "{" + ", ".join(f"{key}: {scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and 0 < value < 1e-3:
        digits, power = f"{value:e}".split("e")
        digits = digits.rstrip("0")
        return f"{digits}{'0' if digits.endswith('.') else ''}e{int(power)}"
    return "null" if value is None else str(value)
