"""Results as markdown: tables of their own, or what the shape of the data gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

ORIGIN = ("name", "kind", "date", "command", "machine", "versions")
"""What a result says about where it comes from."""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column is text, the others are numbers."""
    marks = ["---", *["---:" for _ in headers[1:]]]
    lines = [headers, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def own_tables(result: Result) -> list[str]:
    """The `tables` of a result: a list of title, headers, rows and perhaps a note."""
    parts = []
    for one in result["tables"]:
        parts.append(f"**{one['title']}**")
        parts.append(table(one["headers"], [[number(cell) for cell in row] for row in one["rows"]]))
        parts += [one["note"]] if one.get("note") else []
    return parts


def plain_tables(result: Result) -> list[str]:
    """Everything that was measured: lists of records as tables, the rest as names and values."""
    return list(_walk((), {name: value for name, value in result.items() if name not in ORIGIN}))


def number(value: Any) -> str:
    """A cell: three figures, a spread as min / median / max."""
    if _is_spread(value):
        low, middle, high = (number(value[key]) for key in ("min", "median", "max"))
        return f"{low} / **{middle}** / {high} (n={value['n']})"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(one) for one in value)
    return str(value)


def _walk(place: tuple[str, ...], value: Mapping[str, Any]) -> Iterator[str]:
    flat = {name: one for name, one in value.items() if _is_cell(one)}
    if flat:
        rows = [[_words(name), number(one)] for name, one in flat.items()]
        yield from _titled(place, table(["what", "value"], rows))
    for name, one in value.items():
        if name in flat:
            continue
        inside = (*place, _words(name))
        if isinstance(one, Mapping):
            yield from _walk(inside, one)
        else:
            yield from _titled(inside, _records(one))


def _titled(place: Sequence[str], drawn: str) -> Iterator[str]:
    if place:
        yield f"**{': '.join(place)}**"
    yield drawn


def _records(records: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for one in records for name in one if _is_cell(one[name])))
    rows = [[number(one.get(name)) for name in names] for one in records]
    return table([_words(name) for name in names], rows)


def _is_cell(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _is_spread(value)
    if isinstance(value, list | tuple):
        return not any(isinstance(one, Mapping | list | tuple) for one in value)
    return True


def _is_spread(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"min", "median", "max", "n"}


def _words(name: str) -> str:
    return name.replace("_", " ")
