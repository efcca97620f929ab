"""Text judges: models that read what an evaluated model wrote.

A sentence encoder says how close a text is to another, an NLI classifier whether one follows from
the other, a gibberish classifier whether it is clean English, and the base model how fluent it is.
`annotate` adds their verdicts to a probe's table. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from expunge.evaluation.judges.annotate import Annotations, JudgePanel, annotate
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
