"""Forget quality in words, and what the test behind it can tell at a given n.

A p-value of a test for a difference is no degree of sameness: above the level it says that no
difference was found, and how small a difference would have been found depends on n.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import numpy as np

from expunge.report.model import ModelReport, ReportData
from expunge.report.text import number, probability

SIGNIFICANCE: Final = 0.05


class KnownTest(NamedTuple):
    """A forget quality test that has a result.

    Attributes:
        p_value: Two-sided p-value, 0..1.
        distance: KS distance D to the retain model, 0..1.
        n: Samples of the model.
        m: Samples of the retain model.
        p_text: The p-value, as it is printed.
        text: All of it in one phrase: "p = 0.405, D = 0.200 at n = 40".
    """

    p_value: float
    distance: float
    n: int
    m: int
    p_text: str
    text: str

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
    text = f"p = {p_value}, D = {number(test.statistic)} at {sizes}"
    return KnownTest(test.p_value, test.statistic, test.n, test.m, p_value, text)


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


@functools.cache
def smallest_detectable(n: int, m: int, *, level: float = 0.05) -> float | None:
    """The smallest D that the two-sample test takes for a difference, with a p-value below `level`.

    Any smaller D passes as "no difference found". Found on shifted evenly spaced samples, which for
    n = m walk through every possible value of D: 0.325 for n = m = 40. None when even D = 1 passes.
    """
    from scipy.stats import ks_2samp

    if min(n, m) < 1:
        return None
    x, y = np.arange(n) / n, np.arange(m) / m
    largest = max(n, m)

    def test(step: int) -> tuple[float, float]:
        # Half a step less, so that no two samples tie.
        result = ks_2samp(x, y + (step - 0.5) / largest)
        return float(result.statistic), float(result.pvalue)

    low, high = 0, largest  # step `low` is not detected; `high` is, if any step is
    if test(high)[1] >= level:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if test(middle)[1] < level else (middle, high)
    return test(high)[0]
