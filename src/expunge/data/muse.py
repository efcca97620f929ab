"""MUSE: text to forget and what is asked about it, from a folder or the hub (arXiv:2407.06460).

The news and the novels of MUSE may not be copied, so none of it comes with the package. Read are a
folder in the layout below, as the published code or a download of the data set writes it, or the
data set itself: `muse-bench/MUSE-News`, `muse-bench/MUSE-Books`. `scripts/make_muse_standin.py`
makes a folder of the same shape from novels whose copyright has ended.

    raw/      forget, retain1, retain2, holdout     running text
    verbmem/  forget                                rows with prompt and gt
    knowmem/  forget_qa, forget_qa_icl, retain_qa, retain_qa_icl    question and answer
    privleak/ forget, retain, holdout               rows with text, one sample each
    scal/     forget_1 .. forget_4                  running text, each contains the one before
    sust/     forget_1 .. forget_4                  running text, no two have anything in common
    train/    forget, retain, retain1, retain2, full    running text the target model has seen

Parts may be missing; what depends on them is then absent.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from expunge.core.errors import InputError, Problems, did_you_mean
from expunge.data.readers import data_files, read_file, read_text
from expunge.data.rows import Columns, Record, Row, RowSet, parse_rows, row_set

_log = logging.getLogger(__name__)

FOLDS = ("forget_1", "forget_2", "forget_3", "forget_4")


class _Kind(NamedTuple):
    """What the rows of a file hold: their columns, and whether a text file will do."""

    columns: tuple[str, ...]
    running: bool = False

    def __str__(self) -> str:
        rows = f"rows with {' and '.join(self.columns)} (.jsonl, .json, .parquet)"
        return f"plain text (.txt) or {rows}" if self.running else rows


_TEXT = _Kind(("text",), running=True)
_SAMPLES = _Kind(("text",))
_VERBATIM = _Kind(("prompt", "gt"))
_QUESTIONS = _Kind(("question", "answer"))


class _Part(NamedTuple):
    """A folder of the layout: names of its files, what they hold, which it cannot do without."""

    names: tuple[str, ...]
    kind: _Kind
    needs: tuple[str, ...]


_KNOWMEM = ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl")
_LAYOUT: Mapping[str, _Part] = {
    "raw": _Part(("forget", "retain1", "retain2", "holdout"), _TEXT, ("forget",)),
    "verbmem": _Part(("forget",), _VERBATIM, ("forget",)),
    "knowmem": _Part(_KNOWMEM, _QUESTIONS, ("forget_qa", "forget_qa_icl")),
    "privleak": _Part(("forget", "retain", "holdout"), _SAMPLES, ("forget", "holdout")),
    "scal": _Part(FOLDS, _TEXT, FOLDS[:1]),
    "sust": _Part(FOLDS, _TEXT, FOLDS[:1]),
    "train": _Part(("forget", "retain", "retain1", "retain2", "full"), _TEXT, ()),
}
PARTS = tuple(_LAYOUT)
"""Parts of the benchmark: folders of a copy, configurations on the hub."""

# Names in older revisions and in the repository of the code.
_ALIASES = {
    ("knowmem", "retain2_qa"): "retain_qa",
    ("knowmem", "retain2_qa_icl"): "retain_qa_icl",
    ("privleak", "retain2"): "retain",
}
# A download of the hub's files has such names.
_SHARD = re.compile(r"^(?P<name>.+)-\d{5}-of-\d{5}$")
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
# The published code writes raw texts twice, as rows and joined by blank lines; rows say more.
_PREFERRED = (".jsonl", ".parquet", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True)
class MuseCorpus:
    """What a copy of MUSE holds.

    Attributes:
        source: Folder or hub name, as given.
        sets: Rows by part and name: "raw/forget", "verbmem/forget", "knowmem/forget_qa". Running
            text and samples are plain-text rows; the question of a verbmem row is its prompt.
    """

    source: str
    sets: Mapping[str, RowSet]

    def find(self, key: str) -> RowSet | None:
        """The rows of a key; None if the copy has none."""
        return self.sets.get(key)

    def need(self, key: str) -> RowSet:
        """The rows of a key.

        Raises:
            InputError: The copy has none; the message says what the file must hold.
        """
        found = self.find(key)
        if found is None:
            part, _, name = key.partition("/")
            raise InputError(f"{_place(self.source, part, name)}: missing; {_wanted(part, name)}")
        return found

    def folds(self, part: Literal["scal", "sust"]) -> tuple[RowSet, ...]:
        """Forget sets of a part in their order, each named "forget"."""
        keys = (f"{part}/{name}" for name in FOLDS)
        return tuple(replace(self.sets[key], name="forget") for key in keys if key in self.sets)


def load_muse(source: str | Path, *, parts: Sequence[str] = PARTS) -> MuseCorpus:
    """A copy of MUSE, checked.

    Args:
        source: A folder in the layout of this module, or a name on the hub,
            `muse-bench/MUSE-News` or `muse-bench/MUSE-Books`.
        parts: What to read, see `PARTS`.

    Raises:
        InputError: Nothing is there, or files are missing or broken: one error with every problem,
            each naming its file and what it must hold.
    """
    unknown = [part for part in parts if part not in _LAYOUT]
    if unknown:
        raise InputError(f"MUSE has no part {unknown[0]!r}. {did_you_mean(unknown[0], PARTS)}")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _read_folder(folder, parts, str(source))
    if isinstance(source, str) and _HUB_NAME.match(source) and not folder.parent.is_dir():
        return _read_hub(source, parts)
    raise InputError(
        f"{source}: no such folder. Give a folder with the parts of MUSE "
        f"({', '.join(f'{part}/' for part in parts)}), or muse-bench/MUSE-News or "
        f"muse-bench/MUSE-Books, which need network"
    )


def scalability_sets(source: str | Path) -> tuple[RowSet, ...]:
    """Growing forget sets for criterion C5, each containing the one before; the first is standard.

    Args:
        source: As for `load_muse`.

    Raises:
        InputError: The copy has no such sets, or broken ones.
    """
    folds = _folds(source, "scal")
    for i, (smaller, larger) in enumerate(itertools.pairwise(folds), start=1):
        if not _contains(larger, smaller):
            _log.warning("%s does not contain all of forget_%d", larger.origin, i)
    return folds


def sustainability_sets(source: str | Path) -> tuple[RowSet, ...]:
    """Forget sets for criterion C6, unlearned one after the other; no two share a text.

    Args:
        source: As for `load_muse`.

    Raises:
        InputError: The copy has no such sets, or broken ones.
    """
    folds = _folds(source, "sust")
    seen: dict[str, RowSet] = {}
    for fold in folds:
        again = [row for row in fold if seen.setdefault(row.answer.strip(), fold) is not fold]
        if again:
            other = seen[again[0].answer.strip()].origin
            _log.warning("%d texts of %s are also in %s", len(again), fold.origin, other)
    return folds


def knowmem_prompt(examples: Iterable[Row], question: str) -> str:
    """The prompt of a question after its examples, ending in "Answer: ", the space included."""
    shown = "".join(f"Question: {row.question}\nAnswer: {row.answer}\n\n" for row in examples)
    return f"{shown}Question: {question}\nAnswer: "


def _folds(source: str | Path, part: Literal["scal", "sust"]) -> tuple[RowSet, ...]:
    corpus = load_muse(source, parts=(part,))
    corpus.need(f"{part}/{FOLDS[0]}")
    return corpus.folds(part)


def _contains(larger: RowSet, smaller: RowSet) -> bool:
    texts = {row.answer.strip() for row in larger}
    rest = [row.answer.strip() for row in smaller if row.answer.strip() not in texts]
    whole = "\n\n".join(row.answer for row in larger) if rest else ""
    return all(text in whole for text in rest)


def _read_folder(folder: Path, parts: Sequence[str], source: str) -> MuseCorpus:
    problems = Problems()
    sets: dict[str, RowSet] = {}
    there = [part for part in parts if (folder / part).is_dir()]
    if not there:
        raise InputError(_nothing(folder, parts))
    for part in there:
        found = _files(folder / part, part)
        for name, paths in found.items():
            try:
                sets[f"{part}/{name}"] = _read_set(part, name, paths)
            except InputError as error:
                problems.extend(error)
        for name in _gaps(part, found):
            wanted = _wanted(part, name) + _beside(folder / part)
            problems.add(_place(str(folder), part, name), f"missing; {wanted}")
    problems.raise_if_any(str(folder))
    return MuseCorpus(source=source, sets=sets)


def _files(folder: Path, part: str) -> dict[str, list[Path]]:
    """Files of a part by name; of several forms of one, the one that says most."""
    forms: dict[str, dict[str, list[Path]]] = {}
    for path in data_files(folder):
        shard = _SHARD.match(path.stem)
        stem = shard["name"] if shard else path.stem
        name = _ALIASES.get((part, stem), stem)
        if name in _LAYOUT[part].names:
            forms.setdefault(name, {}).setdefault(path.suffix.lower(), []).append(path)
    return {
        name: next(found[suffix] for suffix in _PREFERRED if suffix in found)
        for name in _LAYOUT[part].names
        if (found := forms.get(name))
    }


def _gaps(part: str, found: Iterable[str]) -> list[str]:
    """Names that a part must have, seeing what it has."""
    have = set(found)
    names = _LAYOUT[part].names
    needs = set(_LAYOUT[part].needs)
    if part == "knowmem" and have:
        # Questions and their examples come together; either side may be missing.
        sides = {name.partition("_")[0] for name in have}
        needs = {name for name in names if name.partition("_")[0] in sides}
    if names == FOLDS:
        needs |= set(names[: max((names.index(name) for name in have), default=0)])
    return [name for name in names if name in needs - have]


def _read_set(part: str, name: str, paths: Sequence[Path]) -> RowSet:
    kind = _LAYOUT[part].kind
    if paths[0].suffix.lower() == ".txt" and not kind.running:
        raise InputError(f"{paths[0]}: is running text; {_wanted(part, name)}")
    sets = [
        _parse(_records(path, kind), kind, name=f"{part}/{name}", origin=str(path))
        for path in paths
    ]
    if len(sets) == 1:
        return sets[0]
    rows = [row for shard in sets for row in shard]
    origin = f"{paths[0]} and {len(paths) - 1} more"
    return row_set(rows, name=f"{part}/{name}", origin=origin)


def _records(path: Path, kind: _Kind) -> list[Record]:
    if path.suffix.lower() == ".json" and kind.columns == ("text",):
        # The published code stores texts as a bare list.
        try:
            values = json.loads(read_text(path))
        except json.JSONDecodeError:
            return read_file(path)  # JSON lines, or an error that says where
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return [Record(f"row {i}", {"text": text}) for i, text in enumerate(values, start=1)]
    return read_file(path)


def _parse(records: Sequence[Record], kind: _Kind, *, name: str, origin: str) -> RowSet:
    present = {key for record in records for key in record.values}
    wanted = kind.columns
    lacking = [column for column in wanted if column not in present]
    if records and lacking:
        found = ", ".join(sorted(present)) or "none"
        raise InputError(f"{origin}: no column {lacking[0]}; it must hold {kind}. Columns: {found}")
    # Other columns would take part in the choice between questions, conversations and text.
    kept = [
        Record(record.place, {key: value for key, value in record.values.items() if key in wanted})
        for record in records
    ]
    columns = Columns(question="prompt", answer="gt") if kind is _VERBATIM else Columns()
    return parse_rows(kept, name=name, source=origin, columns=columns)


def _read_hub(source: str, parts: Sequence[str]) -> MuseCorpus:
    import datasets

    try:
        known = datasets.get_dataset_config_names(source)
        loaded = {part: datasets.load_dataset(source, part) for part in parts if part in known}
    except Exception as error:  # a hub fails in open-ended ways, none worth a traceback
        raise InputError(_hub_message(source, error)) from error
    problems = Problems()
    sets: dict[str, RowSet] = {}
    for part, splits in loaded.items():
        found = _hub_part(splits, f"{source}/{part}", part, problems)
        sets |= {f"{part}/{name}": rows for name, rows in found.items()}
        for name in _gaps(part, found):
            problems.add(f"{source}/{part}/{name}", f"missing; {_wanted(part, name)}")
    problems.raise_if_any(source)
    if not sets:
        raise InputError(f"{source}: has none of {', '.join(parts)}; is it a copy of MUSE?")
    return MuseCorpus(source=source, sets=sets)


def _hub_part(
    splits: Mapping[str, Iterable[Mapping[str, Any]]], origin: str, part: str, problems: Problems
) -> dict[str, RowSet]:
    """Rows of the splits of a configuration by name; what is wrong with them is noted."""
    kind = _LAYOUT[part].kind
    found = {}
    for split, table in splits.items():
        name = _ALIASES.get((part, split), split)
        if name not in _LAYOUT[part].names:
            continue
        records = [Record(f"row {i}", row) for i, row in enumerate(table, start=1)]
        try:
            found[name] = _parse(records, kind, name=f"{part}/{name}", origin=f"{origin}/{split}")
        except InputError as error:
            problems.extend(error)
    return found


def _hub_message(source: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{source}: no such folder here, and it could not be loaded as a hub data set: {reason}. "
        f"Without network give a folder with the same parts, such as one that "
        f"scripts/make_muse_standin.py makes"
    )


def _place(source: str, part: str, name: str) -> str:
    return f"{source}/{part}/{name}.*"


def _wanted(part: str, name: str) -> str:
    return f"{part}/{name} must hold {_LAYOUT[part].kind}"


def _beside(folder: Path) -> str:
    names = [path.name for path in data_files(folder)][:5]
    return f". {folder.name}/ has {', '.join(names) or 'no data files'}"


def _nothing(folder: Path, parts: Sequence[str]) -> str:
    expected = "; ".join(
        f"{part}/ with {', '.join(_LAYOUT[part].names)}: {_LAYOUT[part].kind}" for part in parts
    )
    if folder.name in _LAYOUT and any((folder.parent / part).is_dir() for part in parts):
        hint = f" Did you mean {folder.parent}?"
    else:
        inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
        nested = [entry for entry in inner if any((entry / part).is_dir() for part in parts)]
        hint = f" Did you mean {nested[0]}?" if nested else ""
    return f"{folder}: holds no part of MUSE.{hint} Expected: {expected}"
