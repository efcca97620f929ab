"""Hyperparameters read off the signatures that hold their defaults, so they are written once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from expunge.core.errors import Problem, did_you_mean

REQUIRED = object()


@dataclass(frozen=True, kw_only=True)
class Option:
    """One hyperparameter.

    Attributes:
        name: Its name.
        annotation: Its type, with limits as `Annotated` metadata.
        default: Its default, `REQUIRED` if it has none.
        doc: Its line in the docstring.
    """

    name: str
    annotation: Any
    default: Any
    doc: str

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        return describe_type(self.annotation)


def options_of(owner: Callable[..., Any] | type) -> dict[str, Option]:
    """Options of a function (its keyword-only arguments) or of a dataclass (its fields)."""
    hints = get_type_hints(owner, include_extras=True)
    docs = argument_docs(owner.__doc__ or "")
    found: dict[str, Any] = {}
    if is_dataclass(owner):
        for item in fields(owner):
            found[item.name] = REQUIRED if item.default is MISSING else item.default
    else:
        for parameter in inspect.signature(owner).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                empty = parameter.default is parameter.empty
                found[parameter.name] = REQUIRED if empty else parameter.default
    return {
        name: Option(name=name, annotation=hints[name], default=default, doc=docs.get(name, ""))
        for name, default in found.items()
    }


def argument_docs(docstring: str) -> dict[str, str]:
    """Text of each entry under `Args:` and `Attributes:` of a Google-style docstring."""
    docs: dict[str, str] = {}
    name = ""
    inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if re.match(r"^(Args|Attributes):$", line):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and (match := re.match(r"^ {4}(\w+): (.*)$", line)):
            name = match[1]
            docs[name] = match[2]
        elif inside and name and line.startswith("        "):
            docs[name] += " " + line.strip()
    return docs


def check_options(
    values: Mapping[str, Any], options: Mapping[str, Option], *, owner: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Convert and check given values.

    Args:
        values: What the user gave.
        options: What exists.
        owner: Who takes the options, for messages.

    Returns:
        The converted values and every problem found, each placed at the option's name.
    """
    converted: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        if name not in options:
            hint = did_you_mean(name, list(options)) if options else "It takes no options"
            problems.append(Problem(where=name, message=f"{owner} has no option {name}. {hint}"))
            continue
        try:
            converted[name] = _convert(value, options[name].annotation)
        except ValidationError:
            message = f"{value!r} is not allowed; {name} must be {options[name].allowed}"
            problems.append(Problem(where=name, message=message))
    return converted, problems


def _convert(value: Any, annotation: Any) -> Any:
    if isinstance(value, bool) and _base(annotation) is not bool:
        value = str(value)  # True is not the number 1 here
    if get_origin(_base(annotation)) is Literal and value not in get_args(_base(annotation)):
        value = str(value)  # a choice that is written like a number, such as scale=1
    adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    return adapter.validate_python(value, strict=_base(annotation) is bool)


def _base(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def describe_type(annotation: Any) -> str:
    """A type in words a user understands: "a number above 0", "one of sum, mean"."""
    base, limits = annotation, []
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        for item in metadata:
            for key, word in words.items():
                if getattr(item, key, None) is not None:
                    limits.append(f"{word} {getattr(item, key)}")
    if get_origin(base) is Literal:
        return "one of " + ", ".join(str(item) for item in get_args(base))
    if get_origin(base) in (Union, UnionType):
        kinds = [kind for kind in get_args(base) if kind is not type(None)]
        return " or ".join(describe_type(kind) for kind in kinds)
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return " ".join([names.get(base, str(base)), " and ".join(limits)]).strip()
