"""Files with one made-up answer per line: proxies and alternates, written by a model or by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from expunge.core.errors import InputError
from expunge.core.files import atomic_write_text
from expunge.data.problems import FileProblems, kind_of
from expunge.data.readers import read_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def write_answer_lines(
    path: Path | str, lines: Iterable[DataclassInstance], order: Sequence[str]
) -> None:
    """Write JSON lines with their keys in `order`, atomically."""
    records = [asdict(line) for line in lines]
    ordered = [{key: record[key] for key in order} for record in records]
    atomic_write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ordered))


def read_answer_lines(
    path: Path | str, build: Callable[[Mapping[str, Any]], T], *, answer: str, missing: str
) -> list[T]:
    """The lines of a file; empty answers are kept as they are.

    Args:
        path: The file.
        build: Makes a line of the values of one record.
        answer: Key of the made-up answer; `question` is required too, the true `answer` is not.
        missing: What to say when there is no such file.

    Raises:
        InputError: No such file, not UTF-8, not JSON, or without one of the required keys.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. {missing}")
    problems = FileProblems(str(path))
    lines = []
    for record in read_file(path) if path.stat().st_size else []:
        found = problems.count
        for name in ("question", answer, "answer"):
            value = record.values.get(name, "" if name == "answer" else None)
            if not isinstance(value, str):
                problems.add(record.place, f"{name} holds {kind_of(value)}; it must be text")
        if problems.count == found:
            lines.append(build(record.values))
    problems.raise_if_any()
    return lines
