"""Membership scores, their AUC, privacy leakage."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics.privacy import (
    attack_auc,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    privacy_leakage,
    reference_score,
    zlib_score,
)

scores = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(lambda v: np.array(v, float))


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
