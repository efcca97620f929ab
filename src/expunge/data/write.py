"""Rows back into a file that reads as the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.core.files import atomic_write_text, jsonable
from expunge.data.rows import Row, RowSet


def write_rows(path: Path | str, rows: RowSet) -> None:
    """Write rows as JSON lines: question and answer, a conversation, or text, with all fields.

    `load_rows(path)` gives rows with the same fingerprint.

    Args:
        path: The file; replaced at once, its folder is made.
        rows: The rows.
    """
    lines = [json.dumps(jsonable(_plain(row)), ensure_ascii=False) + "\n" for row in rows]
    atomic_write_text(path, "".join(lines))


def _plain(row: Row) -> dict[str, Any]:
    if row.is_text:
        return {"text": row.answer, **row.fields}
    if len(row.messages) == 1 and row.messages[0].role == "user":
        return {"question": row.messages[0].content, "answer": row.answer, **row.fields}
    turns = [{"role": turn.role, "content": turn.content} for turn in row.messages]
    return {"messages": [*turns, {"role": "assistant", "content": row.answer}], **row.fields}
