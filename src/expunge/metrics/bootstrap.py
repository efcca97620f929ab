"""Drawing samples anew: the replicates that every interval of this package is made from.

A replicate is a vector of counts, how often each row was drawn. One matrix of counts serves
everything that was measured on the same rows, so what belongs to one row stays together: metrics of
one model, and two models that answered the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from expunge.metrics.registry import Values

REPLICATES = 2000
SEED = 0
LEVEL = 0.95

_CELLS = 4_000_000  # numbers held at once while distribution functions are drawn anew


@lru_cache(maxsize=4)
def draws(n: int, seed: int = SEED) -> NDArray[np.float64]:
    """How often each of `n` rows is drawn in each replicate, [REPLICATES, n]."""
    generator = np.random.default_rng([seed, n])
    shares = np.full(n, 1.0 / n)
    return generator.multinomial(n, shares, size=REPLICATES).astype(np.float64)


def percentile_interval(replicates: Values) -> tuple[float, float]:
    """The middle 95% of the replicates; nan if there is none."""
    if np.isnan(replicates).all():
        return np.nan, np.nan
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.nanquantile(replicates, [tail, 1.0 - tail])
    return float(low), float(high)


def reflected_interval(value: float, replicates: Values) -> tuple[float, float]:
    """The middle 95% of the replicates mirrored at the value ("basic" interval).

    For values that are biased: a replicate is as far above the value as the value is above the
    truth, and mirroring takes that off. Distances between distributions are of this kind.
    """
    low, high = percentile_interval(replicates)
    return 2.0 * value - high, 2.0 * value - low


def resampled_means(values: Values, *, seed: int = SEED) -> Values:
    """Means over drawn rows of several metrics measured on the same rows.

    Args:
        values: [n, k], nan where a row has no such value.
        seed: Seed of the draws.

    Returns:
        Means over the drawn rows that have a value, nan for a draw without any, [REPLICATES, k].
    """
    scored = ~np.isnan(values)
    filled = np.where(scored, values, 0.0)
    counts = draws(len(values), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Values = (counts @ filled) / (counts @ scored)
    return means


def resampled_medians(values: Values, *, seed: int = SEED) -> Values:
    """Medians over drawn rows, [REPLICATES].

    Args:
        values: [n], without nan.
        seed: Seed of the draws.
    """
    order = np.argsort(values, kind="stable")
    below = draws(len(values), seed)[:, order].cumsum(axis=1)
    # Of n drawn values in ascending order, the median is number (n - 1) // 2 and n // 2, from 0.
    ranks = ((len(values) - 1) // 2, len(values) // 2)
    lower, upper = (values[order][(below > rank).argmax(axis=1)] for rank in ranks)
    medians: Values = (lower + upper) / 2.0
    return medians


def resampled_maxima(values: Values, *, seed: int = SEED) -> Values:
    """Largest value among drawn rows, [REPLICATES].

    Args:
        values: [n], without nan.
        seed: Seed of the draws.
    """
    order = np.argsort(-values, kind="stable")
    drawn = draws(len(values), seed)[:, order] > 0
    maxima: Values = values[order][drawn.argmax(axis=1)]
    return maxima


def resampled_distances(columns: Values, pairs: Sequence[tuple[int, int]]) -> Values:
    """Kolmogorov-Smirnov distances between models on drawn rows, [REPLICATES, number of pairs].

    Args:
        columns: One value per row and model, [n, k], without nan.
        pairs: Which two columns each distance is between.
    """
    if not pairs:
        return np.empty((REPLICATES, 0))
    counts, points = draws(len(columns)), np.unique(columns)
    out = []
    for part in _chunks(counts, points.size * columns.shape[1]):
        shares = [_shares(part, columns[:, k], points) for k in range(columns.shape[1])]
        out.append(np.stack([np.abs(shares[i] - shares[j]).max(axis=1) for i, j in pairs], axis=1))
    return np.concatenate(out)


def resampled_aucs(first: Values, second: Values, *, seed: int = SEED) -> Values:
    """Share of pairs with a smaller first than second value over draws of both sets, [REPLICATES].

    Equal values count one half. The two sets are drawn independently of each other.

    Args:
        first: [n], without nan.
        second: [m], without nan.
        seed: Seed of the draws.
    """
    order = np.sort(first)
    ranks = np.argsort(first, kind="stable")
    lower, upper = (np.searchsorted(order, second, side=side) for side in ("left", "right"))
    out = []
    # Another seed than that of the first set, which may have the same size.
    both = np.hstack([draws(len(first), seed), draws(len(second), seed + _SECOND_SET)])
    for part in _chunks(both, len(first) + 2 * len(second)):
        below = np.zeros((len(part), len(first) + 1))
        np.cumsum(part[:, : len(first)][:, ranks], axis=1, out=below[:, 1:])
        wins = (below[:, lower] + below[:, upper]) / 2.0
        out.append((wins * part[:, len(first) :]).sum(axis=1))
    return np.concatenate(out) / (len(first) * len(second))


_SECOND_SET = 1_000_003


def _shares(counts: Values, values: Values, points: Values) -> Values:
    """Distribution function of drawn values at the points, [replicates, points]."""
    order = np.argsort(values, kind="stable")
    below = np.zeros((len(counts), len(values) + 1))
    np.cumsum(counts[:, order], axis=1, out=below[:, 1:])
    return below[:, np.searchsorted(values[order], points, side="right")] / len(values)


def _chunks(counts: Values, width: int) -> Iterator[Values]:
    step = max(1, _CELLS // max(1, width))
    for start in range(0, len(counts), step):
        yield counts[start : start + step]
