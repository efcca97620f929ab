"""The papers' own notation: `EGUP(NPO+GD, k=1, mu=0.001)` read into a tree and written back.

method  := wrapped | sum
wrapped := NAME "(" method ("," option)* ")"
sum     := part ("+" part)?
part    := NAME ("(" option ("," option)* ")")?
option  := NAME "=" value
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from expunge.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Node:
    """A name with options, around an inner method or next to a second part.

    Attributes:
        name: Name as written.
        at: Column of the name in the text, from 0.
        options: Options as written, converted to bool, int, float or str.
        option_at: Column of each option's name.
        inner: What a wrapper wraps.
        plus: What stands after a `+`.
    """

    name: str
    at: int
    options: Mapping[str, Any] = field(default_factory=dict)
    option_at: Mapping[str, int] = field(default_factory=dict)
    inner: Node | None = None
    plus: Node | None = None


def notation_error(text: str, at: int, message: str) -> InputError:
    """An error that points at column `at` of the notation."""
    return InputError(f"{message}\n  {text}\n  {' ' * at}^")


def read_notation(text: str) -> Node:
    """Parse method notation.

    Raises:
        InputError: The text does not follow the grammar; the message points at the character.
    """
    if not text.strip():
        raise notation_error(text, 0, "the method is empty. Write for example NPO+GD")
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        raise notation_error(self.text, self.at if at is None else at, message)

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self) -> str:
        self.skip()
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self, mark: str, expected: str) -> None:
        if self.peek() != mark:
            came = f"{self.peek()!r}" if self.peek() else "the end"
            self.fail(f"expected {expected}, found {came}")
        self.at += 1

    def name(self, expected: str) -> tuple[str, int]:
        self.skip()
        match = re.compile(r"[A-Za-z_][\w/]*(?:-[A-Za-z][\w/]*)*").match(self.text, self.at)
        if match is None:
            came = f"{self.peek()!r}" if self.peek() else "the end"
            self.fail(f"expected {expected}, found {came}")
        start, self.at = self.at, match.end()
        return match[0], start

    def read(self) -> Node:
        node = self.method()
        if self.peek():
            self.fail(f"expected the end, found {self.peek()!r}")
        return node

    def method(self) -> Node:
        node = self.part()
        if self.peek() != "+":
            return node
        if node.inner is not None:
            self.fail(f"{node.name}(...) wraps a whole method; put the sum inside its brackets")
        self.at += 1
        plus = self.part()
        if plus.inner is not None:
            self.fail(f"{plus.name}(...) cannot stand after a +", plus.at)
        if self.peek() == "+":
            self.fail("a method has one forget loss and at most one retain term")
        return Node(
            name=node.name, at=node.at, options=node.options, option_at=node.option_at, plus=plus
        )

    def part(self) -> Node:
        name, at = self.name("the name of a method")
        if self.peek() != "(":
            return Node(name=name, at=at)
        self.at += 1
        inner = None
        options: dict[str, Any] = {}
        places: dict[str, int] = {}
        if self.peek() != ")":
            if not self.option_follows():
                inner = self.method()
            else:
                self.option(options, places)
            while self.peek() == ",":
                self.at += 1
                self.option(options, places)
        self.take(")", "a closing bracket or a comma")
        return Node(name=name, at=at, options=options, option_at=places, inner=inner)

    def option_follows(self) -> bool:
        self.skip()
        return re.compile(r"[A-Za-z_]\w*\s*=").match(self.text, self.at) is not None

    def option(self, options: dict[str, Any], places: dict[str, int]) -> None:
        name, at = self.name("an option such as k=1")
        self.take("=", f"= after the option {name}")
        if name in options:
            self.fail(f"option {name} is given twice", at)
        self.skip()
        match = re.compile(r"[^\s,()=]+").match(self.text, self.at)
        if match is None:
            self.fail(f"option {name} has no value")
        self.at = match.end()
        options[name] = read_value(match[0])
        places[name] = at


def read_value(text: str) -> bool | int | float | str:
    """A value as written: true/false, a number, or a word."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def write_value(value: Any) -> str:
    """A value in notation; reading it back gives the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else str(value)


def write_options(options: Mapping[str, Any]) -> str:
    """Options in notation, "k=1.0, mu=0.001"."""
    return ", ".join(f"{name}={write_value(value)}" for name, value in options.items())
