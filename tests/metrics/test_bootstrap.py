"""Draws: the slow twin of every resampled value, and what is drawn together."""

import math

import numpy as np
import pytest

from expunge.metrics import bootstrap
from expunge.metrics.bootstrap import (
    reflected_interval,
    resampled_aucs,
    resampled_distances,
    resampled_maxima,
    resampled_means,
    resampled_medians,
)
from expunge.metrics.equivalence import ks_distance
from expunge.metrics.privacy import attack_auc

COUNTS = np.array([[2, 0, 1, 1], [0, 4, 0, 0], [1, 1, 1, 1.0]])
ROWS = [[0, 0, 2, 3], [1, 1, 1, 1], [0, 1, 2, 3]]


@pytest.fixture
def _three_draws(monkeypatch):
    """Three replicates of four rows, for whatever seed."""
    monkeypatch.setattr(bootstrap, "draws", lambda n, seed=0: COUNTS)


def test_resampled_means_keep_the_values_of_a_sample_together():
    """The second column is one minus the first, so in every draw their means add up to 1."""
    x = np.random.default_rng(0).random(30)
    means = resampled_means(np.stack([x, 1 - x], axis=1))
    assert means.sum(axis=1) == pytest.approx(np.ones(len(means)))
    assert means[:, 0].std() > 0


@pytest.mark.usefixtures("_three_draws")
def test_resampled_means_equal_a_loop():
    """The slow twin draws each sample as often as the counts say and takes nan-means."""
    values = np.array([[1.0, math.nan], [2.0, 5.0], [4.0, 6.0], [8.0, 7.0]])
    expected = [np.nanmean(values[rows], axis=0) for rows in ROWS]
    assert resampled_means(values) == pytest.approx(np.array(expected))


@pytest.mark.usefixtures("_three_draws")
def test_resampled_medians_and_maxima_equal_a_loop():
    values = np.array([3.0, 1.0, 9.0, 3.0])
    drawn = [values[rows] for rows in ROWS]
    assert resampled_medians(values) == pytest.approx([np.median(each) for each in drawn])
    assert resampled_maxima(values) == pytest.approx([each.max() for each in drawn])


@pytest.mark.usefixtures("_three_draws")
@pytest.mark.parametrize("cells", [1, 4_000_000])
def test_resampled_distances_equal_a_loop_in_any_number_of_chunks(monkeypatch, cells):
    monkeypatch.setattr(bootstrap, "_CELLS", cells)
    columns = np.array([[1.0, 2.0, 2.0], [5.0, 1.0, 2.0], [2.0, 2.0, 7.0], [3.0, 9.0, 1.0]])
    pairs = [(0, 1), (0, 2), (2, 1)]
    expected = [
        [ks_distance(columns[rows, i], columns[rows, j]) for i, j in pairs] for rows in ROWS
    ]
    assert resampled_distances(columns, pairs) == pytest.approx(np.array(expected))
    assert resampled_distances(columns, []).shape == (bootstrap.REPLICATES, 0)


@pytest.mark.usefixtures("_three_draws")
def test_resampled_aucs_equal_a_loop_with_ties():
    forget, holdout = np.array([1.0, 3.0, 2.0, 5.0]), np.array([3.0, 2.0, 4.0, 1.0])
    expected = [attack_auc(forget[rows], holdout[rows]) for rows in ROWS]
    assert resampled_aucs(forget, holdout) == pytest.approx(expected)


def test_the_two_sets_of_an_auc_are_drawn_apart_and_equal_sets_alike():
    """Equal scores in both sets: were they drawn together, every AUC would be exactly 1/2."""
    scores = np.arange(30.0)
    assert resampled_aucs(scores, scores).std() > 0.05
    assert (resampled_aucs(scores, scores) == resampled_aucs(scores.copy(), scores)).all()


def test_a_reflected_interval_turns_the_bias_round():
    """Replicates from 1 to 3 around a value of 1: from 2 - 3 to 2 - 1."""
    replicates = np.linspace(1.0, 3.0, 2001)
    assert reflected_interval(1.0, replicates) == pytest.approx((-0.95, 0.95))
