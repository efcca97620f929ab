"""Differences between two runs, with intervals: drawn questions are the same for both.

Two models that answered the same questions are compared question by question. That a question is
hard for both then cancels out, which makes a difference far more certain than the two intervals
suggest: these may overlap although the difference is clear. Every function gives second minus
first, and takes rows in the same order for both sides.

The intervals are over questions of two given models. Another seed gives other models, whose spread
no number here knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from expunge.metrics.aggregate import (
    forget_efficacy,
    harmonic_mean,
    resampled_harmonic_means,
)
from expunge.metrics.bootstrap import (
    percentile_interval,
    reflected_interval,
    resampled_aucs,
    resampled_distances,
    resampled_means,
    resampled_medians,
)
from expunge.metrics.equivalence import ks_distance
from expunge.metrics.privacy import attack_auc
from expunge.metrics.registry import Values

FEWEST_ROWS: Final = 6
"""With fewer rows, even differences of one sign all over come by chance more than once in 20."""


class Difference(NamedTuple):
    """A difference of two values over the same rows, second minus first.

    Attributes:
        value: The difference; nan if no row has a value on both sides.
        low: Lower end of its 95% bootstrap interval over rows; nan with fewer than two rows.
        high: Upper end of it.
        n: Rows with a value on both sides; other rows enter neither side.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval leaves 0 out; None without one, or with fewer than 6 rows.

        False is no evidence that the two are the same.
        """
        if math.isnan(self.low) or self.n < FEWEST_ROWS:
            return None
        return not self.low <= 0.0 <= self.high


def compare_means(first: Values, second: Values) -> Difference:
    """Difference of two means.

    Args:
        first: One value per row, nan where it could not be scored.
        second: The same of the other run, on the same rows.

    Raises:
        ValueError: The two have different numbers of rows; so of every function here.
    """
    change = _paired(first, second)
    change = change[:, 1] - change[:, 0]
    if not len(change):
        return _absent(0)
    return _difference(float(change.mean()), resampled_means(change[:, None])[:, 0], len(change))


def compare_medians(first: Values, second: Values) -> Difference:
    """Difference of two medians; see `compare_means` for the arguments."""
    both = _paired(first, second)
    if not len(both):
        return _absent(0)
    ends = [np.median(column) for column in both.T]
    drawn = [resampled_medians(column) for column in both.T]
    return _difference(float(ends[1] - ends[0]), drawn[1] - drawn[0], len(both))


def compare_harmonic_means(first: Mapping[str, Values], second: Mapping[str, Values]) -> Difference:
    """Difference of two harmonic means of means, such as model utilities.

    Args:
        first: Per-sample values by set of samples, [n, k] each, nan where a sample has none. Sets
            are drawn independently, the measures of a sample together.
        second: The same of the other run, with the same sets, rows and measures.
    """
    if first.keys() != second.keys():
        raise ValueError(f"the sets differ: {sorted(first)} and {sorted(second)}")
    sides: tuple[dict[str, Values], dict[str, Values]] = ({}, {})
    n = 0
    for name in first:
        for side, values in zip(sides, _same_gaps(first[name], second[name]), strict=True):
            side[name] = values
        n += len(sides[0][name])
        if not len(sides[0][name]) or np.isnan(sides[0][name]).all(axis=0).any():
            return _absent(n)
    means = [
        harmonic_mean([mean for values in side.values() for mean in np.nanmean(values, axis=0)])
        for side in sides
    ]
    if any(len(values) < 2 for values in sides[0].values()):
        return Difference(means[1] - means[0], np.nan, np.nan, n)
    drawn = [resampled_harmonic_means(side) for side in sides]
    return _difference(means[1] - means[0], drawn[1] - drawn[0], n)


def compare_forget_efficacy(first: Values, second: Values) -> Difference:
    """Difference of two forget efficacies, see `forget_efficacy`.

    Args:
        first: One memory measure per column, [n, k]; nan where a sample has no such value.
        second: The same of the other run, on the same rows.
    """
    both = _same_gaps(first, second)
    n = len(both[0])
    if not n or np.isnan(both[0]).all(axis=0).any():
        return _absent(n)
    values = [forget_efficacy(np.nanmean(side, axis=0).tolist()) for side in both]
    drawn = [1.0 - resampled_means(side).mean(axis=1) for side in both]
    return _difference(values[1] - values[0], drawn[1] - drawn[0], n)


def compare_distances(
    first: Values, second: Values, retain: Values, second_retain: Values | None = None
) -> Difference:
    """Difference of two Kolmogorov-Smirnov distances D to the retain model.

    Below 0 the second run is closer to it. The replicates are mirrored at the value, since D of
    drawn rows is larger than D.

    Args:
        first: Truth ratios of the first run's model, nan where there is none.
        second: Those of the second run's model on the same rows.
        retain: Those of the retain model on the same rows.
        second_retain: Of the second run's retain model, where it is another one.
    """
    other = retain if second_retain is None else second_retain
    columns = _paired(first, second, retain, other)
    if not len(columns):
        return _absent(0)
    observed = [ks_distance(columns[:, i], columns[:, i + 2]) for i in (0, 1)]
    drawn = resampled_distances(columns, [(0, 2), (1, 3)])
    value = observed[1] - observed[0]
    low, high = reflected_interval(value, drawn[:, 1] - drawn[:, 0])
    return _with_interval(value, low, high, len(columns))


def compare_aucs(first: tuple[Values, Values], second: tuple[Values, Values]) -> Difference:
    """Difference of two AUCs of the same attack, see `attack_auc`.

    Args:
        first: Membership scores of the forget and of the holdout set.
        second: The same of the other run, on the same rows.
    """
    sets = [_paired(*pair) for pair in zip(first, second, strict=True)]
    n = sum(map(len, sets))
    if not all(map(len, sets)):
        return _absent(n)
    aucs = [attack_auc(sets[0][:, k], sets[1][:, k]) for k in (0, 1)]
    drawn = [resampled_aucs(sets[0][:, k], sets[1][:, k]) for k in (0, 1)]
    if min(map(len, sets)) < 2:
        return Difference(aucs[1] - aucs[0], np.nan, np.nan, n)
    return _difference(aucs[1] - aucs[0], drawn[1] - drawn[0], n)


def compare_privleaks(
    first: tuple[Values, Values],
    second: tuple[Values, Values],
    retain: tuple[Values, Values] | float,
    second_retain: tuple[Values, Values] | float | None = None,
    *,
    epsilon: float = 0.0,
) -> Difference:
    """Difference of two PrivLeaks, see `privacy_leakage`, in percentage points.

    Args:
        first: Membership scores of the forget and of the holdout set.
        second: The same of the other run, on the same rows.
        retain: The retain model's, on the same rows, or its AUC.
        second_retain: Of the second run's retain model, where it is another one.
        epsilon: Added to the denominator.
    """
    retains = [retain, retain if second_retain is None else second_retain]
    scored = [first, second, *(each for each in retains if not isinstance(each, int | float))]
    sets = [_paired(*columns) for columns in zip(*scored, strict=True)]
    n = sum(map(len, sets))
    if min(map(len, sets)) < 2:
        return _absent(n)

    def leaks(auc: Callable[[Values, Values], Values | float]) -> list[Values]:
        found = iter(auc(sets[0][:, k], sets[1][:, k]) for k in range(len(scored)))
        own = [np.asarray(next(found)) for _ in range(2)]
        known = [
            np.asarray(each if isinstance(each, int | float) else next(found)) for each in retains
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            both = [
                100.0 * (theirs - ours) / (1.0 - theirs + epsilon)
                for ours, theirs in zip(own, known, strict=True)
            ]
        return [np.where(np.isfinite(each), each, np.nan) for each in both]

    values, drawn = leaks(attack_auc), leaks(resampled_aucs)
    if math.isnan(value := float(values[1] - values[0])):
        return _absent(n)
    return _difference(value, drawn[1] - drawn[0], n)


def _absent(n: int) -> Difference:
    return Difference(np.nan, np.nan, np.nan, n)


def _difference(value: float, replicates: Values, n: int) -> Difference:
    return _with_interval(value, *percentile_interval(replicates), n)


def _with_interval(value: float, low: float, high: float, n: int) -> Difference:
    if n < 2:
        return Difference(value, np.nan, np.nan, n)
    # Rounding, or mirroring, must not put an interval beside its value.
    return Difference(value, min(low, value), max(high, value), n)


def _paired(*columns: Values) -> Values:
    """The rows that all columns have a value for, [n, k]."""
    _check_rows(columns)
    stacked = np.stack(columns, axis=1)
    return stacked[~np.isnan(stacked).any(axis=1)]


def _same_gaps(first: Values, second: Values) -> tuple[Values, Values]:
    """Both with nan wherever either has it, without rows that have nothing else."""
    _check_rows([first, second])
    gaps = np.isnan(first) | np.isnan(second)
    kept = ~gaps.all(axis=1)
    return np.where(gaps, np.nan, first)[kept], np.where(gaps, np.nan, second)[kept]


def _check_rows(columns: Sequence[Values]) -> None:
    if len({column.shape for column in columns}) > 1:
        shapes = [column.shape for column in columns]
        raise ValueError(f"two runs are compared on the same rows; here are shapes {shapes}")
