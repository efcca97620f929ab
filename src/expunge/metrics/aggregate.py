"""Values over many samples: mean with interval, harmonic mean, forget quality."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.core.results import ForgetQuality
from expunge.metrics.registry import Values

REPLICATES = 2000
SEED = 0
LEVEL = 0.95


class Mean(NamedTuple):
    """Mean over the samples that could be scored.

    Attributes:
        value: The mean; nan if no sample could be scored.
        low: Lower end of the 95% bootstrap interval; nan with fewer than two samples.
        high: Upper end of it.
        n: Samples that entered.
        unscored: Samples left out because they are nan.
    """

    value: float
    low: float
    high: float
    n: int
    unscored: int


def mean_with_interval(values: Values) -> Mean:
    """Mean of the scored samples with a percentile bootstrap interval over samples.

    Args:
        values: One per sample; nan where a sample could not be scored.
    """
    scored = values[~np.isnan(values)]
    unscored = len(values) - len(scored)
    if not len(scored):
        return Mean(np.nan, np.nan, np.nan, 0, unscored)
    low, high = np.nan, np.nan
    if len(scored) > 1:
        low, high = _interval(resampled_means(scored[:, None])[:, 0])
    return Mean(float(scored.mean()), low, high, len(scored), unscored)


def resampled_means(values: Values, *, seed: int = SEED) -> Values:
    """Bootstrap means over samples of several metrics measured on the same samples.

    Rows are drawn together, so metrics of one sample stay together.

    Args:
        values: [n, k], nan where a sample has no such value.
        seed: Seed of the draws.

    Returns:
        Means over the drawn samples that have a value, nan for a draw without any,
        [REPLICATES, k].
    """
    scored = ~np.isnan(values)
    filled = np.where(scored, values, 0.0)
    draws = _draws(len(values), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Values = (draws @ filled) / (draws @ scored)
    return means


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean, n / (1/x_1 + ... + 1/x_n); 0 as soon as one value is 0.

    The model utility of TOFU (arXiv:2401.06121, section 2.2) is that of nine values: ROUGE-L
    recall, probability and truth ratio on retain set, real authors and world facts.

    Args:
        values: At least one number, none of them negative.

    Raises:
        ValueError: No values, or one is negative or not a number.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not (array >= 0).all():
        raise ValueError(f"a harmonic mean needs values of 0 or more, not {list(values)}")
    if (array == 0).any():
        return 0.0
    return float(array.size / (1.0 / array).sum())


def harmonic_mean_interval(groups: Mapping[str, Values]) -> tuple[float, float]:
    """95% bootstrap interval of a harmonic mean of means.

    Args:
        groups: Per-sample values by set of samples, [n, k] each; sets are drawn independently.

    Returns:
        Lower and upper end; nan if any set has fewer than two samples.
    """
    if any(len(values) < 2 for values in groups.values()):
        return np.nan, np.nan
    # Independent sets need different draws even when they have the same size.
    means = np.concatenate(
        [resampled_means(values, seed=SEED + k) for k, values in enumerate(groups.values())],
        axis=1,
    )
    with np.errstate(divide="ignore"):
        return _interval(means.shape[1] / (1.0 / means).sum(axis=1))


def forget_quality(truth_ratios: Values, retain_truth_ratios: Values) -> ForgetQuality:
    """How well the forget truth ratios of a model fit those of the retain model.

    Two-sided two-sample Kolmogorov-Smirnov test (TOFU, arXiv:2401.06121, section 2.2): p-value
    0..1, 1 = the test sees no difference at all; D 0..1, 0 = the same distribution. Exact at the
    sizes of TOFU, which makes the p-value a step function of D. It depends on the order of
    the values only, so any strictly monotone map of both sides changes nothing.

    Args:
        truth_ratios: Of the evaluated model on the forget set; nan is left out.
        retain_truth_ratios: Of the retain model on the same rows.
    """
    from scipy.stats import ks_2samp

    x = truth_ratios[~np.isnan(truth_ratios)]
    y = retain_truth_ratios[~np.isnan(retain_truth_ratios)]
    n, m = len(x), len(y)
    if not n or not m:
        which = "evaluated" if not n else "retain"
        reason = f"no truth ratio of the {which} model could be computed"
        return ForgetQuality(n=n, m=m, reason=reason)
    with warnings.catch_warnings():
        # Where the exact count overflows scipy says so and takes the asymptotic value.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        result = ks_2samp(x, y)
    p, distance = float(result.pvalue), float(result.statistic)
    log10_p = np.log10(p) if p > 0 else _log10_p_underflow(distance, n, m)
    return ForgetQuality(p_value=p, statistic=distance, n=n, m=m, log10_p=float(log10_p))


def forget_efficacy(forget_values: Sequence[float]) -> float:
    """One minus the mean of the memory measures of the forget set, 0..1, higher is better.

    Closer Look, arXiv:2410.08109: of ROUGE-L recall, probability, one minus the truth ratio
    in forget form, cosine similarity and entailment score.
    """
    return float(1.0 - np.mean(forget_values))


def _log10_p_underflow(distance: float, n: int, m: int) -> float:
    """Leading term of log10 p where p is below the smallest double (from about n = 520 at D = 1).

    For n = m the exact first term 2 C(2n, n - nD) / C(2n, n), whose successors are smaller by
    hundreds of orders of magnitude there; for n != m the asymptotic 2 exp(-2 D^2 nm / (n + m)).
    """
    from scipy.special import gammaln

    if n != m:
        log_p = np.log(2.0) - 2.0 * distance**2 * n * m / (n + m)
    else:
        h = round(distance * n)
        log_p = np.log(2.0) + 2 * gammaln(n + 1) - gammaln(n - h + 1) - gammaln(n + h + 1)
    return float(log_p / np.log(10.0))


def _interval(replicates: Values) -> tuple[float, float]:
    if np.isnan(replicates).all():
        return np.nan, np.nan
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.nanquantile(replicates, [tail, 1.0 - tail])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _draws(n: int, seed: int) -> NDArray[np.float64]:
    """How often each of `n` samples is drawn in each replicate, [REPLICATES, n]."""
    generator = np.random.default_rng([seed, n])
    shares = np.full(n, 1.0 / n)
    return generator.multinomial(n, shares, size=REPLICATES).astype(np.float64)
