"""Bounds of the true distance: they hold as often as they say, and decide at the n they name."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstwobign, norm

from expunge.metrics import bootstrap
from expunge.metrics.aggregate import forget_quality
from expunge.metrics.equivalence import (
    Excess,
    critical_distance,
    decide,
    decide_by_band,
    distance_bounds,
    excess_over_band,
    few_samples_warning,
    ks_distance,
    ks_test,
    middle,
    null_band,
    smallest_detectable,
)


@pytest.fixture
def _fewer_replicates(monkeypatch):
    monkeypatch.setattr(bootstrap, "REPLICATES", 200)
    bootstrap.draws.cache_clear()
    yield
    bootstrap.draws.cache_clear()


def normals(generator, n, shifts, *, shared=0.0):
    """Columns of normal values, one per shift, that have a share of their variance in common."""
    own = generator.normal(0, math.sqrt(1 - shared), (n, len(shifts)))
    return own + generator.normal(0, math.sqrt(shared), (n, 1)) + np.array(shifts)


def true_distance(shift):
    """Of two normal distributions a shift apart: the densities cross half-way between."""
    return 2 * norm.cdf(abs(shift) / 2) - 1


@pytest.mark.parametrize("n", [5, 40, 200, 400])
def test_the_critical_distance_is_the_edge_of_the_test(n):
    """One step of 1/n above it the test rejects at 5%, at it not."""
    steps = round(critical_distance(n, n) * n)
    x = np.arange(n, dtype=float)
    assert ks_test(x, x + steps + 0.5).p_value < 0.05 <= ks_test(x, x + steps).p_value
    assert smallest_detectable(n, n) == pytest.approx((steps + 1) / n)


def test_the_critical_distance_of_unequal_sizes_is_the_asymptotic_one():
    expected = kstwobign.ppf(0.95) * math.sqrt(1 / 200 + 1 / 300)
    assert critical_distance(200, 300) == pytest.approx(expected)
    assert critical_distance(200, 201) == pytest.approx(critical_distance(200, 200), abs=0.01)
    assert critical_distance(3, 3) == 1.0  # not even D = 1 is rejected
    assert critical_distance(1, 2) == 1.0


def test_bounds_by_hand():
    """n = 40, D = 0.325: c = 0.3; one-sided 1.645 / 2 sqrt(2 / 40) = 0.184."""
    bounds = distance_bounds(0.325, 40, 40)
    assert bounds == pytest.approx((0.025, 0.625, 0.325 + 1.6448536 / 2 * math.sqrt(2 / 40)))
    assert distance_bounds(1.0, 40, 40)[1:] == (1.0, 1.0)
    assert distance_bounds(0.0, 40, 40).low == 0.0


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_bounds_hold_at_least_as_often_as_they_say(shift, shared):
    """200 pairs of 50 values: a bound that is wrong in 5% is wrong in more than 20 of them about
    once in a thousand times. On shared rows, which is the case at hand, they are wrong less often.
    """
    generator, truth, wrong = np.random.default_rng(7), true_distance(shift), [0, 0]
    for _ in range(200):
        x, y = normals(generator, 50, [0.0, shift], shared=shared).T
        bounds = distance_bounds(ks_distance(x, y), 50, 50)
        wrong[0] += not bounds.low <= truth <= bounds.high
        wrong[1] += truth > bounds.upper
    assert wrong[0] <= 20
    assert wrong[1] <= 20
    if shared:
        assert sum(wrong) <= 4


def test_the_one_sided_bound_is_not_wider_than_it_must_be():
    """With normals 1.5 apart and n = 50 the worst-case normal bound is exceeded in 1% to 5%."""
    generator, truth = np.random.default_rng(5), true_distance(1.5)
    gaps = [truth - ks_distance(*normals(generator, 50, [0.0, 1.5]).T) for _ in range(300)]
    reach = distance_bounds(0.0, 50, 50).upper
    assert np.quantile(gaps, 0.98) > reach / 2


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([2, 7, 40, 300, 2000]))
def test_a_decision_follows_from_the_bounds(distance, margin, n):
    bounds, found = distance_bounds(distance, n, n), decide(distance, margin, n, n)
    if found.verdict == "inside":
        assert bounds.upper <= margin
    elif found.verdict == "outside":
        assert bounds.low > margin
    else:
        assert bounds.low <= margin < bounds.upper


@pytest.mark.parametrize(("distance", "verdict"), [(0.05, "inside"), (0.2, "outside")])
def test_the_rows_that_would_decide_do(distance, verdict):
    found = decide(distance, 0.1, 40, 40)
    assert found.verdict == "cannot tell"
    rows = found.rows_needed
    # D can be this distance only up to a step of the lattice.
    assert decide(distance, 0.1, rows + 20, rows + 20).verdict == verdict
    assert decide(distance, 0.1, rows - 20, rows - 20).verdict == "cannot tell"
    assert decide(0.1, 0.1, 40, 40).rows_needed is None


def test_small_samples_never_decide_for_sameness():
    """The verdict that a high p-value cannot give is not given by few rows either."""
    x = np.arange(40.0)
    found = forget_quality(x + 0.5, x)
    assert found.p_value > 0.999
    assert found.verdict == "cannot tell"


def test_the_null_band_is_every_pair():
    x = np.arange(100.0)
    band = null_band([x, x + 1, x + 4, np.full(100, math.nan)])
    assert band.distances == pytest.approx([0.01, 0.04, 0.03])
    assert band.num_models == 4
    assert null_band([x]) is None
    assert null_band([]) is None


def test_the_excess_by_hand():
    """D to the retain models 0.20, 0.16, 0.14, among them 0.04, 0.06, 0.02: 0.16 - 0.06."""
    x = np.arange(100.0)
    values, retains = x + 20, [x, x + 4, x + 6]
    gappy = values.copy()
    found = excess_over_band(values, retains)
    assert (found.value, found.n) == (pytest.approx(0.10), 100)
    assert found.low <= found.value <= found.high
    gappy[:3] = math.nan
    assert excess_over_band(gappy, retains).n == 97
    assert math.isnan(excess_over_band(np.full(100, math.nan), retains).value)


def test_the_band_tells_a_model_that_is_off_from_one_that_is_not():
    """Five retain models and 250 shared rows; a model 0.3 standard deviations off is outside,
    one in the middle of them is not. By the general bound of the distance neither could be told.
    """
    generator = np.random.default_rng(1)
    shifts = [0.3, 0.0, -0.1, -0.05, 0.0, 0.05, 0.1]
    columns = normals(generator, 250, shifts, shared=0.9)
    off, between, *retains = columns.T
    assert decide_by_band(excess_over_band(off, retains)).verdict == "outside"
    assert decide_by_band(excess_over_band(between, retains)).verdict == "inside"
    band = null_band(retains)
    distance = ks_distance(off, retains[0])
    assert decide(distance, band.highest, 250, 250).verdict == "cannot tell"


@pytest.mark.usefixtures("_fewer_replicates")
def test_the_excess_is_rarely_called_wrong():
    """Three retain models with shifts of their own, 60 tries: the verdict about the true distances
    is wrong in at most 5%, and 8 of 60 or more would be a chance of one in 100."""
    generator, wrong = np.random.default_rng(11), 0
    for _ in range(60):
        shifts = generator.normal(0, 0.15, 4)
        columns = normals(generator, 90, list(shifts), shared=0.85)
        verdict = decide_by_band(excess_over_band(columns[:, 0], list(columns[:, 1:].T))).verdict
        to = sorted(true_distance(shifts[0] - other) for other in shifts[1:])[1]
        between = max(true_distance(a - b) for a, b in itertools.combinations(shifts[1:], 2))
        wrong += (verdict == "inside" and to > between) or (verdict == "outside" and to <= between)
    assert wrong < 8


@pytest.mark.parametrize(
    ("excess", "verdict", "rows"),
    [
        (Excess(0.1, 0.02, 0.2, 100), "outside", None),
        (Excess(-0.1, -0.2, 0.0, 100), "inside", None),
        # From 0.1 down to -0.1 is twice too far, so four times the rows.
        (Excess(0.1, -0.1, 0.3, 100), "cannot tell", 400),
        (Excess(-0.1, -0.2, 0.2, 100), "cannot tell", 900),
        (Excess(0.0, -0.1, 0.1, 100), "cannot tell", None),
        (Excess(math.nan, math.nan, math.nan, 1), "cannot tell", None),
    ],
)
def test_decisions_by_the_band(excess, verdict, rows):
    found = decide_by_band(excess)
    assert found.verdict == verdict
    assert found.rows_needed == (None if rows is None else pytest.approx(rows, abs=1))


def test_the_middle_of_distances_is_a_real_one():
    assert middle([0.3, 0.1, 0.2]) == 2
    assert middle([0.3, 0.1]) == 0  # of two the larger
    assert middle([0.2]) == 0


def test_few_samples_are_warned_about():
    assert few_samples_warning(100, 100) is None
    assert "below 100" in few_samples_warning(200, 99)
    assert "sees no difference at all" in few_samples_warning(3, 3)


@settings(max_examples=30)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=20).map(np.array),
    st.lists(st.floats(-5, 5), min_size=1, max_size=20).map(np.array),
)
def test_the_distance_without_the_test_is_that_of_the_test(x, y):
    assert ks_distance(x, y) == pytest.approx(ks_test(x, y).statistic)
    assert ks_distance(np.append(x, math.nan), y) == ks_distance(x, y)
    assert math.isnan(ks_distance(x, np.array([math.nan])))
