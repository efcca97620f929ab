"""Padding: made from lengths, so that no token id has a meaning of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.collate import collate, concat
from expunge.data.encode import Example


@st.composite
def examples(draw, min_size=1):
    found = []
    for index in range(draw(st.integers(min_size, 5))):
        ids = draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
        num_prompt = draw(st.integers(0, len(ids)))
        found.append(Example(index=index + 10, input_ids=tuple(ids), num_prompt=num_prompt))
    return found


@given(rows=examples(), pad=st.integers(0, 3), side=st.sampled_from(["left", "right"]))
@settings(max_examples=60, deadline=None)
def test_every_token_is_where_it_belongs(rows, pad, side):
    """A slow twin with lists; ids 0..3 make the padding id a normal token as well."""
    length = max(len(row.input_ids) for row in rows) + 2
    batch = collate(rows, pad_token_id=pad, pad_to=length, side=side)
    for i, row in enumerate(rows):
        empty = length - len(row.input_ids)
        labels = [-100] * row.num_prompt + list(row.input_ids[row.num_prompt :])

        def place(values, fill, empty=empty):
            gap = [fill] * empty
            return gap + list(values) if side == "left" else list(values) + gap

        assert batch.input_ids[i].tolist() == place(row.input_ids, pad)
        assert batch.attention_mask[i].tolist() == place([1] * len(row.input_ids), 0)
        assert batch.labels[i].tolist() == place(labels, -100)
    assert batch.index.tolist() == [row.index for row in rows]
    assert batch.valid.all()
    assert len(batch) == len(rows)
    assert {batch.input_ids.dtype, batch.labels.dtype, batch.index.dtype} == {torch.int64}


@given(first=examples(), second=examples())
@settings(max_examples=40, deadline=None)
def test_concatenated_batches_equal_one_batch(first, second):
    joined = concat(
        [collate(first, pad_token_id=3), collate(second, pad_token_id=3)], pad_token_id=3
    )
    whole = collate(first + second, pad_token_id=3)
    for name in ("input_ids", "attention_mask", "labels", "index", "valid"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


ONE = Example(index=4, input_ids=(5, 6, 7), num_prompt=1)


def test_rows_that_only_fill_the_batch_count_nowhere():
    batch = collate([ONE], pad_token_id=0, num_rows=3)
    assert batch.valid.tolist() == [True, False, False]
    assert batch.labels.tolist() == [[-100, 6, 7], [-100] * 3, [-100] * 3]
    # A row without any attended token would give not-a-number in attention.
    assert (batch.attention_mask.sum(-1) > 0).all()
    nothing = collate([], pad_token_id=0, num_rows=2)
    assert nothing.valid.tolist() == [False, False]
    assert (nothing.attention_mask.sum(-1) > 0).all()
    assert (nothing.labels == -100).all()


def test_to_keeps_the_content():
    batch = collate([ONE], pad_token_id=0).to("cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7]]
    assert collate([ONE], pad_token_id=0).to("meta").valid.device.type == "meta"


@pytest.mark.parametrize("wrong", [{"pad_to": 2}, {"num_rows": 0}])
def test_impossible_sizes(wrong):
    with pytest.raises(ValueError, match="cannot make"):
        collate([ONE], pad_token_id=0, **wrong)


def test_nothing_at_all():
    with pytest.raises(ValueError, match="cannot make"):
        collate([], pad_token_id=0)
    with pytest.raises(ValueError, match="no batches"):
        concat([], pad_token_id=0)
