"""Rows: a conversation and the answer that carries the labels, whatever file they came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args, overload

from expunge.core.errors import InputError
from expunge.core.files import jsonable
from expunge.core.fingerprint import fingerprint_chunks
from expunge.data.problems import FileProblems, kind_of, short

Role = Literal["system", "user", "assistant"]
_ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example of a forget, retain or evaluation set.

    Attributes:
        index: Position in its `RowSet`, from 0.
        messages: Everything before the answer; empty for plain text.
        answer: What carries the labels; for plain text the whole text.
        fields: The other columns, such as `paraphrased_answer`.
    """

    index: int
    messages: tuple[Message, ...]
    answer: str
    fields: Mapping[str, Any]

    @property
    def question(self) -> str:
        """The last user message; empty for plain text."""
        users = [message.content for message in self.messages if message.role == "user"]
        return users[-1] if users else ""

    @property
    def is_text(self) -> bool:
        """The row is plain text to be continued, not an answer to something."""
        return not self.messages


@dataclass(frozen=True, kw_only=True)
class RowSet(Sequence[Row]):
    """Rows in a fixed order, with where they came from.

    Attributes:
        name: What they are used as: "forget", "retain", ...
        rows: The rows; `rows[i].index == i`.
        origin: The source as a person would write it, slice included.
        fingerprint: Hash of the content, the same for equal rows from any source.
    """

    name: str
    rows: tuple[Row, ...]
    origin: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @overload
    def __getitem__(self, item: int) -> Row: ...
    @overload
    def __getitem__(self, item: slice) -> RowSet: ...
    def __getitem__(self, item: int | slice) -> Row | RowSet:
        if isinstance(item, int):
            return self.rows[item]
        start, stop, step = item.indices(len(self))
        tail = f":{step}" if step != 1 else ""
        origin = f"{self.origin}[{start}:{stop}{tail}]"
        return row_set(self.rows[item], name=self.name, origin=origin)

    @property
    def is_text(self) -> bool:
        """Every row is plain text."""
        return all(row.is_text for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The user's names for the columns that are read.

    Question and answer are read where both exist, else `messages` (chat format), else `text`
    (continuation). A name that differs from the default says which of the three is meant.
    """

    question: str = "question"
    answer: str = "answer"
    messages: str = "messages"
    text: str = "text"


class Record:
    """One raw row and its place in the source, such as "line 7"."""

    __slots__ = ("place", "values")

    def __init__(self, place: str, values: Mapping[str, Any]) -> None:
        self.place = place
        self.values = values


def row_set(rows: Iterable[Row], *, name: str, origin: str) -> RowSet:
    """A `RowSet` of `rows`, counted anew from 0."""
    numbered = tuple(row if row.index == i else replace(row, index=i) for i, row in enumerate(rows))
    digest = fingerprint_chunks(_canonical(row) for row in numbered)
    return RowSet(name=name, rows=numbered, origin=origin, fingerprint=digest)


def parse_rows(
    records: Sequence[Record], *, name: str, source: str, columns: Columns | None = None
) -> RowSet:
    """Check raw records and turn them into rows.

    Args:
        records: What a reader found.
        name: Use of the rows, for messages: "forget".
        source: Where they came from, for messages and as the origin.
        columns: The user's column names.

    Raises:
        InputError: No records, missing columns, cells that are no text or are empty; several
            problems come in one error.
    """
    columns = columns or Columns()
    if not records:
        raise InputError(f"{source}: no rows in it, so the {name} set is empty")
    form = _choose_form(records, columns, source)
    problems = FileProblems(source)
    rows: list[Row] = []
    for i, record in enumerate(records):
        messages, answer = _READERS[form.kind](record, form.names, problems)
        fields = {key: value for key, value in record.values.items() if key not in form.names}
        rows.append(Row(index=i, messages=messages, answer=answer, fields=fields))
    problems.raise_if_any()
    return row_set(rows, name=name, origin=source)


def check_overlap(forget: RowSet, retain: RowSet) -> None:
    """Refuse a retain set that contains rows of the forget set.

    Rows are the same when conversation and answer are, apart from surrounding white space; the same
    question with another answer is a different row (TOFU has such a pair).

    Raises:
        InputError: At least one row is in both.
    """
    kept = {_identity(row): row.index for row in reversed(retain.rows)}
    both = [(row, kept[_identity(row)]) for row in forget if _identity(row) in kept]
    if not both:
        return
    first, other = both[0]
    shown = short(first.question or first.answer)
    raise InputError(
        f"{len(both)} of {len(forget)} rows to forget ({forget.origin}) are also among the "
        f"{len(retain)} rows to retain ({retain.origin}): training would teach them again. The "
        f"first is row {first.index} to forget, row {other} to retain: {shown}. Remove them from "
        f"the retain set."
    )


def _canonical(row: Row) -> bytes:
    turns = [[message.role, message.content] for message in row.messages]
    content = jsonable([turns, row.answer, row.fields])
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=str).encode()


def _identity(row: Row) -> tuple[str, ...]:
    turns = [message.content for message in row.messages if message.role != "system"]
    return tuple(part.strip() for part in (*turns, row.answer))


class _Form(NamedTuple):
    """How rows are read, and from which columns."""

    kind: Literal["question_answer", "messages", "text"]
    names: tuple[str, ...]


def _choose_form(records: Sequence[Record], columns: Columns, source: str) -> _Form:
    default = Columns()
    forms = [
        _Form("question_answer", (columns.question, columns.answer)),
        _Form("messages", (columns.messages,)),
        _Form("text", (columns.text,)),
    ]
    usual = {default.question, default.answer, default.messages, default.text}
    # A renamed column says what the user means, even where the usual names exist as well.
    forms.sort(key=lambda form: usual.issuperset(form.names))
    present = {key for record in records for key in record.values}
    for form in forms:
        if present.issuperset(form.names):
            return form
    found = ", ".join(sorted(present)) or "none"
    only = found if len(present) == 1 else ""
    mark = next((m for m in (";", "\t", "|") if m in only), None)
    hint = f" The cells look separated by {mark!r}; a comma is needed." if mark else ""
    raise InputError(
        f"{source}: needs the columns {columns.question} and {columns.answer}, or "
        f"{columns.messages} (chat), or {columns.text} (plain text). Columns found: {found}.{hint} "
        f"Map yours with data.forget.columns (or data.retain.columns), for example "
        f"{{question: prompt, answer: completion}}"
    )


_Parts = tuple[tuple[Message, ...], str]


def _read_question_answer(record: Record, names: tuple[str, ...], problems: FileProblems) -> _Parts:
    question, answer = (_read_cell(record, name, problems) for name in names)
    return (Message(role="user", content=question),), answer


def _read_text(record: Record, names: tuple[str, ...], problems: FileProblems) -> _Parts:
    return (), _read_cell(record, names[0], problems)


def _read_cell(record: Record, name: str, problems: FileProblems) -> str:
    """The text of a cell, or "" after noting what is wrong with it."""
    if name not in record.values:
        found = ", ".join(record.values) or "none"
        problems.add(record.place, f"no column {name} in this row. Columns of the row: {found}")
        return ""
    value = record.values[name]
    if not isinstance(value, str):
        problems.add(record.place, f"column {name} holds {kind_of(value)}; it must be text")
        return ""
    if not value.strip():
        problems.add(record.place, f"column {name} is empty; fill it in or remove the row")
    return value


def _read_messages(record: Record, names: tuple[str, ...], problems: FileProblems) -> _Parts:
    (name,) = names
    value = record.values.get(name)
    if not isinstance(value, list | tuple):
        message = f"column {name} holds {kind_of(value)}; it must be a list of {{role, content}}"
        problems.add(record.place, message)
        return (), ""
    turns: list[Message] = []
    for i, turn in enumerate(value):
        message_or_none = _read_turn(turn)
        if message_or_none is None:
            problems.add(
                record.place,
                f"{name}[{i}] is {short(turn)}; each must be {{role, content}} with a role among "
                f"{', '.join(_ROLES)} and some text",
            )
            return (), ""
        turns.append(message_or_none)
    roles = [turn.role for turn in turns]
    if not roles or roles[-1] != "assistant" or "user" not in roles[:-1]:
        problems.add(
            record.place,
            f"{name} has the roles {', '.join(roles) or 'none'}; it must end with an assistant "
            f"message (the answer) after at least one user message",
        )
        return (), ""
    return tuple(turns[:-1]), turns[-1].content


def _read_turn(turn: Any) -> Message | None:
    if not isinstance(turn, Mapping):
        return None
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES or not isinstance(content, str) or not content.strip():
        return None
    return Message(role=role, content=content)


_READERS: dict[str, Callable[[Record, tuple[str, ...], FileProblems], _Parts]] = {
    "question_answer": _read_question_answer,
    "messages": _read_messages,
    "text": _read_text,
}
