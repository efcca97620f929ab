"""What is wrong with a data file, collected: the first few problems and how many there are."""

from __future__ import annotations

import reprlib
from typing import Any

from expunge.core.errors import InputError, Problem

SHOWN = 5  # more of the same teaches nothing and scrolls the first one away

_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true/false"),
    ((int, float), "a number"),
    (str, "text"),
    (dict, "an object"),
    ((list, tuple), "a list"),
)


class FileProblems:
    """Collects problems of one source and raises them as one `InputError`.

    Args:
        source: The source as the user wrote it; every problem names it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self._shown: list[Problem] = []

    def add(self, place: str, message: str) -> None:
        """Note a problem at `place`, such as "line 7"; only the first few are kept."""
        self.count += 1
        if len(self._shown) < SHOWN:
            where = f"{self.source} {place}".strip()
            self._shown.append(Problem(where=where, message=message))

    def error(self) -> InputError:
        """The error with everything noted so far."""
        problems = list(self._shown)
        if self.count > len(problems):
            rest = f"and {self.count - len(problems)} more problems like these"
            problems.append(Problem(where=self.source, message=rest))
        return InputError(problems)

    def raise_if_any(self) -> None:
        """Raise what was noted.

        Raises:
            InputError: At least one problem was noted.
        """
        if self.count:
            raise self.error()


def kind_of(value: Any) -> str:
    """What came, in a user's words: "a number (1987)", "nothing (null)"."""
    if value is None:
        return "nothing (null)"
    word = next((name for types, name in _KINDS if isinstance(value, types)), type(value).__name__)
    return f"{word} ({short(value)})"


def short(value: Any) -> str:
    """A value cut to the length of a remark."""
    limits = reprlib.Repr()
    limits.maxstring = limits.maxother = 60
    return limits.repr(value)
