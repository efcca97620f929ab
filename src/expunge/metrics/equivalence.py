"""How far two models' truth ratios are really apart, and whether that is within a margin.

The Kolmogorov-Smirnov test answers "is there a difference"; a high p-value of it is no evidence of
sameness. For that one needs a bound on the true distance `Delta = sup |F - G|` of the distributions
over all questions that might have been asked, and a margin that was named beforehand.

Why the bounds hold. Let `e` be the sampling error of the difference of the two empirical
distribution functions, so that `|D - Delta| <= sup |e|`.

- `D - c <= Delta <= D + c` with `c` the 95% quantile of D for equal distributions. That is the
  largest `sup |e|` can be expected to get: for F unlike G its covariance is smaller by a positive
  semidefinite kernel, so by Anderson's inequality its supremum is smaller too. The lower end is
  above 0 exactly where the test rejects at 5% (equal n and m).
- `Delta <= D + 1.645 / 2 sqrt(1/n + 1/m)`, one-sided. Let t be where the true distance is reached:
  D is at least the observed difference at t, and the error at one point is normal with a variance
  of at most a quarter of 1/n + 1/m. No supremum is involved, since D only errs upwards there.

Both are conservative here: they take the two samples for independent, while both models answered
the same questions. A hard question is hard for both, so their distribution functions move together
and the error of the difference is smaller than for independent samples.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from expunge.core.results import NullBand, Verdict
from expunge.metrics.bootstrap import LEVEL, reflected_interval, resampled_distances
from expunge.metrics.registry import Values

DEFAULT_MARGIN: Final = 0.1
"""Tolerated distance where nothing better is known: at no truth ratio do the shares of questions
below it differ by more than ten in a hundred. Retrained models of other seeds give a better one."""

FEW_SAMPLES: Final = 100
"""Below this many questions a result of the test carries a warning."""

_MOST_ROWS: Final = 10_000_000  # a need beyond this is no plan


class KsTest(NamedTuple):
    """The two-sided two-sample Kolmogorov-Smirnov test.

    Attributes:
        p_value: 0..1.
        statistic: D, 0..1.
    """

    p_value: float
    statistic: float


class Bounds(NamedTuple):
    """What an observed distance D says about the true one.

    Attributes:
        low: Lower end of the 95% interval, D - c, at least 0; also the one-sided 95% lower bound.
        high: Upper end of it, D + c, at most 1.
        upper: One-sided 95% upper bound, at most `high`.
    """

    low: float
    high: float
    upper: float


class Excess(NamedTuple):
    """How much further the model is from retain models than those are from each other.

    Attributes:
        value: Its median distance to them minus the largest distance between two of them.
        low: Lower end of the 95% bootstrap interval over questions.
        high: Upper end of it.
        n: Questions that all of the models have a value for.
    """

    value: float
    low: float
    high: float
    n: int


class Decision(NamedTuple):
    """What is concluded from a distance or an excess.

    Attributes:
        verdict: The conclusion.
        rows_needed: Questions that would decide, if the value stays what it is; None where it is
            decided, or where no number of questions would do.
    """

    verdict: Verdict
    rows_needed: int | None


def ks_test(x: Values, y: Values) -> KsTest:
    """The test on values without nan. Exact at the usual sizes, so p is a step function of D."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        # Where the exact count overflows scipy says so and takes the asymptotic value.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        result = ks_2samp(x, y)
    return KsTest(float(result.pvalue), float(result.statistic))


def ks_distance(x: Values, y: Values) -> float:
    """D of two samples, 0..1, without the test; nan is left out, and is the result of nothing."""
    x, y = np.sort(x[~np.isnan(x)]), np.sort(y[~np.isnan(y)])
    if not x.size or not y.size:
        return math.nan
    points = np.concatenate([x, y])
    shares = [np.searchsorted(side, points, side="right") / side.size for side in (x, y)]
    return float(np.abs(shares[0] - shares[1]).max())


@functools.cache
def smallest_detectable(n: int, m: int, *, level: float = 0.05) -> float | None:
    """The smallest D that the two-sample test takes for a difference, with a p-value below `level`.

    Any smaller D passes as "no difference found". Found on shifted evenly spaced samples, which for
    n = m walk through every possible value of D: 0.325 for n = m = 40. None when even D = 1 passes.
    """
    if min(n, m) < 1:
        return None
    x, y = np.arange(n) / n, np.arange(m) / m
    largest = max(n, m)

    def test(step: int) -> KsTest:
        # Half a step less, so that no two samples tie.
        return ks_test(x, y + (step - 0.5) / largest)

    low, high = 0, largest  # step `low` is not detected; `high` is, if any step is
    if test(high).p_value >= level:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if test(middle).p_value < level else (middle, high)
    return test(high).statistic


def critical_distance(n: int, m: int) -> float:
    """The 95% quantile of D between two independent samples of one distribution, 0..1.

    Exact for n = m, where D is a multiple of 1/n; else the asymptotic value
    1.358 sqrt(1/n + 1/m), which is slightly larger. 1 where the samples are too few to say.
    """
    from scipy.special import kolmogi

    if n != m:
        return min(1.0, float(kolmogi(1.0 - LEVEL)) * math.sqrt(1.0 / n + 1.0 / m))
    smallest = smallest_detectable(n, m, level=1.0 - LEVEL)
    return 1.0 if smallest is None else (round(smallest * n) - 1) / n


def distance_bounds(distance: float, n: int, m: int) -> Bounds:
    """95% bounds of the true distance from the observed one; see the module for why they hold.

    Args:
        distance: D.
        n: Samples on one side.
        m: Samples on the other.
    """
    spread = critical_distance(n, m)
    high = min(1.0, distance + spread)
    upper = distance + _pointwise() * math.sqrt(1.0 / n + 1.0 / m)
    return Bounds(max(0.0, distance - spread), high, min(high, upper))


def decide(distance: float, margin: float, n: int, m: int) -> Decision:
    """Whether the true distance is within the margin, beyond it, or cannot be told at this n.

    "inside" when the one-sided 95% upper bound is at most the margin, "outside" when the lower one
    is above it. Neither is the default: too few questions end in "cannot tell".

    Args:
        distance: D.
        margin: Tolerated true distance.
        n: Samples on one side.
        m: Samples on the other.
    """
    bounds = distance_bounds(distance, n, m)
    if bounds.upper <= margin:
        return Decision("inside", None)
    if bounds.low > margin:
        return Decision("outside", None)
    from scipy.special import kolmogi

    reach = _pointwise() if distance < margin else float(kolmogi(1.0 - LEVEL))
    return Decision("cannot tell", _rows(2.0, reach, abs(margin - distance)))


def null_band(retain_columns: Sequence[Values]) -> NullBand | None:
    """Distances between retain models of different seeds on the same questions.

    They show how far apart two models are that differ by nothing but chance. None with fewer than
    two models.

    Args:
        retain_columns: Per model one value per question, nan where it has none.
    """
    pairs = itertools.combinations(retain_columns, 2)
    distances = [d for x, y in pairs if not math.isnan(d := ks_distance(x, y))]
    if not distances:
        return None
    return NullBand(
        distances=distances,
        lowest=min(distances),
        median=float(np.median(distances)),
        highest=max(distances),
        num_models=len(retain_columns),
    )


def excess_over_band(values: Values, retain_columns: Sequence[Values]) -> Excess:
    """How much further a model is from retain models than those are from each other.

    All distances are taken on the same questions and carry the same sampling error, so they are
    compared with each other and not with a fixed number: the median D of the model to the retain
    models minus the largest D between two of them. A bound on the true distance would be held
    against a margin that itself is an observed distance and as noisy; it also throws away that all
    models answered the same questions, which makes the difference far more certain than each part.

    The interval draws questions anew, for all models together. D of drawn questions is larger than
    D, as D is larger than the true distance, so the replicates are mirrored at the value.

    It is about these retain models: of K + 1 retrained ones, one is always the furthest from the
    rest, so with two retain models an ordinary third one often lies outside of their band.

    Args:
        values: Of the model, one per question, nan where it has none.
        retain_columns: The same of each of two or more retain models.
    """
    columns = np.stack([values, *retain_columns], axis=1)
    columns = columns[~np.isnan(columns).any(axis=1)]
    n = len(columns)
    if n < 2:
        return Excess(math.nan, math.nan, math.nan, n)
    models = range(1, columns.shape[1])
    pairs = [(0, k) for k in models] + list(itertools.combinations(models, 2))
    observed = np.array([[ks_distance(columns[:, i], columns[:, j]) for i, j in pairs]])
    value = float(_excess(observed, len(retain_columns))[0])
    replicates = _excess(resampled_distances(columns, pairs), len(retain_columns))
    low, high = reflected_interval(value, replicates)
    return Excess(value, min(low, value), max(high, value), n)


def decide_by_band(excess: Excess) -> Decision:
    """Whether a model is as close to retain models as those are to each other.

    "inside" when the interval of the excess ends at or below 0, "outside" when it begins above 0.
    """
    if math.isnan(excess.low):
        return Decision("cannot tell", None)
    if excess.high <= 0:
        return Decision("inside", None)
    if excess.low > 0:
        return Decision("outside", None)
    # The interval shrinks with the root of n; it must not reach from the value to 0.
    reach = excess.high - excess.value if excess.value < 0 else excess.value - excess.low
    return Decision("cannot tell", _rows(float(excess.n), reach, abs(excess.value)))


def middle(distances: Sequence[float]) -> int:
    """Position of the median of the distances; of two middle ones the larger.

    The model of that position is a real one, with a test of its own, unlike a mean of two.
    """
    order = np.argsort(distances, kind="stable")
    return int(order[len(distances) // 2])


def few_samples_warning(n: int, m: int) -> str | None:
    """What to keep in mind below 100 questions; None from there on."""
    fewest = min(n, m)
    if fewest >= FEW_SAMPLES:
        return None
    smallest = smallest_detectable(n, m)
    sees = "sees no difference at all" if smallest is None else f"misses any D below {smallest:.3f}"
    return (
        f"n = {fewest} is below {FEW_SAMPLES}: the test {sees}, and D itself moves by up to "
        f"{critical_distance(n, m):.3f} from one set of questions to another. A high p-value says "
        "next to nothing here."
    )


def _excess(distances: Values, num_retains: int) -> Values:
    """Median distance to the retain models minus the largest between them, per replicate."""
    ordered = np.sort(distances[:, :num_retains], axis=1)
    excess: Values = ordered[:, num_retains // 2] - distances[:, num_retains:].max(axis=1)
    return excess


@functools.cache
def _pointwise() -> float:
    """Half of the normal 95% quantile: how far a share can be off, in units of its root of 1/n."""
    from scipy.special import ndtri

    return float(ndtri(LEVEL)) / 2.0


def _rows(factor: float, reach: float, gap: float) -> int | None:
    """Rows at which the reach, scaled with the root of the rows, is down to the gap."""
    if not reach * math.sqrt(factor / _MOST_ROWS) < gap:  # also where the reach is nan
        return None
    return math.ceil(factor * (reach / gap) ** 2)
