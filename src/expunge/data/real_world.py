"""Real-world individuals of Closer Look (arXiv:2410.08109), from a folder of the user's own.

The published data have no licence, so none of them come with the package. The folder holds four
files of JSON lines, each `.json` (as published) or `.jsonl`:

    forget              20 people, 20 rows each: name, question, answer, golden_answer, task_id
    forget_perturbed    the same rows in the same order, with paraphrased_answer, perturbed_answer
    neighbor            20 other people, the retain set: name, question, answer, golden_answer
    neighbor_perturbed  20 further people, for evaluation only, with the perturbed fields

`answer` is what the model itself said before unlearning, `golden_answer` the true answer. Training
reads the first, evaluation compares with the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from expunge.core.errors import InputError, Problems
from expunge.data.problems import FileProblems, kind_of, short
from expunge.data.readers import read_file
from expunge.data.rows import Message, Record, Row, RowSet, row_set

SUFFIXES = (".json", ".jsonl")
NUM_ROWS = 400
"""Rows of every published file."""
NUM_TASKS = 20
"""Successive forget requests: `task_id` counts from 1, one per person."""

_PLAIN = ("name", "question", "answer", "golden_answer")
_PARAPHRASE = "paraphrased_answer"
_WRONG = "perturbed_answer"
_TASK = "task_id"

# Per file: whether it has wrong answers, whether its rows belong to tasks.
_FILES: Mapping[str, tuple[bool, bool]] = {
    "forget": (False, True),
    "forget_perturbed": (True, True),
    "neighbor": (False, False),
    "neighbor_perturbed": (True, False),
}
FILES = tuple(_FILES)

# Groups of different people, by the file that has all of a group.
_GROUPS = ("forget", "neighbor", "neighbor_perturbed")


class TrainingRows(NamedTuple):
    """What is trained on; the answers are the model's own.

    Attributes:
        forget: Rows about the people to be forgotten.
        retain: Rows about the neighbors, to be kept.
    """

    forget: RowSet
    retain: RowSet


class EvaluationRows(NamedTuple):
    """What is measured on; the answers are the true ones, the model's own are `original_answer`.

    Attributes:
        forget: The rows of the forget set, with paraphrased and wrong answers.
        neighbor: Rows about people who are in neither set of the training.
    """

    forget: RowSet
    neighbor: RowSet


def training_rows(folder: str | Path, *, complete: bool = False) -> TrainingRows:
    """Forget and retain set for training, after a check of the whole folder.

    Args:
        folder: The user's folder.
        complete: Also demand the published number of rows.

    Raises:
        InputError: Files are missing or damaged, or do not fit together; all problems in one.
    """
    found = _read_folder(Path(folder).expanduser(), complete=complete)
    return TrainingRows(
        forget=_rows(found["forget"], "forget", _for_training),
        retain=_rows(found["neighbor"], "retain", _for_training),
    )


def evaluation_rows(folder: str | Path, *, complete: bool = False) -> EvaluationRows:
    """Forget and neighbor set for evaluation, after a check of the whole folder.

    Args:
        folder: The user's folder.
        complete: Also demand the published number of rows.

    Raises:
        InputError: Files are missing or damaged, or do not fit together; all problems in one.
    """
    found = _read_folder(Path(folder).expanduser(), complete=complete)
    return EvaluationRows(
        forget=_rows(found["forget_perturbed"], "forget", _for_evaluation),
        neighbor=_rows(found["neighbor_perturbed"], "neighbor", _for_evaluation),
    )


def tasks(rows: RowSet) -> dict[int, RowSet]:
    """The rows of each forget request, by `task_id` in ascending order; rows keep their order.

    Args:
        rows: Forget rows for training or for evaluation.

    Raises:
        InputError: A row has no `task_id`.
    """
    groups: dict[int, list[Row]] = {}
    for row in rows:
        number = row.fields.get(_TASK)
        if not _is_task(number):
            raise InputError(
                f"{rows.origin} row {row.index}: {_TASK} holds {kind_of(number)}; forget requests "
                f"need a whole number from 1 in every row"
            )
        groups.setdefault(number, []).append(row)
    return {
        number: row_set(found, name=rows.name, origin=f"{rows.origin}, task {number}")
        for number, found in sorted(groups.items())
    }


class _File(NamedTuple):
    path: Path
    records: Sequence[Record]


def _read_folder(folder: Path, *, complete: bool) -> dict[str, _File]:
    """All four files, checked one by one and against each other."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. It must hold {_listed()}")
    problems = Problems()
    found: dict[str, _File] = {}
    for name in FILES:
        try:
            file = _read(folder, name, complete=complete)
        except InputError as error:
            problems.extend(error)
        else:
            found[name] = file
    _check_same_rows(found, problems)
    _check_people(found, problems)
    problems.raise_if_any(str(folder))
    return found


def _listed() -> str:
    names = [name + SUFFIXES[0] for name in FILES]
    return f"{', '.join(names[:-1])} and {names[-1]} (or {SUFFIXES[1]}), JSON lines each"


def _read(folder: Path, name: str, *, complete: bool) -> _File:
    """A file whose rows have all their fields.

    Raises:
        InputError: It is missing, there twice, damaged, or rows lack fields.
    """
    paths = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if not paths:
        raise InputError(f"{name}{SUFFIXES[0]}: missing. The folder must hold {_listed()}")
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise InputError(f"{both} are both there; remove or rename one")
    (path,) = paths
    records = read_file(path)
    problems = FileProblems(path.name)
    perturbed, tasked = _FILES[name]
    for record in records:
        for field in (*_PLAIN, _PARAPHRASE) if perturbed else _PLAIN:
            _check_text(record, field, problems)
        if perturbed:
            _check_wrong(record, problems)
        if tasked and not _is_task(record.values.get(_TASK)):
            came = kind_of(record.values.get(_TASK))
            problems.add(record.place, f"{_TASK} holds {came}; it must be a whole number from 1")
    if complete and len(records) != NUM_ROWS:
        problems.add("", f"has {len(records)} rows; the published file has {NUM_ROWS}")
    problems.raise_if_any()
    return _File(path, records)


def _check_text(record: Record, field: str, problems: FileProblems) -> None:
    value = record.values.get(field)
    if field not in record.values:
        problems.add(record.place, f"has no {field}")
    elif not isinstance(value, str):
        problems.add(record.place, f"{field} holds {kind_of(value)}; it must be text")
    elif not value.strip():
        problems.add(record.place, f"{field} is empty")


def _check_wrong(record: Record, problems: FileProblems) -> None:
    value = record.values.get(_WRONG)
    texts = value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        problems.add(
            record.place,
            f"{_WRONG} holds {kind_of(value)}; it must be a list of wrong answers, 5 in the "
            "published files",
        )


def _is_task(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_same_rows(found: Mapping[str, _File], problems: Problems) -> None:
    """The two forget files must hold the same rows in the same order."""
    if "forget" not in found or "forget_perturbed" not in found:
        return
    plain, perturbed = found["forget"], found["forget_perturbed"]
    if len(plain.records) != len(perturbed.records):
        problems.add(
            perturbed.path.name,
            f"has {len(perturbed.records)} rows and {plain.path.name} has {len(plain.records)}; "
            "they must be the same rows in the same order",
        )
        return
    notes = FileProblems(perturbed.path.name)
    for ours, theirs in zip(plain.records, perturbed.records, strict=True):
        for field in ("question", "golden_answer", _TASK):
            if ours.values[field] != theirs.values[field]:
                notes.add(
                    theirs.place,
                    f"{field} is {short(theirs.values[field])} where {plain.path.name} "
                    f"{ours.place} has {short(ours.values[field])}; they must be the same rows in "
                    "the same order",
                )
                break
    if notes.count:
        problems.extend(notes.error())


def _check_people(found: Mapping[str, _File], problems: Problems) -> None:
    """Nobody may be in two of the three groups: to forget, to keep, to look at."""
    people = {
        name: {record.values["name"].strip() for record in found[name].records}
        for name in _GROUPS
        if name in found
    }
    names = list(people)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            both = sorted(people[one] & people[other])
            if both:
                shown = ", ".join(both[:3]) + (", ..." if len(both) > 3 else "")
                problems.add(
                    found[other].path.name,
                    f"has {len(both)} people who are in {found[one].path.name} as well: {shown}; "
                    "the groups must have nobody in common",
                )


def _rows(file: _File, name: str, build: Callable[[int, Record], Row]) -> RowSet:
    rows = [build(i, record) for i, record in enumerate(file.records)]
    return row_set(rows, name=name, origin=str(file.path))


def _for_training(index: int, record: Record) -> Row:
    return _row(index, record, answer="answer", renamed={})


def _for_evaluation(index: int, record: Record) -> Row:
    return _row(index, record, answer="golden_answer", renamed={"answer": "original_answer"})


def _row(index: int, record: Record, *, answer: str, renamed: Mapping[str, str]) -> Row:
    fields = {
        renamed.get(name, name): value
        for name, value in record.values.items()
        if name not in ("question", answer)
    }
    return Row(
        index=index,
        messages=(Message(role="user", content=record.values["question"]),),
        answer=record.values[answer],
        fields=fields,
    )
