"""The method section of a configuration as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.errors import InputError, Problem
from expunge.run.sections import MethodConfig

if TYPE_CHECKING:
    from expunge.methods import Method

_PARTS = ("forget", "retain", "wrapper", "post")


def method_of(config: MethodConfig) -> Method:
    """The method that a section describes: its notation with the options of its mappings.

    Raises:
        InputError: The notation does not parse, names something unknown, or an option is not
            allowed; every problem is placed at its key, such as method.forget.beta.
    """
    from expunge.methods import parse

    options = {part: getattr(config, part) for part in _PARTS}
    try:
        return parse(config.name, **options)
    except InputError as error:
        problems = [
            Problem(where=_place(problem.where, config), message=problem.message)
            for problem in error.problems
        ]
        raise InputError(problems) from None


def _place(where: str, config: MethodConfig) -> str:
    """The key at fault: a part, an option that stands in one of the parts, or the notation."""
    if where in _PARTS:
        return f"method.{where}"
    part = next((part for part in _PARTS if where in getattr(config, part)), None)
    return f"method.{part}.{where}" if part else "method.name"
