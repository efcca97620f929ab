"""Reading YAML for people: no surprises from YAML 1.1, no duplicate keys, errors with a place."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from expunge.core.errors import InputError, Problem

# YAML 1.1, which PyYAML reads, takes 1e-5 for text, 1:30 for a number, 010 for eight, "no" for
# false and 2025-04-10 for a date object. These are the rules of YAML 1.2 instead.
_RULES: list[tuple[str, str, list[str]]] = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
]


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalar rules above, closed to duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(node.value)


for _tag, _pattern, _first in _RULES:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


def parse_yaml(text: str) -> Any:
    """The value of one YAML document; None for an empty one.

    Raises:
        yaml.YAMLError: It is no valid YAML, or a key is given twice.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: There is no such file, or it is not UTF-8, not YAML or not a mapping.
    """
    source = str(path)
    try:
        value = parse_yaml(_read_text(path))
    except yaml.YAMLError as error:
        raise InputError(Problem(where=source, message=explain_yaml_error(error))) from None
    except RecursionError:
        raise InputError(Problem(where=source, message="is nested too deeply")) from None
    if _is_recursive(value):
        raise InputError(Problem(where=source, message="an alias (*name) stands inside its anchor"))
    if not isinstance(value, dict):
        came = "it is empty" if value is None else f"came {describe(value)}"
        raise InputError(
            Problem(
                where=source,
                message=f"must hold keys and values, but {came}; "
                f"write a complete file with: expunge init",
            )
        )
    return value


def _is_recursive(value: Any, above: tuple[int, ...] = ()) -> bool:
    if not isinstance(value, dict | list):
        return False
    if id(value) in above:
        return True
    inside = value.values() if isinstance(value, dict) else value
    return any(_is_recursive(item, (*above, id(value))) for item in inside)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(Problem(where=str(path), message="there is no such file")) from None
    except IsADirectoryError:
        raise InputError(
            Problem(where=str(path), message="is a folder; give the YAML file of a run")
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            Problem(
                where=f"{path}, line {line}",
                message=f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8",
            )
        ) from None


def explain_yaml_error(error: yaml.YAMLError) -> str:
    """One sentence with line and column, and the line itself with a caret where there is one."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"is no valid YAML: {error}"
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "is no valid YAML"
    if mark is None:
        return problem
    snippet = mark.get_snippet(indent=4)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" + (
        f"\n{snippet}" if snippet else ""
    )


def describe(value: Any) -> str:
    """What came, for an error message: the value as YAML and, where it helps, its kind."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    for kind, name in ((str, "text"), (dict, "a mapping"), (list, "a list")):
        if isinstance(value, kind):
            return f"{text} ({name})"
    return text
