"""Forget quality in words, and what the test behind it can tell at a given n.

A p-value of a test for a difference is no degree of sameness: above the level it says that no
difference was found, and how small a difference would have been found depends on n. What can be
said about sameness stands beside it: an interval of the true distance, and a verdict by a margin.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from expunge.core.results import ForgetQuality
from expunge.metrics.equivalence import smallest_detectable
from expunge.report.model import ModelReport, ReportData
from expunge.report.text import count, number, probability

__all__ = [
    "SIGNIFICANCE",
    "KnownTest",
    "band_text",
    "known_test",
    "quality_lines",
    "smallest_detectable",
    "verdict_text",
    "why_unknown",
]

SIGNIFICANCE: Final = 0.05


class KnownTest(NamedTuple):
    """A forget quality test that has a result.

    Attributes:
        p_value: Two-sided p-value, 0..1.
        distance: KS distance D to the retain model, 0..1.
        n: Samples of the model.
        m: Samples of the retain model.
        p_text: The p-value, as it is printed.
        text: All of it in one phrase: "p = 0.405, D = 0.200 [0.000, 0.500] at n = 40".
        test: The record it is made from.
    """

    p_value: float
    distance: float
    n: int
    m: int
    p_text: str
    text: str
    test: ForgetQuality

    @property
    def tells_apart(self) -> bool:
        """Whether the test finds a difference from the retain model."""
        return self.p_value < SIGNIFICANCE


def known_test(model: ModelReport | None) -> KnownTest | None:
    """The test of a model against the retain model; None where it has no result."""
    test = model.forget_quality if model else None
    if test is None or test.p_value is None or test.statistic is None:
        return None
    sizes = f"n = {test.n}" if test.n == test.m else f"n = {test.n} and {test.m}"
    p_value = probability(test.p_value, test.log10_p)
    span = _span(test.low, test.high)
    text = f"p = {p_value}, D = {number(test.statistic)}{span} at {sizes}"
    return KnownTest(test.p_value, test.statistic, test.n, test.m, p_value, text, test)


def why_unknown(data: ReportData) -> str:
    """Why there is no forget quality of the unlearned model, as a clause."""
    model = data.models.get("unlearned")
    if model is None:
        return "the unlearned model was not evaluated"
    score = model.score("forget_quality")
    reason = (model.forget_quality.reason if model.forget_quality else None) or (
        score.reason if score else None
    )
    return (reason or "it needs the results of a retain model").rstrip(".")


def quality_lines(test: ForgetQuality) -> tuple[str, ...]:
    """Everything a reader must know of a test, a sentence each; its reason where it has no result.

    For a terminal: distance with interval, verdict with margin, other retain models, warning.
    """
    if test.p_value is None or test.statistic is None:
        return (f"Forget quality is absent: {(test.reason or 'no reason').rstrip('.')}.",)
    first = (
        f"Forget quality: p = {probability(test.p_value, test.log10_p)}, "
        f"D = {number(test.statistic)}{_span(test.low, test.high)} at n = {test.n}."
    )
    lines = [first, verdict_text(test), band_text(test)]
    lines += [f"Few questions: {test.warning}"] if test.warning else []
    return tuple(line for line in lines if line)


def verdict_text(test: ForgetQuality) -> str:
    """What is concluded about sameness, with the margin; "" for a test without a verdict."""
    if test.verdict is None or test.margin is None or test.statistic is None:
        return ""
    if test.margin_origin == "retain models":
        return _verdict_by_band(test)
    origin = (
        "given" if test.margin_origin == "given" else "the default; see evaluation.options.margin"
    )
    margin = f"the margin of {number(test.margin)} ({origin})"
    if test.verdict == "inside":
        return (
            f"Inside {margin}: with 95% confidence the true distance to the retain model is at "
            f"most {number(test.upper_bound)}."
        )
    if test.verdict == "outside":
        return (
            f"Outside {margin}: with 95% confidence the true distance to the retain model is at "
            f"least {number(test.low)}."
        )
    return (
        f"Cannot tell at n = {test.n} whether the true distance is within {margin}: it may be up "
        f"to {number(test.upper_bound)}.{_needed(test)}"
    )


def _verdict_by_band(test: ForgetQuality) -> str:
    excess = f"{number(test.excess)}{_span(test.excess_low, test.excess_high)}"
    further = (
        "its median distance to them minus the largest between two of them is "
        f"{excess}, by the same questions"
    )
    if test.verdict == "inside":
        return f"As close to the retain models as they are to each other: {further}."
    if test.verdict == "outside":
        models = len(test.distances) + 1
        return (
            f"Further from the retain models than they are from each other: {further}. Of {models} "
            "retrained models one is always the furthest from the others, so with few of them this "
            "is weak evidence."
        )
    return (
        f"Cannot tell at n = {test.n} whether it is as close to the retain models as they are to "
        f"each other: {further}.{_needed(test)}"
    )


def band_text(test: ForgetQuality) -> str:
    """The distances to several retain models and between them; "" with one."""
    band = test.null_band
    if band is None:
        return ""
    to = ", ".join(number(distance) for distance in test.distances)
    between = number(band.highest)
    if len(band.distances) > 1:
        between = f"{number(band.lowest)} to {between}, median {number(band.median)}"
    return (
        f"D to each of {band.num_models} retain models: {to}; between the retain models, which "
        f"differ by chance alone: {between}."
    )


def _needed(test: ForgetQuality) -> str:
    if test.rows_needed is None:
        return " No number of questions would decide it if the value stays what it is."
    questions = count(test.rows_needed, "question")
    return f" About {questions} would decide it if the value stays what it is."


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None or not np.isfinite([low, high]).all():
        return ""
    # No-break spaces keep a value and its interval on one line.
    return f"\u00a0[{number(low)},\u00a0{number(high)}]"
