"""Exact memorisation, extraction strength, token entropy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics.memorization import exact_memorization, extraction_strength, token_entropy

matches = st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=5)
Y, N = True, False


def test_exact_memorization_drops_the_end_of_turn():
    """Y N Y | Y: 2/3 without the last; 3/4 with it."""
    assert exact_memorization([[Y, N, Y, Y]]) == pytest.approx([2 / 3])
    assert exact_memorization([[Y, N, Y, Y]], drop_last=False) == pytest.approx([3 / 4])


@pytest.mark.parametrize(
    ("match", "expected", "with_floor"),
    [
        ([Y, Y, Y, Y], 1.0, 1.0),  # no prefix needed
        ([N, Y, Y, Y], 3 / 4, 3 / 4),  # one token of four is needed
        ([Y, Y, N, Y], 1 / 4, 1 / 4),  # three are needed, however right the first two were
        ([Y, Y, Y, N], 0.0, 1 / 4),  # the last one is missed; open-unlearning's loop ends before
        ([N], 0.0, 1.0),
    ],
)
def test_extraction_strength(match, expected, with_floor):
    assert extraction_strength([match], drop_last=False) == pytest.approx([expected])
    assert extraction_strength([match], drop_last=False, floor=True) == pytest.approx([with_floor])
    assert extraction_strength([[*match, N]]) == pytest.approx([expected])


def test_answers_without_tokens_are_unscored():
    for metric in (exact_memorization, extraction_strength):
        assert np.isnan(metric([[], None, [Y]])).all()


def slow_strength(match):
    """The smallest k such that everything from k on is right, tried one after the other."""
    k = next(k for k in range(len(match) + 1) if all(match[k:]))
    return 1 - k / len(match)


@given(matches)
def test_extraction_strength_equals_the_slow_twin_and_is_at_most_memorisation(rows):
    scored = [row for row in rows if row]
    found = extraction_strength(scored, drop_last=False)
    assert found == pytest.approx([slow_strength(row) for row in scored])
    assert (found <= exact_memorization(scored, drop_last=False) + 1e-12).all()


def test_token_entropy():
    """a a b b: 1 bit over log2(4) = 1/2; all different: 1; all the same, one or none: 0."""
    found = token_entropy([["a", "a", "b", "b"], ["a", "b", "c"], ["a", "a"], ["a"], [], None])
    assert found[:5] == pytest.approx([1 / 2, 1.0, 0.0, 0.0, 0.0])
    assert np.isnan(found[5])
    assert math.copysign(1, found[2]) == 1


def test_token_entropy_in_bits():
    """a a b b: 1 bit; three different tokens: log2(3)."""
    found = token_entropy([["a", "a", "b", "b"], ["a", "b", "c"], ["a"], None], normalize=False)
    assert found[:3] == pytest.approx([1.0, math.log2(3), 0.0])
    assert np.isnan(found[3])


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_token_entropy_stays_in_range_and_does_not_know_the_order(tokens):
    (found,) = token_entropy([tokens])
    assert 0 <= found <= 1
    assert token_entropy([sorted(tokens)]) == pytest.approx([found])
    bits = -sum(
        tokens.count(t) / len(tokens) * math.log2(tokens.count(t) / len(tokens))
        for t in set(tokens)
    )
    assert found == pytest.approx(bits / math.log2(len(tokens)))


@pytest.mark.parametrize("n", range(2, 40))
def test_rounding_does_not_lift_the_entropy_above_one(n):
    assert token_entropy([range(n)])[0] <= 1.0
