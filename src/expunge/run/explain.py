"""Pydantic's findings in our words: the dotted path, what came, what is allowed, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import Problem, did_you_mean
from expunge.run.config import RunConfig, keys, section_of
from expunge.run.sections import Section
from expunge.run.yaml_text import describe

# What people write who know another tool, and what to write here.
_ELSEWHERE = {
    "alpha": "Weights of terms are method.forget.weight and method.retain.weight",
    "batch_size": "Batch sizes are training.effective_batch_size and training.micro_batch_size",
    "beta": "Options of losses go into method.forget and method.retain",
    "epochs": "It is called training.num_train_epochs",
    "gradient_accumulation_steps": "It follows from training.effective_batch_size and "
    "training.micro_batch_size",
    "lr": "It is called training.learning_rate",
    "model_name_or_path": "It is called model.path",
    "per_device_train_batch_size": "It is called training.micro_batch_size",
    "bf16": "It is called training.precision",
    "target_model": "It is called model.path",
}

_KINDS = {
    "bool": "true or false",
    "dict": "a mapping of keys to values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping of keys to values",
    "string": "text",
    "tuple": "a list",
}


def explain_problem(item: Mapping[str, Any]) -> Problem:
    """One finding of pydantic as a problem."""
    location: Sequence[str | int] = item["loc"]
    where = ".".join(str(part) for part in location)
    return Problem(where=where, message=_message(item, location, where))


def _message(item: Mapping[str, Any], location: Sequence[str | int], where: str) -> str:
    kind, came, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "missing":
        return f"is required. {_description(where)}".rstrip()
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"came {describe(came)}. {_options(str(came), context['expected'])}"
    limit = _limit(kind, context)
    if limit is not None:
        return f"must be {limit}, came {describe(came)}"
    expected = _KINDS.get(kind.partition("_")[0])
    if expected is not None and kind.endswith("_type"):
        return f"must be {expected}, came {describe(came)}{_hint(expected, came)}"
    return f"{item['msg']}, came {describe(came)}"


def _limit(kind: str, context: Mapping[str, Any]) -> str | None:
    match kind:
        case "greater_than":
            return f"above {context['gt']:g}"
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "less_than":
            return f"below {context['lt']:g}"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "finite_number":
            return "a finite number"
        case "string_too_short":
            return "a text that is not empty"
        case "too_long" | "too_short" if "actual_length" in context:
            wanted = context.get("min_length", context.get("max_length"))
            return f"a list of {wanted} values"
        case "missing_argument" | "tuple_type":
            return "a list"
    return None


def _hint(expected: str, came: Any) -> str:
    if expected == "text" and isinstance(came, int | float):
        return "; put it in quotes"
    if expected == "a whole number" and isinstance(came, float) and came.is_integer():
        return f"; write {int(came)}"
    return ""


def _options(came: str, expected: str) -> str:
    options = [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",")]
    return did_you_mean(came, options)


def _unknown_key(location: Sequence[str | int]) -> str:
    name = str(location[-1])
    section: type[Section] | None = RunConfig
    for part in location[:-1]:
        field = None if section is None else section.model_fields.get(str(part))
        section = None if field is None else section_of(field)
    options = list(section.model_fields) if section is not None else []
    if name in _ELSEWHERE:
        return f"unknown key. {_ELSEWHERE[name]}"
    if difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.6):
        return f"unknown key. {did_you_mean(name, options)}"
    homes = [key.path for key in keys() if key.path.rpartition(".")[2] == name]
    if homes:
        return f"unknown key here. Did you mean {homes[0]}?"
    return f"unknown key. Possible: {', '.join(options)}"


def _description(where: str) -> str:
    return next((key.field.description or "" for key in keys() if key.path == where), "")
