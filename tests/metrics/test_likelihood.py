"""Probability and truth ratio: each expected value is the algebra of its docstring."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.metrics.likelihood import (
    absolute_loss_gap,
    loss_gap,
    mean_nll,
    normalized_probability,
    probability,
    truth_ratio,
    truth_ratio_closer_look,
    truth_ratio_forget,
    truth_ratio_probability,
    truth_ratio_utility,
)

log = math.log
logps = st.lists(st.floats(-30, 0), min_size=1, max_size=5)
rows = st.lists(
    st.tuples(logps, st.none() | logps, st.lists(logps, min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
)


def columns(samples):
    return tuple(map(list, zip(*samples, strict=True)))


def test_probability_is_the_geometric_mean_of_token_probabilities():
    """p = (1/2 * 1/8)^(1/2) = 1/4; one token: itself."""
    found = probability([[log(1 / 2), log(1 / 8)], [log(0.3)]])
    assert found == pytest.approx([1 / 4, 0.3])


def test_unscored_samples_are_nan():
    found = probability([[], None, [math.nan, -1.0], [-1.0]])
    assert np.isnan(found[:3]).all()
    assert found[3] == pytest.approx(math.exp(-1))


def test_normalised_probability():
    """p = 1/4 against 1/8 and 1/8: (1/4) / (1/4 + 1/8 + 1/8) = 1/2."""
    found = normalized_probability([[log(1 / 4)]], [[[log(1 / 8)], [log(1 / 8)]]])
    assert found == pytest.approx([1 / 2])


def test_normalised_probability_epsilon_joins_the_denominator():
    """(1/4) / (1/4 + 1/8 + 1/8 + 1/2) = 1/4."""
    found = normalized_probability([[log(1 / 4)]], [[[log(1 / 8)], [log(1 / 8)]]], epsilon=1 / 2)
    assert found == pytest.approx([1 / 4])


def test_normalised_probability_of_impossible_answers_is_still_a_share():
    """Both e^-2000, which is 0 in double precision: the share is 1/2 all the same."""
    assert normalized_probability([[-2000.0]], [[[-2000.0]]]) == pytest.approx([1 / 2])


def test_truth_ratio_means():
    """Wrong 1/2 and 1/8, right 1/4.

    Geometric: sqrt(1/2 * 1/8) / (1/4) = (1/4) / (1/4) = 1.
    Arithmetic: ((1/2 + 1/8) / 2) / (1/4) = (5/16) / (1/4) = 5/4.
    """
    answer, wrong = [[log(1 / 4)]], [[[log(1 / 2)], [log(1 / 8)]]]
    assert truth_ratio(answer, None, wrong) == pytest.approx([1.0])
    assert truth_ratio(answer, None, wrong, mean="arithmetic") == pytest.approx([5 / 4])


def test_truth_ratio_prefers_the_paraphrase_row_by_row():
    """Row 0 has a paraphrase of 1/2: r = (1/4)/(1/2); row 1 has none: r = (1/4)/(1/8)."""
    found = truth_ratio(
        [[log(1 / 8)], [log(1 / 8)]], [[log(1 / 2)], None], [[[log(1 / 4)]], [[log(1 / 4)]]]
    )
    assert found == pytest.approx([1 / 2, 2.0])


def test_truth_ratio_epsilon():
    """(1/4) / (1/8 + 3/8) = 1/2."""
    found = truth_ratio([[log(1 / 8)]], None, [[[log(1 / 4)]]], epsilon=3 / 8)
    assert found == pytest.approx([1 / 2])


def test_truth_ratio_forms():
    """r = 1/4 and r = 4.

    Utility max(0, 1 - r): 3/4, 0. Forget min(r, 1/r): 1/4, 1/4; one minus it: 3/4, 3/4.
    Probability 1/(1 + r): 4/5, 1/5.
    """
    answer, wrong = [[log(1 / 2)], [log(1 / 8)]], [[[log(1 / 8)]], [[log(1 / 2)]]]
    assert truth_ratio_utility(answer, None, wrong) == pytest.approx([3 / 4, 0.0])
    assert truth_ratio_forget(answer, None, wrong) == pytest.approx([1 / 4, 1 / 4])
    assert truth_ratio_closer_look(answer, None, wrong) == pytest.approx([3 / 4, 3 / 4])
    assert truth_ratio_probability(answer, None, wrong) == pytest.approx([4 / 5, 1 / 5])


def test_truth_ratio_probability_epsilon():
    """P_right = 1/2, P_wrong = 1/8: (1/2) / (1/2 + 1/8 + 3/8) = 1/2."""
    found = truth_ratio_probability([[log(1 / 2)]], None, [[[log(1 / 8)]]], epsilon=3 / 8)
    assert found == pytest.approx([1 / 2])


def test_a_row_without_wrong_answers_is_unscored():
    answer, wrong = [[-1.0], [-1.0], [-1.0]], [None, [], [[]]]
    for form in (truth_ratio, truth_ratio_forget, truth_ratio_closer_look, truth_ratio_utility):
        assert np.isnan(form(answer, None, wrong)).all()


def test_extreme_ratios_stay_in_range_without_warnings(recwarn):
    answer, wrong = [[-2000.0], [0.0]], [[[0.0]], [[-2000.0]]]
    assert truth_ratio(answer, None, wrong).tolist() == [math.inf, 0.0]
    assert truth_ratio_utility(answer, None, wrong).tolist() == [0.0, 1.0]
    assert truth_ratio_forget(answer, None, wrong).tolist() == [0.0, 0.0]
    assert truth_ratio_closer_look(answer, None, wrong).tolist() == [1.0, 1.0]
    assert truth_ratio_probability(answer, None, wrong).tolist() == [0.0, 1.0]
    assert not recwarn.list


def test_loss_gap_is_signed():
    """A = 2 against A = 1/2: 3/2, and back."""
    assert loss_gap([[-2.0]], [[-0.5]]) == pytest.approx([1.5])
    assert loss_gap([[-0.5]], [[-2.0]]) == pytest.approx([-1.5])


def test_absolute_loss_gap_has_no_sign():
    """|2 - 1/2| = |1/2 - 2| = 3/2; the signed gaps cancel in their mean, these do not."""
    answer, other = [[-2.0], [-0.5], []], [[-0.5], [-2.0], [-1.0]]
    found = absolute_loss_gap(answer, other)
    assert found[:2] == pytest.approx([1.5, 1.5])
    assert loss_gap(answer, other)[:2].sum() == pytest.approx(0.0)
    assert np.isnan(found[2])


@given(st.lists(st.tuples(logps, logps), min_size=1, max_size=5))
def test_loss_gaps_equal_the_slow_twin(pairs):
    answer, other = columns(pairs)
    expected = [sum(b) / len(b) - sum(a) / len(a) for a, b in pairs]
    assert loss_gap(answer, other) == pytest.approx(expected)
    assert absolute_loss_gap(answer, other) == pytest.approx(np.abs(expected))
    assert absolute_loss_gap(other, answer) == pytest.approx(np.abs(expected))
    assert loss_gap(answer, answer) == pytest.approx(np.zeros(len(pairs)))


def test_an_unknown_mean_is_explained():
    with pytest.raises(InputError, match="Did you mean geometric"):
        truth_ratio([[-1.0]], None, [[[-1.0]]], mean="geometrical")


def slow_truth_ratio(answer, paraphrase, wrong, mean):
    """The definition on probabilities, one row at a time."""
    right = paraphrase if paraphrase is not None else answer
    p_right = math.exp(sum(right) / len(right))
    p_wrong = [math.exp(sum(w) / len(w)) for w in wrong]
    if mean == "arithmetic":
        return sum(p_wrong) / len(p_wrong) / p_right
    return math.prod(p_wrong) ** (1 / len(p_wrong)) / p_right


@given(rows, st.sampled_from(["geometric", "arithmetic"]))
def test_truth_ratio_equals_the_slow_twin(samples, mean):
    found = truth_ratio(*columns(samples), mean=mean)
    assert found == pytest.approx([slow_truth_ratio(*row, mean) for row in samples], rel=1e-9)


@given(rows)
def test_values_stay_in_their_range(samples):
    answer, paraphrase, wrong = columns(samples)
    bounded = [
        probability(answer),
        normalized_probability(answer, wrong),
        truth_ratio_utility(answer, paraphrase, wrong),
        truth_ratio_forget(answer, paraphrase, wrong),
        truth_ratio_closer_look(answer, paraphrase, wrong),
        truth_ratio_probability(answer, paraphrase, wrong),
    ]
    for values in bounded:
        assert (values >= 0).all()
        assert (values <= 1).all()
    assert (mean_nll(answer) >= 0).all()


@given(rows)
def test_the_arithmetic_mean_is_never_below_the_geometric(samples):
    geometric = truth_ratio(*columns(samples))
    arithmetic = truth_ratio(*columns(samples), mean="arithmetic")
    assert (arithmetic >= geometric * (1 - 1e-12)).all()
