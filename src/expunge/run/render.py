"""A configuration as complete YAML text, with or without the description of every key."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from expunge.run.config import RunConfig, section_of
from expunge.run.sections import ColumnsConfig, Section
from expunge.run.yaml_text import parse_yaml

_WIDTH = 96


def to_yaml(config: RunConfig, *, comments: bool = False, header: str = "") -> str:
    """The whole configuration as YAML that `resolve` reads back to an equal one.

    Args:
        config: The configuration; every key is written, defaults included.
        comments: Describe every key above it.
        header: Text for the top of the file; becomes a comment.
    """
    top = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return (top + "\n" if top else "") + "\n".join(_section(config, 0, comments)) + "\n"


def _section(section: Section, depth: int, comments: bool) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if comments:
            if depth == 0 and section_of(field) is not None:
                yield ""
            text = field.description or ""
            yield from textwrap.wrap(
                text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if isinstance(value, Section) and not isinstance(value, ColumnsConfig):
            yield f"{indent}{name}:"
            yield from _section(value, depth + 1, comments)
        else:
            yield f"{indent}{name}: {yaml_value(value)}"


def yaml_value(value: Any) -> str:
    """A value on one line, in the form that both YAML 1.1 and 1.2 read the same way."""
    if isinstance(value, Section):
        value = value.model_dump()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_value(k)}: {yaml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    if not isinstance(value, str):
        return _dump(value)
    # In a flow collection, commas and brackets end a plain text; quoting covers both places.
    text = _dump([value])[1:-1] if value.isprintable() else _quoted(value)
    return text if parse_yaml(text) == value else _quoted(value)


def _dump(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")


def _quoted(value: str) -> str:
    return _dump_quoted(value).rstrip("\n")


def _dump_quoted(value: str) -> str:
    return yaml.safe_dump(value, default_style='"', width=10**9)
