"""Differences of two runs over the same rows."""

import math

import numpy as np
import pytest

from expunge.metrics.aggregate import forget_efficacy, harmonic_mean, mean_with_interval
from expunge.metrics.compare import (
    Difference,
    compare_aucs,
    compare_distances,
    compare_forget_efficacy,
    compare_harmonic_means,
    compare_means,
    compare_medians,
    compare_privleaks,
)
from expunge.metrics.equivalence import ks_distance
from expunge.metrics.privacy import attack_auc, privacy_leakage

GENERATOR = np.random.default_rng(0)
HARD = GENERATOR.random(80)  # how hard each row is, for both runs
FIRST = 0.8 * HARD + 0.1 * GENERATOR.random(80)
BETTER = FIRST + 0.03 + 0.02 * GENERATOR.random(80)
ALIKE = np.where(np.arange(80) % 2, FIRST + 0.01, FIRST - 0.01)


def test_means_are_compared_row_by_row():
    """Both intervals overlap by far, and still the difference of about 0.04 is clear."""
    found = compare_means(FIRST, BETTER)
    assert found.value == pytest.approx(BETTER.mean() - FIRST.mean())
    assert 0.03 < found.low < found.value < found.high < 0.05
    assert found.distinguishable is True
    assert mean_with_interval(FIRST).high > mean_with_interval(BETTER).low
    assert compare_means(FIRST, ALIKE).distinguishable is False


def test_rows_with_a_gap_on_either_side_enter_neither():
    """Rows (1, 2), (nan, 9), (9, nan), (3, 6): differences 1 and 3."""
    first = np.array([1.0, math.nan, 9.0, 3.0])
    second = np.array([2.0, 9.0, math.nan, 6.0])
    found = compare_means(first, second)
    assert (found.value, found.n) == (2.0, 2)
    assert (found.low, found.high) == (1.0, 3.0)
    assert compare_medians(first, second).value == 2.0


def test_few_rows_are_never_distinguishable_and_nothing_is_nan():
    """Five differences of one sign come by chance once in 16 times; six once in 32."""
    up = np.arange(6.0)
    assert compare_means(up[:5], up[:5] + 1).distinguishable is None
    assert compare_means(up, up + 1).distinguishable is True
    alone = compare_means(up[:1], up[:1] + 1)
    assert alone.value == 1.0
    assert math.isnan(alone.low)
    nothing = np.full(4, math.nan)
    for found in (compare_means(nothing, nothing), compare_medians(nothing, nothing),
                  compare_distances(nothing, nothing, nothing),
                  compare_forget_efficacy(nothing[:, None], nothing[:, None]),
                  compare_harmonic_means({"a": nothing[:, None]}, {"a": nothing[:, None]}),
                  compare_aucs((nothing, nothing), (nothing, nothing))):  # fmt: skip
        assert math.isnan(found.value)
        assert found.distinguishable is None


@pytest.mark.parametrize(
    "compared",
    [
        lambda: compare_means(FIRST, FIRST),
        lambda: compare_medians(FIRST, FIRST),
        lambda: compare_forget_efficacy(FIRST[:, None], FIRST[:, None]),
        lambda: compare_harmonic_means({"a": FIRST[:, None]}, {"a": FIRST[:, None]}),
        lambda: compare_distances(FIRST, FIRST, BETTER),
        lambda: compare_aucs((FIRST, BETTER), (FIRST, BETTER)),
        lambda: compare_privleaks((FIRST, BETTER), (FIRST, BETTER), (HARD, ALIKE)),
    ],
)
def test_a_run_against_itself_differs_by_nothing(compared):
    found = compared()
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.distinguishable is False


@pytest.mark.parametrize(
    "compared",
    [
        lambda a, b: compare_means(a, b),
        lambda a, b: compare_medians(a, b),
        lambda a, b: compare_forget_efficacy(np.stack([a, a], 1), np.stack([b, b], 1)),
        lambda a, b: compare_harmonic_means({"x": a[:, None]}, {"x": b[:, None]}),
        lambda a, b: compare_distances(a, b, HARD),
        lambda a, b: compare_aucs((a, HARD), (b, HARD)),
        lambda a, b: compare_privleaks((a, HARD), (b, HARD), 0.5),
        lambda a, b: compare_privleaks((a, HARD), (b, HARD), (ALIKE, HARD)),
    ],
)
def test_swapping_the_runs_turns_the_sign_and_the_interval_holds_the_value(compared):
    found, back = compared(FIRST, BETTER), compared(BETTER, FIRST)
    assert found.low <= found.value <= found.high
    assert back.value == pytest.approx(-found.value)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(ValueError, match="same rows"):
        compared(FIRST, BETTER[1:])


def test_the_difference_is_that_of_the_two_values():
    groups = [{"a": np.stack([s, 1 - s / 2], 1), "b": s[:40, None]} for s in (FIRST, BETTER)]
    means = [[*g["a"].mean(axis=0), *g["b"].mean(axis=0)] for g in groups]
    found = compare_harmonic_means(*groups)
    assert found.value == pytest.approx(harmonic_mean(means[1]) - harmonic_mean(means[0]))
    assert found.n == 120
    assert found.distinguishable
    found = compare_forget_efficacy(groups[0]["a"], groups[1]["a"])
    assert found.value == pytest.approx(
        forget_efficacy(means[1][:2]) - forget_efficacy(means[0][:2])
    )
    found = compare_distances(FIRST, BETTER, HARD)
    assert found.value == pytest.approx(ks_distance(BETTER, HARD) - ks_distance(FIRST, HARD))
    found = compare_distances(FIRST, BETTER, HARD, ALIKE)
    assert found.value == pytest.approx(ks_distance(BETTER, ALIKE) - ks_distance(FIRST, HARD))
    found = compare_aucs((FIRST, HARD), (BETTER, HARD))
    assert found.value == pytest.approx(attack_auc(BETTER, HARD) - attack_auc(FIRST, HARD))


def test_privleaks_may_have_another_retain_model_each():
    found = compare_privleaks((FIRST, HARD), (BETTER, HARD), 0.5, (ALIKE, HARD))
    leaks = [
        privacy_leakage(attack_auc(FIRST, HARD), 0.5),
        privacy_leakage(attack_auc(BETTER, HARD), attack_auc(ALIKE, HARD)),
    ]
    assert found.value == pytest.approx(leaks[1] - leaks[0])
    assert found.n == 160
    certain = compare_privleaks((FIRST, HARD), (BETTER, HARD), 1.0)
    assert math.isnan(certain.value)


def test_distances_of_a_clearly_closer_run_are_distinguishable():
    generator = np.random.default_rng(4)
    retain = generator.normal(0, 1, 200)
    near, far = retain + generator.normal(0, 0.2, (2, 200)) + np.array([[0.1], [1.0]])
    closer = compare_distances(far, near, retain)
    assert closer.distinguishable is True
    assert closer.high < 0


def test_other_sets_cannot_be_compared():
    with pytest.raises(ValueError, match="the sets differ"):
        compare_harmonic_means({"a": HARD[:, None]}, {"b": HARD[:, None]})


def test_differences_of_noise_are_called_as_rarely_as_they_should_be():
    """200 pairs of runs that differ by chance: 5% should be told apart, 20 would be 3.2 sigma."""
    generator = np.random.default_rng(2)
    hard = generator.random((200, 40))
    first, second = hard + generator.normal(0, 0.1, (2, 200, 40))
    called = sum(
        bool(compare_means(a, b).distinguishable) for a, b in zip(first, second, strict=True)
    )
    assert called <= 20


def test_an_interval_beside_zero_is_told_from_one_at_zero():
    assert Difference(0.1, 0.0, 0.2, 40).distinguishable is False
    assert Difference(0.1, 0.01, 0.2, 40).distinguishable is True
    assert Difference(-0.1, -0.2, -0.01, 40).distinguishable is True
