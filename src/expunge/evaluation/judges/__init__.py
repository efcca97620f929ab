"""Text judges: models that read what an evaluated model wrote.

A sentence encoder says how close a text is to another, an NLI classifier whether one follows from
the other, a gibberish classifier whether it is clean English, and the base model how fluent it is.
`annotate` adds their verdicts to a probe's table. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.evaluation.judges.annotation import Annotations, JudgePanel, annotate
    from expunge.evaluation.judges.fluency import FluencyModel
    from expunge.evaluation.judges.locate import judge_identity, judge_problem
    from expunge.evaluation.judges.settings import (
        DEFAULT_ENCODER,
        DEFAULT_NLI,
        JUDGED_COLUMNS,
        PUBLISHED_GIBBERISH,
        JudgeKind,
        Judges,
    )

_HOME = {
    "DEFAULT_ENCODER": "settings",
    "DEFAULT_NLI": "settings",
    "JUDGED_COLUMNS": "settings",
    "PUBLISHED_GIBBERISH": "settings",
    "Annotations": "annotation",
    "FluencyModel": "fluency",
    "JudgeKind": "settings",
    "JudgePanel": "annotation",
    "Judges": "settings",
    "annotate": "annotation",
    "judge_identity": "locate",
    "judge_problem": "locate",
}

__all__ = [
    "DEFAULT_ENCODER",
    "DEFAULT_NLI",
    "JUDGED_COLUMNS",
    "PUBLISHED_GIBBERISH",
    "Annotations",
    "FluencyModel",
    "JudgeKind",
    "JudgePanel",
    "Judges",
    "annotate",
    "judge_identity",
    "judge_problem",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
