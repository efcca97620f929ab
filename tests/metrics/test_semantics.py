"""Cosine similarity and entailment: from the verdicts of judges to values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics import metrics
from expunge.metrics.semantics import (
    cosine_similarity,
    entailment_metric,
    entailment_score,
    entailment_score_reference_first,
    final_labels,
)

labels = st.sampled_from(["entailment", "neutral", "contradiction", "not_entailment"])
words = st.lists(st.sampled_from(["sun", "moon", "sea"]), min_size=1, max_size=4).map(" ".join)
rows = st.lists(st.tuples(st.none() | labels, words, words), min_size=1, max_size=6)


def columns(samples):
    return tuple(map(list, zip(*samples, strict=True)))


def test_cosine_similarity_is_never_negative():
    found = cosine_similarity([0.5, -0.5, 1.0000001, None, math.nan])
    assert found[:3].tolist() == [0.5, 0.0, 1.0]
    assert np.isnan(found[3:]).all()


@given(st.lists(st.none() | st.floats(-1, 1), max_size=8))
def test_cosine_similarity_equals_the_slow_twin(cosines):
    expected = [math.nan if c is None else (c if c > 0 else 0.0) for c in cosines]
    np.testing.assert_array_equal(cosine_similarity(cosines), expected)


def test_a_generation_without_the_answers_words_entails_nothing():
    """Recall 1/11 of the answer's words is below 0.1, 1/10 is not."""
    answers = [" ".join(f"word{i}" for i in range(n)) for n in (11, 10)]
    generations = ["word0 and more", "word0 and more"]
    verdicts = ["entailment", "entailment"]
    assert final_labels(verdicts, answers, generations) == ["none", "entailment"]
    assert entailment_score(verdicts, answers, generations).tolist() == [0.0, 1.0]
    assert entailment_score(verdicts, answers, generations, min_recall=0.0).tolist() == [1.0, 1.0]
    high = entailment_score(verdicts, answers, generations, min_recall=0.2)
    assert high.tolist() == [0.0, 0.0]


def test_word_stems_count_as_in_closer_look():
    """ "runs races" holds the stems of "running race": recall 1."""
    assert final_labels(["entailment"], ["running race"], ["runs races"], min_recall=0.9) == [
        "entailment"
    ]


def test_what_has_no_verdict_is_unscored():
    found = entailment_score([None, "neutral"], ["a word", "a word"], [None, ""])
    assert np.isnan(found[0])
    assert found[1] == 0.0


def test_the_classifier_decides_where_rouge_sees_no_word():
    found = entailment_score(["entailment", "neutral"], ["北京", "北京"], ["北京", "北京"])
    assert found.tolist() == [1.0, 0.0]


def test_each_metric_reads_its_own_order():
    table = {
        "nli_generation_first": ["entailment"],
        "nli_reference_first": ["neutral"],
        "answer": ["a word"],
        "generation": ["a word"],
    }
    assert metrics.get("entailment_score")(table).tolist() == [1.0]
    assert metrics.get("entailment_score_reference_first")(table).tolist() == [0.0]


@pytest.mark.parametrize(
    ("forget", "tofu", "expected"),
    [
        (True, True, "entailment_score"),
        (False, True, "entailment_score_reference_first"),
        (True, False, "entailment_score"),
        (False, False, "entailment_score"),
    ],
)
def test_who_is_the_premise(forget, tofu, expected):
    assert entailment_metric(forget=forget, tofu=tofu) == expected
    assert expected in metrics


def slow_entailment(label, answer, generation):
    """By definition, with the recall of the longest common subsequence."""

    def common(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return 1 + common(a[:-1], b[:-1])
        return max(common(a[:-1], b), common(a, b[:-1]))

    if label is None:
        return math.nan
    recall = common(answer.split(), generation.split()) / len(answer.split())
    return float(label == "entailment" and recall >= 0.1)


@given(rows)
def test_entailment_equals_the_slow_twin_in_both_orders(samples):
    expected = [slow_entailment(*sample) for sample in samples]
    for score in (entailment_score, entailment_score_reference_first):
        np.testing.assert_array_equal(score(*columns(samples)), expected)


@given(rows)
def test_each_sample_stands_alone(samples):
    alone = [entailment_score(*columns([sample]))[0] for sample in samples]
    np.testing.assert_array_equal(entailment_score(*columns(samples)), alone)
    turned = entailment_score(*columns(samples[::-1]))
    np.testing.assert_array_equal(turned[::-1], alone)
