"""ROUGE against counts done by hand and a slow twin of the longest common subsequence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics.overlap import (
    generated_tokens,
    rouge1_f1,
    rouge1_recall,
    rouge_l_f1,
    rouge_l_recall,
)

words = st.lists(st.sampled_from(["sun", "moon", "sea", "sky"]), max_size=6)


def test_order_matters_to_l_and_not_to_1():
    """Reference a b c d, generated d c a b e: 4 of 4 words in common; longest run in order 'a b'.

    ROUGE-1: recall 4/4, precision 4/5, F1 2*(4/5)/(9/5) = 8/9. ROUGE-L: recall 2/4, precision 2/5,
    F1 2*(1/2)(2/5)/(9/10) = 4/9.
    """
    reference, generated = ["aa bb cc dd"], ["dd cc aa bb ee"]
    assert rouge1_recall(reference, generated) == pytest.approx([1.0])
    assert rouge1_f1(reference, generated) == pytest.approx([8 / 9])
    assert rouge_l_recall(reference, generated) == pytest.approx([1 / 2])
    assert rouge_l_f1(reference, generated) == pytest.approx([4 / 9])


def test_stemmer_is_on_by_default():
    reference, generated = ["she was running races"], ["she was runs race"]
    assert rouge_l_recall(reference, generated) == pytest.approx([1.0])
    assert rouge_l_recall(reference, generated, stemmer=False) == pytest.approx([2 / 4])


def test_muse_compares_words_as_they_stand():
    """Without stemmer 2 of 4 words of each side: precision and recall 1/2, F1 1/2."""
    found = rouge_l_f1(["she was running races"], ["she was runs race"], stemmer=False)
    assert found == pytest.approx([1 / 2])
    assert rouge_l_f1(["she was running races"], ["she was runs race"]) == pytest.approx([1.0])


def test_an_empty_generation_scores_zero_and_a_missing_one_nothing():
    found = rouge_l_recall(["a word", "a word"], ["", None])
    assert found[0] == 0
    assert np.isnan(found[1])


@pytest.mark.parametrize("reference", ["", "北京", "!?"])
def test_a_reference_that_rouge_cannot_see_is_unscored(reference):
    assert np.isnan(rouge_l_recall([reference], ["北京 and more"])).all()


def test_generated_tokens_counts():
    found = generated_tokens([3, None])
    assert found[0] == 3
    assert np.isnan(found[1])


def common(a, b):
    """Length of the longest common subsequence, by definition."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + common(a[:-1], b[:-1])
    return max(common(a[:-1], b), common(a, b[:-1]))


@given(words.filter(bool), words)
def test_rouge_l_recall_equals_the_slow_twin(reference, generated):
    found = rouge_l_recall([" ".join(reference)], [" ".join(generated)])
    assert found == pytest.approx([common(reference, generated) / len(reference)])


@given(words.filter(bool), words)
def test_rouge_l_f1_equals_the_slow_twin_and_is_symmetric(reference, generated):
    shared = common(reference, generated)
    expected = 2 * shared / (len(reference) + len(generated))
    pair = [" ".join(reference)], [" ".join(generated)]
    found = rouge_l_f1(*pair, stemmer=False)
    assert found == pytest.approx([expected])
    if generated:
        assert rouge_l_f1(*pair[::-1], stemmer=False) == pytest.approx(found)
