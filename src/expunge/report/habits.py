"""How a model writes, whatever it writes: no probability can tell fluent text from gibberish."""

from __future__ import annotations

from typing import NamedTuple

from expunge.report.model import ReportData


class Habits(NamedTuple):
    """How a model writes on one probe.

    Attributes:
        num: Answers looked at.
        words: Mean number of words of an answer.
        distinct: Mean share of different words within a non-empty answer, 0..1; low = repetition.
        empty: Share of empty answers, 0..1.
        unfinished: Share of answers that the length limit cut off, 0..1.
    """

    num: int
    words: float
    distinct: float
    empty: float
    unfinished: float


def generation_habits(data: ReportData, role: str, probe: str = "forget") -> Habits | None:
    """Length, repetition and completeness of a model's answers; None without generations."""
    table = data.table(role, probe)
    if table is None or not table.generations:
        return None
    words = [generation.text.lower().split() for generation in table.generations]
    shares = [len(set(each)) / len(each) for each in words if each]
    num = len(words)
    return Habits(
        num=num,
        words=sum(map(len, words)) / num,
        distinct=sum(shares) / len(shares) if shares else 0.0,
        empty=sum(not each for each in words) / num,
        unfinished=sum(generation.finished is False for generation in table.generations) / num,
    )
