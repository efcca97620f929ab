"""From file, overrides and flags to one configuration that knows where each value came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from expunge.core.errors import InputError, Problem
from expunge.run.config import RunConfig, keys
from expunge.run.explain import explain_problem
from expunge.run.sections import Shorthand
from expunge.run.yaml_text import describe, parse_yaml, read_yaml_mapping

Origin = Literal["default", "file", "override", "flag"]
COMMAND_LINE = "the command line"

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SHORTHANDS = {
    key.path: next(iter(key.section.model_fields))
    for key in keys()
    if key.section is not None and issubclass(key.section, Shorthand)
}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A configuration and where its values came from.

    Attributes:
        config: The configuration, complete and valid in itself.
        source: The file, or "the command line" where there was none.
        given: Where each value that was given came from, by dotted path; the rest are defaults.
    """

    config: RunConfig
    source: str
    given: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, path: str) -> Origin:
        """Where the value at `path` came from."""
        return self.given.get(path, "default")

    def values(self) -> Iterator[tuple[str, Any, Origin]]:
        """Every value with its dotted path and origin."""
        for path, value in leaves(self.config.model_dump(mode="json")):
            yield path, value, self.origin(path)


def resolve(
    file: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> Resolved:
    """The configuration from a YAML file, `key=value` overrides and flags; later ones win.

    Args:
        file: YAML file; None: defaults only.
        overrides: Such as "training.learning_rate=1e-5"; values are YAML.
        flags: By dotted path; None values are not given.
        source: What messages call the file; None: its path.

    Raises:
        InputError: With every problem of the configuration at once.
    """
    values = {} if file is None else _expanded(read_yaml_mapping(Path(file)))
    given: dict[str, Origin] = {path: "file" for path, _ in leaves(values)}
    for origin, path, value in _layers(overrides, flags or {}):
        _put(values, path, value)
        given = {old: by for old, by in given.items() if not f"{old}.".startswith(f"{path}.")}
        below = leaves(value, f"{path}.") if isinstance(value, Mapping) else ((path, value),)
        given.update((leaf, origin) for leaf, _ in below)
    source = source or (COMMAND_LINE if file is None else str(file))
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item, given) for item in error.errors(include_url=False)]
        raise InputError(problems, source=source) from None
    return Resolved(config=config, source=source, given=given)


def _layers(
    overrides: Sequence[str], flags: Mapping[str, Any]
) -> Iterator[tuple[Origin, str, Any]]:
    """What to put where, in order.

    A flag for a data set or a method replaces all of it, but overrides of its details still count:
    `--method NPO method.forget.beta=0.2` is NPO with that beta, whatever the file says.
    """
    present = {path: value for path, value in flags.items() if value is not None}
    yield from (("flag", path, {}) for path in present if path in _SHORTHANDS)
    for override in overrides:
        path, value = parse_override(override)
        short = path in _SHORTHANDS and isinstance(value, str)
        yield "override", path, {_SHORTHANDS[path]: value} if short else value
    for path, value in present.items():
        yield "flag", f"{path}.{_SHORTHANDS[path]}" if path in _SHORTHANDS else path, value


def load_config(file: Path | str, *overrides: str) -> RunConfig:
    """The configuration in a YAML file, with `key=value` overrides.

    Raises:
        InputError: With every problem of the configuration at once.
    """
    return resolve(file, overrides=overrides).config


def parse_override(text: str) -> tuple[str, Any]:
    """Dotted path and value of "training.learning_rate=1e-5".

    The value is YAML, so numbers, true, null, [lists] and {mappings} have their type; anything that
    is none of these is text as it stands, without quotes.

    Raises:
        InputError: There is no "=", or what stands before it is no key.
    """
    path, equals, value = text.partition("=")
    if not equals or not _KEY.fullmatch(path):
        raise InputError(f"{text!r} is no override; write key=value, as in training.seed=1")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, RecursionError):
        return path, value
    quoted = value.strip()[:1] in {"'", '"', "[", "{"}
    if not quoted and isinstance(parsed, str | dict | list):
        return path, value
    return path, parsed


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping (or an empty one) with its dotted path."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def _expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which shorthands are written out, so that overrides can reach into them."""
    expanded: dict[str, Any] = _unshared(values)
    for path, key in _SHORTHANDS.items():
        *sections, name = path.split(".")
        holder: Any = expanded
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(holder.get(name), str):
            holder[name] = {key: holder[name]}
    return expanded


def _unshared(value: Any) -> Any:
    # YAML aliases are one object in two places; an override of one must not reach the other.
    if isinstance(value, Mapping):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    holder = values
    for done, section in enumerate(sections, start=1):
        inner = holder.get(section)
        if inner is None:
            inner = holder[section] = {}
        if not isinstance(inner, dict):
            place = ".".join(sections[:done])
            raise InputError(
                Problem(where=path, message=f"{place} is {describe(inner)} and has no keys")
            )
        holder = inner
    holder[name] = value


def _problem(item: Any, given: Mapping[str, Origin]) -> Problem:
    problem = explain_problem(item)
    places = (problem.where, problem.where.rpartition(".")[0])
    if any(given.get(place) in ("override", "flag") for place in places):
        return Problem(where=problem.where, message=f"{problem.message} (from the command line)")
    return problem
