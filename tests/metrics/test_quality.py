"""Fluency and repetition of generations: small sums by hand and slow twins."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.metrics.quality import clean_probability, perplexity, repetition

tokens = st.lists(st.integers(0, 2), max_size=9)


def test_clean_probability_is_passed_on():
    found = clean_probability([0.25, None, 1.0])
    assert found[[0, 2]].tolist() == [0.25, 1.0]
    assert np.isnan(found[1])


def test_perplexity():
    """A = log 8: perplexity 8. A collapsed model is infinitely surprising, without a warning."""
    found = perplexity([math.log(8), 0.0, None, math.nan, 1e6])
    assert found[:2] == pytest.approx([8.0, 1.0])
    assert np.isnan(found[2:4]).all()
    assert found[4] == math.inf


def test_repetition():
    """a b a b a b: the bigrams are ab ba ab ba ab, 2 of 5 are distinct: 3/5.

    Of its three 4-grams abab baba abab two are distinct: 1/3.
    """
    text = list("ababab")
    assert repetition([text], n=2) == pytest.approx([3 / 5])
    assert repetition([text]) == pytest.approx([1 / 3])
    assert repetition([text], n=1) == pytest.approx([4 / 6])


def test_too_short_a_generation_is_unscored():
    found = repetition([[1, 2, 3], [], None, [1, 2, 3, 4]])
    assert np.isnan(found[:3]).all()
    assert found[3] == 0.0


def test_an_n_gram_has_tokens():
    with pytest.raises(InputError, match="n is 0"):
        repetition([[1]], n=0)


def slow_repetition(row, n):
    """Every n-gram that stands at an earlier place too, counted."""
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    seen_before = sum(gram in grams[:i] for i, gram in enumerate(grams))
    return seen_before / len(grams) if grams else math.nan


@given(st.lists(tokens, max_size=5), st.integers(1, 4))
def test_repetition_equals_the_slow_twin(rows, n):
    found = repetition(rows, n=n)
    assert found == pytest.approx([slow_repetition(row, n) for row in rows], nan_ok=True)
    assert ((found >= 0) & (found < 1) | np.isnan(found)).all()


@given(tokens.filter(lambda row: len(row) >= 4))
def test_what_a_token_is_called_makes_no_difference(row):
    assert repetition([row]) == repetition([[f"t{token}" for token in row]])


@given(st.lists(st.none() | st.floats(0, 2000), max_size=6))
def test_perplexity_is_at_least_one_and_keeps_the_order(nlls):
    found = perplexity(nlls)
    scored = [i for i, nll in enumerate(nlls) if nll is not None]
    assert np.isnan(found).sum() == len(nlls) - len(scored)
    assert (found[scored] >= 1).all()
    order = sorted(scored, key=lambda i: nlls[i])
    assert (found[order][:-1] <= found[order][1:]).all()
