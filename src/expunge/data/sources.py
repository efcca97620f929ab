"""Where rows come from: packaged TOFU, files, folders, `datasets` names, live objects.

>>> len(load_rows("tofu:forget10[0:20]", name="forget"))
20
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.core.errors import InputError, did_you_mean
from expunge.data.problems import kind_of, short
from expunge.data.readers import SUFFIXES, data_files, read_file
from expunge.data.rows import (
    Columns,
    Message,
    Record,
    Row,
    RowSet,
    check_overlap,
    parse_rows,
)
from expunge.data.tofu import TOFU_SPLITS, derive_split, load_tofu

if TYPE_CHECKING:
    import datasets

__all__ = ["Columns", "Message", "Row", "RowSet", "check_overlap", "load_rows"]

_TOFU = "tofu:"
_SLICE = re.compile(r"^(?P<source>.*[^\[\]])\[(?P<start>[^\[\]:]*):(?P<stop>[^\[\]:]*)\]$")
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


def load_rows(
    source: str | Path | Sequence[Mapping[str, Any]] | datasets.Dataset | RowSet,
    *,
    name: str,
    split: str | None = None,
    config: str | None = None,
    columns: Columns | None = None,
    rows: tuple[int, int] | None = None,
) -> RowSet:
    """Rows of a set, checked.

    Args:
        source: `tofu:SPLIT` for the packaged TOFU; a file (JSON lines, JSON, CSV, TSV, Parquet,
            text); a folder of such files, for which `split` or `config` names the file, or one
            that `datasets` can load; the name of a data set on the hub, `owner/name`; or rows as
            dicts, a `datasets.Dataset`, a `RowSet`. Text sources may end in a slice: `[0:20]`.
        name: What the rows are used as ("forget"); appears in messages and in the result.
        split: Split of a hub data set or folder.
        config: Configuration of a hub data set.
        columns: The user's column names.
        rows: Half-open range of rows to keep, counted from 0; an alternative to the slice.

    Raises:
        InputError: The source does not exist, cannot be reached or holds something else; messages
            name file and line, and all problems of a file come in one error.
    """
    if isinstance(source, RowSet):
        whole = replace(source, name=name)
    else:
        text = source
        if isinstance(source, str) and not Path(source).expanduser().exists():
            text, rows = _take_slice(source, rows)
        found = _find(text, split=split, config=config)
        whole = parse_rows(found.records, name=name, source=found.origin, columns=columns)
    return whole if rows is None else _cut(whole, rows)


class _Found(NamedTuple):
    records: Sequence[Record]
    origin: str


def _take_slice(source: str, rows: tuple[int, int] | None) -> tuple[str, tuple[int, int] | None]:
    """Split "tofu:forget10[0:20]" into the source and its range; stop -1 stands for the end."""
    match = _SLICE.match(source)
    if match is None:
        if source.endswith("]"):
            raise InputError(
                f"{source}: not a slice; write SOURCE[start:stop], such as x.csv[0:20]"
            )
        return source, rows
    if rows is not None:
        raise InputError(
            f"{source}: the source has a slice and rows={list(rows)} is given; use one"
        )
    start, stop = (match[part].strip() for part in ("start", "stop"))
    if not all(part == "" or part.isdecimal() for part in (start, stop)):
        raise InputError(
            f"{source}: start and stop of a slice must be whole numbers from 0, or left out; came "
            f"{start!r} and {stop!r}"
        )
    return match["source"], (int(start or 0), int(stop) if stop else -1)


def _cut(whole: RowSet, rows: tuple[int, int]) -> RowSet:
    start, stop = rows[0], len(whole) if rows[1] == -1 else rows[1]
    if not 0 <= start < stop <= len(whole):
        raise InputError(
            f"{whole.origin}: the slice [{start}:{stop}] takes no rows or more than there are; the "
            f"source has {len(whole)} rows, so 0 <= start < stop <= {len(whole)}"
        )
    return whole[start:stop]


def _find(source: Any, *, split: str | None, config: str | None) -> _Found:
    if isinstance(source, str) and source.startswith(_TOFU):
        values = load_tofu(source.removeprefix(_TOFU))
        return _Found(_numbered(values, "row {}", first=1), source)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir():
            return _find_in_folder(path, split=split, config=config)
        if path.exists():
            return _Found(read_file(path), str(path))
        return _find_elsewhere(source, path, split=split, config=config)
    return _find_live(source, split=split)


def _numbered(values: Sequence[Mapping[str, Any]], place: str, *, first: int) -> list[Record]:
    return [Record(place.format(i), value) for i, value in enumerate(values, start=first)]


def _find_elsewhere(
    source: str | Path, path: Path, *, split: str | None, config: str | None
) -> _Found:
    """A name that is no path here: a hub data set, or a mistake."""
    parent = path.parent
    looks_local = path.suffix.lower() in SUFFIXES or path.is_absolute() or isinstance(source, Path)
    in_folder = len(path.parts) > 1 and parent.is_dir()
    if isinstance(source, str) and _HUB_NAME.match(source) and not looks_local and not in_folder:
        return _find_on_hub(source, split=split, config=config)
    if str(source) in TOFU_SPLITS:
        raise InputError(f"{source}: no such file or folder. Did you mean tofu:{source}?")
    if not parent.is_dir():
        raise InputError(f"{source}: no such file, and there is no folder {parent} either")
    names = sorted(entry.name for entry in parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    readable = [entry.name for entry in data_files(parent)][:5]
    if close:
        hint = f"Did you mean {' or '.join(str(parent / entry) for entry in close)}?"
    elif readable:
        hint = f"Data files in {parent}: {', '.join(readable)}."
    else:
        hint = f"There are no data files in {parent.resolve()}."
    raise InputError(
        f"{source}: no such file or folder. {hint} Other sources are tofu:SPLIT and hub data sets "
        f"(owner/name)"
    )


def _find_in_folder(folder: Path, *, split: str | None, config: str | None) -> _Found:
    if any((folder / marker).exists() for marker in ("state.json", "dataset_dict.json")):
        return _find_saved(folder, split=split)
    stored = {path.stem: path for path in data_files(folder)}
    if not stored:
        return _find_on_hub(str(folder), split=split, config=config)
    wanted = next((word for word in (config, split) if word is not None), None)
    if wanted is None and len(stored) == 1:
        (wanted,) = stored
    if wanted is None:
        raise InputError(
            f"{folder}: has several data files; say which with split: {', '.join(stored)}"
        )
    if wanted in stored:
        path = stored[wanted]
        return _Found(read_file(path), str(path))
    full = read_file(stored["full"]) if "full" in stored else []
    part = derive_split(full, wanted)
    if part is None:
        raise InputError(
            f"{folder}: has no data file called {wanted}. {did_you_mean(wanted, list(stored))}"
        )
    return _Found(part, f"{folder}/{wanted}")


def _find_saved(folder: Path, *, split: str | None) -> _Found:
    import datasets

    return _from_dataset(datasets.load_from_disk(str(folder)), str(folder), split=split)


def _find_on_hub(source: str, *, split: str | None, config: str | None) -> _Found:
    """A data set by name, or a folder in a layout that only `datasets` knows."""
    import datasets

    try:
        loaded = datasets.load_dataset(source, config, split=split)
    except Exception as error:  # a hub fails in open-ended ways, none worth a traceback
        raise InputError(_hub_message(source, config, split, error)) from error
    named = "/".join(part for part in (source, config, split) if part)
    return _from_dataset(loaded, named, split=split)


def _hub_message(source: str, config: str | None, split: str | None, error: Exception) -> str:
    asked = ", ".join(f"{k} {v}" for k, v in (("config", config), ("split", split)) if v)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = ""
    if source.lower().endswith("/tofu"):
        hint = f" TOFU also comes with the package: tofu:{config or 'forget10'}"
    elif isinstance(error, OSError):
        hint = " Without network, give a local file or folder, or a packaged set (tofu:SPLIT)"
    return (
        f"{source}{f' ({asked})' if asked else ''}: no such file or folder here, and it could not "
        f"be loaded as a hub data set: {reason}.{hint}"
    )


def _find_live(source: Any, *, split: str | None) -> _Found:
    module = sys.modules.get("datasets")  # a live Dataset exists only if it has been imported
    if module is not None and isinstance(source, module.Dataset | module.DatasetDict):
        return _from_dataset(source, "the given Dataset", split=split)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Sequence):
        raise InputError(
            f"cannot read rows from {kind_of(source)}; give a path, tofu:SPLIT, owner/name, a list "
            f"of dicts, or a datasets.Dataset (a streaming one must be collected first)"
        )
    for i, value in enumerate(source):
        if not isinstance(value, Mapping):
            raise InputError(
                f"row [{i}] of the given list is {kind_of(value)}; each must be a dict such as "
                f'{{"question": ..., "answer": ...}}'
            )
    return _Found(_numbered(source, "[{}]", first=0), "the given rows")


def _from_dataset(loaded: Any, origin: str, *, split: str | None) -> _Found:
    if hasattr(loaded, "keys"):  # a DatasetDict: one table for each split
        names = list(loaded)
        if split is None and len(names) == 1:
            (split,) = names
        if split not in names:
            came = "no split is given" if split is None else f"there is no split {short(split)}"
            raise InputError(f"{origin}: {came}; possible: {', '.join(names)}")
        loaded = loaded[split]
    return _Found(_numbered(list(loaded), "row {}", first=1), origin)
