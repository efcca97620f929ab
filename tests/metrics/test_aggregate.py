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
    auc_with_interval,
    forget_efficacy,
    forget_efficacy_with_interval,
    forget_quality,
    harmonic_mean,
    harmonic_mean_interval,
    max_with_interval,
    mean_with_interval,
    median_with_interval,
    privleak_with_interval,
)
from expunge.metrics.bootstrap import resampled_means
from expunge.metrics.equivalence import critical_distance
from expunge.metrics.privacy import attack_auc, privacy_leakage

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


def test_forget_efficacy_of_samples_draws_measures_together():
    """Two columns x and 1 - x: their mean is 1/2 in every draw, so the interval has no width."""
    x = np.random.default_rng(0).random(30)
    found = forget_efficacy_with_interval(np.stack([x, 1 - x], axis=1))
    assert (found.value, found.n, found.unscored) == (pytest.approx(0.5), 30, 0)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-12)
    apart = forget_efficacy_with_interval(np.stack([x, x], axis=1))
    assert apart.value == pytest.approx(1 - x.mean())
    assert apart.low < apart.value < apart.high


def test_forget_efficacy_counts_incomplete_samples_and_takes_what_they_have():
    """Columns (1, 0, nan) and (0, 0, 1): means 1/2 and 1/3, so 1 - 5/12 = 7/12."""
    columns = np.array([[1.0, 0.0], [0.0, 0.0], [math.nan, 1.0]])
    found = forget_efficacy_with_interval(columns)
    assert found.value == pytest.approx(7 / 12)
    assert (found.n, found.unscored) == (2, 1)
    assert math.isnan(forget_efficacy_with_interval(np.full((3, 2), math.nan)).value)
    assert math.isnan(forget_efficacy_with_interval(np.empty((0, 5))).value)


def test_median_and_maximum_by_hand():
    """Of 1, 2, 3, 10 the median is 2.5 and the maximum 10; nan is left out and counted."""
    values = np.array([10.0, 1.0, math.nan, 3.0, 2.0])
    median, largest = median_with_interval(values), max_with_interval(values)
    assert (median.value, median.n, median.unscored) == (2.5, 4, 1)
    assert 1.0 <= median.low < 2.5 < median.high <= 10.0
    assert (largest.value, largest.high) == (10.0, 10.0)
    assert largest.low < 10.0
    assert "no honest upper end" in largest.note
    for function in (median_with_interval, max_with_interval):
        assert math.isnan(function(np.array([math.nan])).value)
        assert math.isnan(function(np.array([1.0])).low)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30).map(np.array))
@settings(max_examples=25)
def test_every_interval_contains_its_value(values):
    for function in (mean_with_interval, median_with_interval, max_with_interval):
        found = function(values)
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9


scores = st.lists(st.integers(0, 8).map(float), min_size=2, max_size=20).map(np.array)


@given(scores, scores)
@settings(max_examples=30)
def test_auc_is_symmetric_under_swapping_and_inside_its_interval(forget, holdout):
    """Which set is called forget only turns the AUC round; the leak is the same on both sides."""
    found, back = auc_with_interval(forget, holdout), auc_with_interval(holdout, forget)
    assert found.value == attack_auc(forget, holdout)
    assert found.value + back.value == pytest.approx(1.0)
    assert found.two_sided == pytest.approx(back.two_sided)
    assert found.two_sided == pytest.approx(2 * abs(found.value - 0.5))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_auc_interval_agrees_with_the_normal_one():
    """Hanley and McNeil (1982): for exponential scores with A = 2/3 and n = m = 150 the variance is
    (A (1-A) + (n-1) (A/(2-A) + 2A^2/(1+A) - 2 A^2)) / n^2, a half width of 0.061."""
    generator = np.random.default_rng(3)
    found = auc_with_interval(generator.exponential(1, 150), generator.exponential(2, 150))
    a = 2 / 3
    variance = (a * (1 - a) + 149 * (a / (2 - a) + 2 * a**2 / (1 + a) - 2 * a**2)) / 150**2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.15)


def test_auc_of_separated_sets_is_not_certain():
    """All of 20 independent pairs in order: 0.025 ** (1 / 20) = 0.832 is the lower end."""
    low, high = np.arange(20.0), 100 + np.arange(30.0)
    found, back = auc_with_interval(low, high), auc_with_interval(high, low)
    assert (found.value, found.high, found.two_sided) == (1.0, 1.0, 1.0)
    assert found.low == pytest.approx(0.8316, abs=1e-4)
    assert (back.value, back.low) == (0.0, 0.0)
    assert back.high == pytest.approx(1 - found.low)


def test_auc_counts_both_sets_and_what_is_unscored():
    found = auc_with_interval(np.array([1.0, math.nan]), np.array([2.0, 3.0]))
    assert (found.value, found.n, found.unscored) == (1.0, 3, 1)
    assert math.isnan(found.low)  # one forget sample is no set to draw from
    assert math.isnan(auc_with_interval(np.array([math.nan]), np.array([1.0])).value)


@given(scores, scores)
@settings(max_examples=20)
def test_privleak_of_the_retain_model_against_itself_is_zero(forget, holdout):
    assume(attack_auc(forget, holdout) < 1)
    found = privleak_with_interval(forget, holdout, (forget, holdout))
    assert (found.value, found.two_sided) == (0.0, 0.0)
    assert found.low <= 0.0 <= found.high


def test_privleak_agrees_with_the_formula_and_shows_both_sides():
    generator = np.random.default_rng(1)
    base, holdout = generator.normal(0, 1, 60), generator.normal(0, 1, 60)
    noise = generator.normal(0, 0.1, (2, 60))
    leaking = privleak_with_interval(base - 2, holdout + noise[0], (base, holdout))
    overdone = privleak_with_interval(base + 2, holdout + noise[0], (base, holdout))
    assert leaking.value < -50 < 50 < overdone.value
    for found, shift in ((leaking, -2), (overdone, 2)):
        aucs = attack_auc(base + shift, holdout + noise[0]), attack_auc(base, holdout)
        assert found.value == pytest.approx(privacy_leakage(*aucs))
        assert found.two_sided == abs(found.value)
        assert found.low < found.value < found.high
        assert found.n == 120


def test_privleak_draws_the_rows_of_both_models_together():
    """The model is the retain model with a little noise: drawn together, PrivLeak hardly moves;
    drawn apart, each AUC alone would move it by more than 20 either way."""
    generator = np.random.default_rng(2)
    forget, holdout = generator.normal(0, 1, (2, 80))
    near = [side + generator.normal(0, 0.02, 80) for side in (forget, holdout)]
    paired = privleak_with_interval(*near, (forget, holdout))
    fixed = privleak_with_interval(*near, attack_auc(forget, holdout))
    assert paired.high - paired.low < 0.2 * (fixed.high - fixed.low)
    assert fixed.value == pytest.approx(paired.value)


def test_privleak_with_a_known_constant_and_where_it_has_no_meaning():
    """A = 1 against 1/2 is -100, open-unlearning's default; A_retain = 1 leaves nothing to change.

    Separated sets: the AUC may be as low as 0.025 ** (1 / 9) = 0.664, so PrivLeak 100 (1 - 2 A).
    """
    forget, holdout = np.arange(9.0), 10 + np.arange(9.0)
    found = privleak_with_interval(forget, holdout, 0.5)
    assert (found.value, found.low) == (-100.0, -100.0)
    assert found.high == pytest.approx(100 - 200 * 0.025 ** (1 / 9))
    assert math.isnan(privleak_with_interval(forget, holdout, (forget, holdout)).value)
    with pytest.raises(ValueError, match="same rows"):
        privleak_with_interval(forget, holdout, (forget[1:], holdout))


def test_forget_quality_always_carries_bounds_margin_verdict_and_warning():
    """n = 40, D = 0.1: c is 0.3, the one-sided bound 0.1 + 0.822 sqrt(2 / 40) = 0.284."""
    x = np.arange(40.0)
    found = forget_quality(x, x + 4)
    assert found.statistic == pytest.approx(0.1)
    assert (found.low, found.high) == (0.0, pytest.approx(0.4))
    assert found.upper_bound == pytest.approx(0.1 + 1.644854 / 2 * math.sqrt(2 / 40))
    assert (found.margin, found.margin_origin) == (0.1, "default")
    assert (found.verdict, found.distances) == ("cannot tell", [found.statistic])
    assert found.rows_needed is None  # D is the margin: no number of rows decides
    assert "n = 40 is below 100" in found.warning
    assert "any D below 0.325" in found.warning
    assert found.null_band is None


def test_forget_quality_verdicts_by_a_given_margin():
    x = np.arange(400.0)
    far = forget_quality(x, x + 200)  # D = 1/2
    assert (far.verdict, far.rows_needed, far.warning) == ("outside", None, None)
    near = forget_quality(x, x + 4, margin=0.07)  # D = 1/100, bound 0.068
    assert (near.verdict, near.margin_origin) == ("inside", "given")
    open_ = forget_quality(x, x + 4, margin=0.05)
    assert open_.verdict == "cannot tell"
    # 2 (0.822 / (0.05 - 0.01))^2 rows would do
    assert open_.rows_needed == math.ceil(2 * (1.6448536 / 2 / 0.04) ** 2)
    for margin in (-0.1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            forget_quality(x, x, margin=margin)


def test_a_model_against_itself_has_no_distance_and_nothing_to_conclude():
    x = np.random.default_rng(0).random(50)
    others = [x + np.random.default_rng(k).normal(0, 0.1, 50) for k in (1, 2)]
    for retains in ([x], [others[0], x, others[1]]):
        found = forget_quality(x, *retains)
        assert (found.p_value, found.statistic) == (1.0, 0.0)
        assert (found.low, found.high, found.upper_bound) == (0.0, 0.0, 0.0)
        assert (found.verdict, found.margin, found.warning) == (None, None, None)
        assert len(found.distances) == len(retains)


def test_several_retain_models_make_a_band_and_the_median_is_the_headline():
    """Shifts of 0, 1, 3 rows against 20: distances 20, 19, 17 hundredths, between them 1, 3, 2."""
    x = np.arange(100.0)
    retains = [x, x + 1, x + 3]
    found = forget_quality(x + 20, *retains)
    assert found.distances == pytest.approx([0.2, 0.19, 0.17])
    assert found.statistic == pytest.approx(0.19)
    assert found.p_value == forget_quality(x + 20, x + 1).p_value
    band = found.null_band
    assert band.distances == pytest.approx([0.01, 0.03, 0.02])
    assert (band.lowest, band.median, band.highest) == pytest.approx((0.01, 0.02, 0.03))
    assert band.num_models == 3
    assert (found.margin, found.margin_origin) == (pytest.approx(0.03), "retain models")
    assert found.excess == pytest.approx(0.16)
    assert found.excess_low <= found.excess <= found.excess_high
    given_ = forget_quality(x + 20, *retains, margin=0.5)
    assert (given_.verdict, given_.margin_origin) == ("inside", "given")
    assert given_.null_band == band


def test_with_two_retain_models_the_further_one_is_the_headline():
    x = np.arange(100.0)
    assert forget_quality(x + 20, x, x + 6).statistic == pytest.approx(0.2)


def test_what_cannot_be_a_band_is_refused():
    x = np.arange(10.0)
    with pytest.raises(ValueError, match="needs the truth ratios of a retain model"):
        forget_quality(x)
    with pytest.raises(ValueError, match="same rows"):
        forget_quality(x, x + 1, x[1:])


@given(ratios, ratios)
@settings(max_examples=50)
def test_the_bounds_hold_the_distance_and_agree_with_the_test(x, y):
    found = forget_quality(x, y)
    assert 0 <= found.low <= found.statistic <= found.upper_bound <= found.high <= 1
    if len(x) == len(y) and found.statistic > 0:
        assert (found.low > 0) == (found.p_value < 0.05)
        assert found.high <= found.statistic + critical_distance(len(x), len(y)) + 1e-12
