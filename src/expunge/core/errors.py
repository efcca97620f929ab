"""Errors that finish the thought: what came, what is allowed, what to do, all problems at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


class ExpungeError(Exception):
    """A failure with a message for the user. The command line exits with 1 on it."""

    exit_code = 1


class RunError(ExpungeError):
    """A run failed for a reason outside the input: no space left, a loss that diverged."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with the input.

    Attributes:
        where: The key, file or position at fault, as the user wrote it.
        message: What came, what is allowed and what to do.
    """

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class InputError(ExpungeError, ValueError):
    """The input is wrong and a person can correct it. The command line exits with 2 on it.

    Args:
        problems: One problem or several; a plain string is a problem without a place.
        source: What was read when they were found, such as a file name.
    """

    exit_code = 2

    def __init__(
        self, problems: str | Problem | Iterable[Problem], *, source: str | None = None
    ) -> None:
        if isinstance(problems, str):
            problems = [Problem(where="", message=problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.source = source
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if self.source is None:
            return "\n".join(lines)
        count = f"{len(lines)} problem" + ("s" if len(lines) != 1 else "")
        width = max((len(p.where) for p in self.problems), default=0)
        listed = [f"  {p.where:<{width}}  {p.message}".rstrip() for p in self.problems]
        return "\n".join([f"{self.source} has {count}:", *listed])


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed. "
            f"Install it with: pip install 'expunge[{extra}]'"
        )


class Problems:
    """Collects problems so that all of them are shown in one go."""

    def __init__(self) -> None:
        self._items: list[Problem] = []

    def add(self, where: str, message: str) -> None:
        """Note one problem."""
        self._items.append(Problem(where=where, message=message))

    def extend(self, error: InputError, *, where: str = "") -> None:
        """Note every problem of an error caught elsewhere, prefixing its place with `where`."""
        for problem in error.problems:
            place = ".".join(part for part in (where, problem.where) if part)
            self.add(place, problem.message)

    def __bool__(self) -> bool:
        return bool(self._items)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._items)

    def raise_if_any(self, source: str | None = None) -> None:
        """Raise `InputError` with everything noted so far, if anything was.

        Raises:
            InputError: At least one problem was noted.
        """
        if self._items:
            raise InputError(self._items, source=source)


def did_you_mean(word: str, options: Sequence[str]) -> str:
    """A suggestion and the list of options, ready to end an error message."""
    folded = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    guess = f"Did you mean {folded[close[0]]}? " if close else ""
    return f"{guess}Possible: {', '.join(options)}"
