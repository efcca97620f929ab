"""Means with intervals, harmonic mean, forget quality."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import hmean, ks_2samp

from expunge.metrics import aggregate
from expunge.metrics.aggregate import (
    forget_efficacy,
    forget_quality,
    harmonic_mean,
    harmonic_mean_interval,
    mean_with_interval,
    resampled_means,
)

ratios = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40).map(np.array)


def test_mean_leaves_unscored_samples_out_and_counts_them():
    """(1 + 3) / 2, two scored, two not."""
    found = mean_with_interval(np.array([1.0, math.nan, 3.0, math.nan]))
    assert found.value == 2.0
    assert (found.n, found.unscored) == (2, 2)
    assert found.low == 1.0
    assert found.high == 3.0


def test_mean_of_nothing_is_nan():
    found = mean_with_interval(np.array([math.nan, math.nan]))
    assert math.isnan(found.value)
    assert (found.n, found.unscored) == (0, 2)


def test_one_sample_has_no_interval():
    found = mean_with_interval(np.array([0.5]))
    assert found.value == 0.5
    assert math.isnan(found.low)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    """200 sets of 60 coin flips: 95% of the intervals should hold 1/2; below 88% is 4.5 sigma."""
    flips = np.random.default_rng(1).integers(0, 2, (200, 60)).astype(float)
    hits = [m.low <= 0.5 <= m.high for m in map(mean_with_interval, flips)]
    assert 0.88 < np.mean(hits) < 0.99


def test_interval_is_near_the_normal_one():
    """Mean 1/2 of 400 flips: half width 1.96 * sqrt(1/4 / 400) = 0.049."""
    values = np.tile([0.0, 1.0], 200)
    found = mean_with_interval(values)
    assert found.value - found.low == pytest.approx(0.049, abs=0.005)
    assert found.high - found.value == pytest.approx(0.049, abs=0.005)


def test_the_same_samples_give_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert mean_with_interval(values) == mean_with_interval(values.copy())


def test_resampled_means_keep_the_values_of_a_sample_together():
    """The second column is one minus the first, so in every draw their means add up to 1."""
    x = np.random.default_rng(0).random(30)
    means = resampled_means(np.stack([x, 1 - x], axis=1))
    assert means.sum(axis=1) == pytest.approx(np.ones(len(means)))
    assert means[:, 0].std() > 0


def test_resampled_means_equal_a_loop(monkeypatch):
    """The slow twin draws each sample as often as the counts say and takes nan-means."""
    values = np.array([[1.0, math.nan], [2.0, 5.0], [4.0, 6.0]])
    monkeypatch.setattr(aggregate, "_draws", lambda n, seed: np.array([[2, 0, 1], [0, 3, 0.0]]))
    drawn = [[0, 0, 2], [1, 1, 1]]
    expected = [np.nanmean(values[rows], axis=0) for rows in drawn]
    assert resampled_means(values) == pytest.approx(np.array(expected))


def test_harmonic_mean():
    """3 / (1/1 + 1/2 + 1/4) = 12/7; a zero makes it zero."""
    assert harmonic_mean([1, 1 / 2, 1 / 4]) == pytest.approx(3 / 7)
    assert harmonic_mean([1, 2, 4]) == pytest.approx(12 / 7)
    assert harmonic_mean([1, 0, 4]) == 0.0


@pytest.mark.parametrize("values", [[], [1.0, -0.1], [1.0, math.nan]])
def test_harmonic_mean_refuses_what_has_none(values):
    with pytest.raises(ValueError, match="harmonic mean needs"):
        harmonic_mean(values)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=18))
def test_harmonic_mean_properties(values):
    found = harmonic_mean(values)
    assert found == pytest.approx(hmean(values))
    assert found <= len(values) * min(values) * (1 + 1e-9)
    assert min(values) * (1 - 1e-9) <= found <= np.mean(values) * (1 + 1e-9)


def test_harmonic_mean_interval_holds_the_value_and_shrinks():
    generator = np.random.default_rng(0)

    def interval(n):
        groups = {"a": generator.random((n, 2)) + 0.2, "b": generator.random((n, 1)) + 0.2}
        means = [mean for values in groups.values() for mean in values.mean(axis=0)]
        low, high = harmonic_mean_interval(groups)
        assert low < harmonic_mean(means) < high
        return high - low

    assert interval(400) < interval(25) / 2


def test_harmonic_mean_interval_draws_sets_of_equal_size_independently():
    """Two sets with x and 1 - x: drawn together their harmonic mean would hardly vary."""
    x = np.tile([0.1, 0.9], 50)
    low, high = harmonic_mean_interval({"a": x[:, None], "b": 1 - x[:, None]})
    together = 2 / (1 / resampled_means(np.stack([x, 1 - x], axis=1))).sum(axis=1)
    assert high - low > 2 * (np.quantile(together, 0.975) - np.quantile(together, 0.025))


def test_harmonic_mean_interval_needs_two_samples_everywhere():
    assert np.isnan(harmonic_mean_interval({"a": np.ones((1, 1)), "b": np.ones((9, 1))})).all()


@pytest.mark.parametrize(
    ("n", "distance", "p"),
    [(40, 0.3, 0.0541), (40, 0.1, 0.9900), (200, 0.125, 0.0878), (300, 0.08, 0.2926)],
)
def test_forget_quality_lies_on_the_published_lattice(n, distance, p):
    """Values 1..n against the same shifted by n*D: the distributions differ by D everywhere."""
    x = np.arange(n, dtype=float)
    found = forget_quality(x, x + round(distance * n))
    assert found.statistic == pytest.approx(distance)
    assert found.p_value == pytest.approx(p, abs=5e-5)
    assert (found.n, found.m) == (n, n)
    assert found.log10_p == pytest.approx(math.log10(found.p_value))


@given(ratios)
def test_forget_quality_of_a_model_against_itself(x):
    found = forget_quality(x, x.copy())
    assert found.p_value == 1.0
    assert found.statistic == 0.0


@given(ratios, ratios)
def test_forget_quality_survives_monotone_maps(x, y):
    # Values that a map would round together are no counterexample.
    together = np.unique(np.concatenate([x, y]))
    assume((np.diff(together) > 1e-9 * together[1:]).all())
    plain = forget_quality(x, y)
    for change in (np.log, np.sqrt, lambda v: -1 / v, lambda v: 3 * v + 1):
        assert forget_quality(change(x), change(y)) == plain
    turned = forget_quality(1 / x, 1 / y)
    assert turned.p_value == pytest.approx(plain.p_value)
    assert turned.statistic == pytest.approx(plain.statistic)


@given(ratios, ratios)
def test_forget_quality_is_symmetric_and_in_range(x, y):
    found, back = forget_quality(x, y), forget_quality(y, x)
    assert 0 <= found.p_value <= 1
    assert 0 <= found.statistic <= 1
    assert found.statistic == pytest.approx(back.statistic)
    assert found.p_value == pytest.approx(back.p_value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's own fallback, which forget_quality keeps quiet
        assert found.p_value == pytest.approx(ks_2samp(x, y).pvalue)


def test_forget_quality_leaves_unscored_samples_out():
    x = np.array([1.0, math.nan, 2.0])
    found = forget_quality(x, np.array([1.0, 2.0]))
    assert (found.n, found.m, found.p_value) == (2, 2, 1.0)


def test_forget_quality_of_nothing_says_why():
    found = forget_quality(np.array([math.nan]), np.array([1.0]))
    assert found.p_value is None
    assert found.statistic is None
    assert "evaluated model" in found.reason
    assert "retain model" in forget_quality(np.array([1.0]), np.array([])).reason


def test_log10_p_goes_on_where_p_underflows():
    """Full separation at n = m: p = 2 / C(2n, n); at n = 600 that is 10^-359, 0 as a double."""
    n = 600
    x = np.arange(n, dtype=float)
    found = forget_quality(x, x + n)
    exact = math.log10(2) - (math.lgamma(2 * n + 1) - 2 * math.lgamma(n + 1)) / math.log(10)
    assert found.p_value == 0.0
    assert found.log10_p == pytest.approx(exact, rel=1e-9)


@settings(max_examples=20)
@given(st.integers(100, 400), st.integers(1, 4))
def test_log10_p_formula_meets_the_exact_p_value(n, part):
    """The leading term used below the smallest double agrees with p where p is still one."""
    h = n * part // 4 + n // 5
    assume(h <= n)
    x = np.arange(n, dtype=float)
    found = forget_quality(x, x + h)
    assume(0 < found.p_value < 1e-10)
    assert aggregate._log10_p_underflow(h / n, n, n) == pytest.approx(found.log10_p, rel=1e-6)


def test_forget_efficacy():
    """1 - (0.1 + 0.2 + 0.3) / 3 = 0.8."""
    assert forget_efficacy([0.1, 0.2, 0.3]) == pytest.approx(0.8)
