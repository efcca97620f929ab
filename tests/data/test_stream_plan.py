"""The plan of training: a pure function of seed and step."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.data.plan import StreamPlan

PAIRINGS = ["shuffled", "random", "fixed_by_index", "modulo"]

plans = st.builds(
    StreamPlan,
    num_forget=st.integers(1, 23),
    num_retain=st.integers(0, 31),
    num_templates=st.integers(0, 7),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    pairing=st.sampled_from(PAIRINGS),
    shuffle=st.booleans(),
)
few = settings(max_examples=60, deadline=None)


def epoch_picks(plan, epoch):
    steps = plan.steps_per_epoch
    return [pick for i in range(epoch * steps, (epoch + 1) * steps) for pick in plan.step(i)]


@given(plan=plans)
@few
def test_every_epoch_visits_every_forget_row_once(plan):
    for epoch in range(3):
        picks = epoch_picks(plan, epoch)
        assert sorted(pick.forget for pick in picks) == list(range(plan.num_forget))
        if not plan.shuffle:
            assert [pick.forget for pick in picks] == list(range(plan.num_forget))
    sizes = [len(plan.step(i)) for i in range(plan.steps_per_epoch)]
    assert sizes[:-1] == [plan.batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= plan.batch_size


@given(plan=plans)
@few
def test_indices_are_in_range_or_say_that_there_is_none(plan):
    for pick in epoch_picks(plan, 1):
        assert pick.retain in (range(plan.num_retain) if plan.num_retain else [-1])
        assert pick.template in (range(plan.num_templates) if plan.num_templates else [-1])


@given(plan=plans)
@few
def test_shuffled_pairing_uses_up_the_retain_set_before_it_repeats(plan):
    plan = StreamPlan(**{**vars(plan), "pairing": "shuffled", "num_retain": plan.num_retain or 1})
    epochs = 2 + 2 * plan.num_retain // plan.num_forget
    seen = [pick.retain for epoch in range(epochs) for pick in epoch_picks(plan, epoch)]
    for start in range(0, len(seen), plan.num_retain):
        lap = seen[start : start + plan.num_retain]
        assert len(set(lap)) == len(lap)
    assert set(seen) == set(range(plan.num_retain))


@given(plan=plans, step=st.integers(0, 40))
@few
def test_a_resumed_run_sees_what_a_straight_run_sees(plan, step):
    """No state: any step can be asked for first, by a fresh object in another process."""
    straight = [plan.step(i) for i in range(step + 1)][-1]
    resumed = StreamPlan(**vars(plan)).step(step)
    assert straight == resumed


@given(plan=plans)
@few
def test_the_global_random_state_is_neither_read_nor_changed(plan):
    np.random.seed(1)
    first = [plan.step(i) for i in range(5)]
    state = np.random.get_state()[1].tolist()
    np.random.seed(2)
    assert [plan.step(i) for i in range(5)] == first
    np.random.seed(1)
    assert np.random.get_state()[1].tolist() == state


def test_seeds_and_epochs_differ():
    plan = StreamPlan(num_forget=20, num_retain=20, num_templates=20, batch_size=20, seed=0)
    other = StreamPlan(num_forget=20, num_retain=20, num_templates=20, batch_size=20, seed=1)
    columns = [list(zip(*p.step(i), strict=True)) for p in (plan, other) for i in (0, 1)]
    for column in range(3):
        assert len({tuple(c[column]) for c in columns}) == 4
    # The three columns of one step are unrelated as well.
    assert len(set(columns[0])) == 3


def test_fixed_by_index_pairs_a_row_alike_in_every_epoch():
    plan = StreamPlan(
        num_forget=30, num_retain=100, num_templates=9, batch_size=7, pairing="fixed_by_index"
    )
    maps = [{p.forget: p for p in epoch_picks(plan, epoch)} for epoch in range(3)]
    assert maps[0] == maps[1] == maps[2]
    assert len({p.retain for p in maps[0].values()}) > 15
    assert len({p.template for p in maps[0].values()}) > 5


def test_random_pairing_draws_afresh_and_may_repeat():
    plan = StreamPlan(num_forget=50, num_retain=50, batch_size=50, pairing="random")
    first, second = ([p.retain for p in plan.step(i)] for i in (0, 1))
    assert first != second
    assert len(set(first)) < 50
    pooled = [p.retain for i in range(200) for p in plan.step(i)]
    assert min(Counter(pooled).values()) > 100  # 200 expected each, standard deviation 14


def test_modulo_pairs_as_muse_does():
    plan = StreamPlan(num_forget=5, num_retain=3, batch_size=5, pairing="modulo", shuffle=False)
    assert [p.retain for p in plan.step(0)] == [0, 1, 2, 0, 1]


def test_orders_are_uniform():
    """All six orders of three rows, 200 of each expected, standard deviation 13."""
    plan = StreamPlan(num_forget=3, batch_size=3, seed=5)
    counts = Counter(tuple(p.forget for p in plan.step(i)) for i in range(1200))
    assert len(counts) == 6
    assert min(counts.values()) > 140


def test_what_a_seed_means_does_not_change():
    """These picks are part of what makes a run reproducible from one release to the next."""
    plan = StreamPlan(num_forget=4, num_retain=5, num_templates=100, batch_size=3, seed=42)
    assert plan.step(0) + plan.step(1) + plan.step(2) == PINNED


PINNED = [(0, 3, 47), (1, 4, 22), (2, 2, 17), (3, 0, 61), (1, 1, 13), (0, 4, 0), (2, 1, 45)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_forget": 0}, "num_forget: is 0; must be at least 1"),
        ({"num_retain": -1}, "num_retain: is -1"),
        ({"batch_size": 0}, "batch_size: is 0"),
        ({"seed": -1}, "seed: is -1"),
        ({"pairing": "shuffle"}, "Did you mean shuffled"),
    ],
)
def test_wrong_values(wrong, said):
    with pytest.raises(InputError, match=said):
        StreamPlan(**{"num_forget": 3, "batch_size": 2, **wrong})


def test_all_wrong_values_come_together():
    with pytest.raises(InputError) as caught:
        StreamPlan(num_forget=0, batch_size=0, pairing="x")
    assert len(caught.value.problems) == 3
