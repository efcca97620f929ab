"""Sources, chat templates, tokenisation, forget and retain streams, collation.

The names below are imported on first use, so that `import expunge.data` loads neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.data.chunks import encode_text
    from expunge.data.collate import Batch
    from expunge.data.encode import Example, encode_answers, encode_rows
    from expunge.data.plan import Pick, StreamPlan
    from expunge.data.rows import Columns, Message, Row, RowSet, check_overlap
    from expunge.data.sources import load_rows
    from expunge.data.streams import Streams
    from expunge.data.templates import Template, chat_template, make_template, plain_template
    from expunge.data.tofu import load_rejections, load_tofu

_HOME = {
    "Batch": "collate",
    "Columns": "rows",
    "Example": "encode",
    "Message": "rows",
    "Pick": "plan",
    "Row": "rows",
    "RowSet": "rows",
    "StreamPlan": "plan",
    "Streams": "streams",
    "Template": "templates",
    "chat_template": "templates",
    "check_overlap": "rows",
    "encode_answers": "encode",
    "encode_rows": "encode",
    "encode_text": "chunks",
    "load_rejections": "tofu",
    "load_rows": "sources",
    "load_tofu": "tofu",
    "make_template": "templates",
    "plain_template": "templates",
}

__all__ = [
    "Batch",
    "Columns",
    "Example",
    "Message",
    "Pick",
    "Row",
    "RowSet",
    "StreamPlan",
    "Streams",
    "Template",
    "chat_template",
    "check_overlap",
    "encode_answers",
    "encode_rows",
    "encode_text",
    "load_rejections",
    "load_rows",
    "load_tofu",
    "make_template",
    "plain_template",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
