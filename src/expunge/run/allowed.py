"""What a configuration key may hold, in words, read off the JSON schema of its section."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from expunge.run.config import RunConfig, section_of
from expunge.run.sections import Section

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "null": "null",
}
_LIMITS = {
    "minimum": "from {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "to {:g}",
    "exclusiveMaximum": "below {:g}",
}


def allowed(path: str) -> str:
    """Allowed values of the key at a dotted path: "a number above 0, or null"."""
    *sections, name = path.split(".")
    model: type[Section] = RunConfig
    for part in sections:
        inner = section_of(model.model_fields[part])
        assert inner is not None, f"{path} leads through a plain value"
        model = inner
    return _words(_properties(model)[name])


@functools.cache
def _properties(model: type[Section]) -> Mapping[str, Any]:
    schema = model.model_json_schema()
    # A section with a shorthand is either a mapping or a text.
    schema = next((part for part in schema.get("anyOf", ()) if "properties" in part), schema)
    properties: Mapping[str, Any] = schema["properties"]
    return properties


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        items = schema.get("items")
        if items is None:
            return f"[{', '.join(_words(item) for item in schema['prefixItems'])}]"
        return f"a list of: {_words(items)}"
    words = [_TYPES.get(schema.get("type", ""), "a mapping")]
    words += [text.format(schema[key]) for key, text in _LIMITS.items() if key in schema]
    return " ".join(words)
