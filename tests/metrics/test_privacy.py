"""Membership scores, their AUC, privacy leakage."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.metrics.privacy import (
    attack_auc,
    gradnorm_score,
    loss_score,
    lowercase_ratio_score,
    min_k_plus_plus_score,
    min_k_score,
    privacy_leakage,
    reference_ratio_score,
    reference_score,
    zlib_score,
)

scores = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(lambda v: np.array(v, float))

logps = st.lists(st.floats(-30, -0.01), min_size=1, max_size=8)
shares = st.sampled_from([0.05, 0.2, 0.4, 0.6, 1.0])


def test_loss_and_reference():
    """A = (1 + 3) / 2 = 2; minus the calibration model's 1/2."""
    assert loss_score([[-1.0, -3.0]]) == pytest.approx([2.0])
    assert reference_score([[-1.0, -3.0]], [[-0.5]]) == pytest.approx([1.5])


def test_zlib():
    size = len(zlib.compress(b"some text"))
    assert zlib_score([[-1.0, -3.0]], ["some text"]) == pytest.approx([2.0 / size])


def test_min_k_takes_the_least_likely_tokens():
    """Of -1 -2 -3 -4 -5 the lowest 40% are -5 -4: 4.5. The -9 of the end of turn is left out."""
    row = [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert min_k_score([[*row, -9.0]]) == pytest.approx([4.5])
    assert min_k_score([[*row, -9.0]], drop_last=False) == pytest.approx([7.0])
    assert min_k_score([[-1.0, -2.0]], share=0.1) == pytest.approx([1.0])  # at least one token
    assert np.isnan(min_k_score([[-1.0], [], None])).all()


def test_min_k_as_muse_prints_it():
    """Ten tokens, all of them counted: k = floor(0.25 * 10) = 2 of the lowest, -10 and -9."""
    row = [-float(i) for i in range(1, 11)]
    assert min_k_score([row], share=0.25, drop_last=False) == pytest.approx([9.5])


def test_a_value_that_is_no_number_leaves_a_sample_unscored():
    """Also where it is not among the lowest: what it is cannot be known."""
    row = [-5.0, math.nan, -1.0, -1.0]
    assert np.isnan(min_k_score([row])).all()
    ones = [1.0] * 4
    assert np.isnan(min_k_plus_plus_score([row], [ones], [ones])).all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_is_a_share(share):
    with pytest.raises(InputError, match="share of tokens"):
        min_k_score([[-1.0]], share=share)


def slow_min_k(row, share, drop_last):
    """The smallest value is taken out, again and again."""
    rest = list(row[:-1] if drop_last else row)
    if not rest:
        return math.nan
    taken = []
    for _ in range(max(1, int(share * len(rest)))):
        taken.append(min(rest))
        rest.remove(taken[-1])
    return -sum(taken) / len(taken)


@given(st.lists(logps, min_size=1, max_size=5), shares, st.booleans())
def test_min_k_equals_the_slow_twin(rows, share, drop_last):
    found = min_k_score(rows, share=share, drop_last=drop_last)
    expected = [slow_min_k(row, share, drop_last) for row in rows]
    assert found == pytest.approx(expected, nan_ok=True)
    turned = min_k_score(rows[::-1], share=share, drop_last=drop_last)
    np.testing.assert_array_equal(turned[::-1], found)


@given(logps, shares)
def test_the_order_of_tokens_changes_nothing_and_more_tokens_never_raise_the_score(row, share):
    found = min_k_score([row], share=share, drop_last=False)
    turned = min_k_score([row[::-1]], share=share, drop_last=False)
    assert found == pytest.approx(turned)
    assert found[0] >= min_k_score([row], share=1.0, drop_last=False)[0] - 1e-9
    assert found[0] >= loss_score([row])[0] - 1e-9


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0), st.floats(0, 9)), min_size=1))
def test_min_k_plus_plus_equals_the_slow_twin(tokens):
    row, means, variances = zip(*tokens, strict=True)
    standard = [(x - m) / math.sqrt(max(v, 1e-6)) for x, m, v in tokens]
    found = min_k_plus_plus_score([row], [means], [variances], share=0.3, drop_last=False)
    assert found == pytest.approx([slow_min_k(standard, 0.3, False)])


def test_ratios():
    """A = 2. Lower-cased 4: 1/2. Calibration model A = 1/2: 4. 0 over 0 is no number."""
    row = [-1.0, -3.0]
    assert lowercase_ratio_score([row], [4.0]) == pytest.approx([0.5])
    assert reference_ratio_score([row], [[-0.5]]) == pytest.approx([4.0])
    assert reference_ratio_score([row], [[0.0]]).tolist() == [math.inf]
    assert np.isnan(lowercase_ratio_score([[0.0], row, []], [0.0, None, 1.0])).all()


@given(logps, st.floats(0.01, 30))
def test_ratios_equal_the_slow_twin(row, lower):
    a = -sum(row) / len(row)
    assert lowercase_ratio_score([row], [lower]) == pytest.approx([a / lower])
    assert reference_ratio_score([row], [row]) == pytest.approx([1.0])
    assert reference_score([row], [row]) == pytest.approx([0.0])


def test_the_end_of_the_turn_can_be_left_out():
    """M-09. -2 and the end's -8: A = 5, or 2. Calibration -1 and -3: A = 2, or 1."""
    row, base = [-2.0, -8.0], [-1.0, -3.0]
    size = len(zlib.compress(b"text"))
    assert loss_score([row]) == pytest.approx([5.0])
    assert loss_score([row], drop_last=True) == pytest.approx([2.0])
    assert zlib_score([row], ["text"], drop_last=True) == pytest.approx([2.0 / size])
    assert reference_score([row], [base]) == pytest.approx([3.0])
    assert reference_score([row], [base], drop_last=True) == pytest.approx([1.0])
    assert reference_ratio_score([row], [base], drop_last=True) == pytest.approx([2.0])
    assert lowercase_ratio_score([row], [4.0], drop_last=True) == pytest.approx([0.5])
    assert np.isnan(loss_score([None, [-1.0]], drop_last=True)).all()


def test_gradient_norms_are_passed_on():
    found = gradnorm_score([0.5, None, math.nan])
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()


def test_min_k_plus_plus_standardises():
    """z = (-3 - -1)/2 = -1 and (-1 - -1)/1 = 0: the lowest half is -1, so the score is 1."""
    found = min_k_plus_plus_score(
        [[-3.0, -1.0, -5.0]], [[-1.0, -1.0, 0.0]], [[4.0, 1.0, 1.0]], share=0.5
    )
    assert found == pytest.approx([1.0])


def test_auc_orientation():
    """Forget below holdout everywhere: recognised as members."""
    assert attack_auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert attack_auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0.0
    assert math.isnan(attack_auc(np.array([math.nan]), np.array([1.0])))


@given(scores, scores)
def test_auc_equals_counting_pairs(forget, holdout):
    pairs = [(f < h) + 0.5 * (f == h) for f in forget for h in holdout]
    assert attack_auc(forget, holdout) == pytest.approx(np.mean(pairs))


def test_privacy_leakage():
    """AUC 0.8 against the retain model's 0.6: 100 * (0.2 - 0.4) / 0.4 = -50, still leaking."""
    assert privacy_leakage(0.8, 0.6) == pytest.approx(-50.0)
    assert privacy_leakage(0.4, 0.6) == pytest.approx(50.0)
    assert privacy_leakage(0.6, 0.6) == 0.0


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_privacy_leakage_is_the_same_either_way_round(auc, retain_auc):
    """M-11: AUCs that count the holdout set as members are one minus ours."""
    ours = privacy_leakage(auc, retain_auc)
    theirs = privacy_leakage(1 - auc, 1 - retain_auc, positive="holdout")
    assert theirs == pytest.approx(ours, abs=1e-9)
