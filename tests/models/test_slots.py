"""A cache with slots: what is written, moved and given up."""

import pytest
import torch
from transformers import LlamaConfig

from expunge.models.slots import ROOM, Slots

CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8)


def prompt(value, length):
    """Keys of a prompt: its number in the tens, the token's place in the ones."""
    return (10.0 * value + torch.arange(length))[None, :, None].expand(2, length, 4)


def filled(lengths):
    slots = Slots(CONFIG, len(lengths))
    for line, length in zip(slots.admit(lengths), lengths, strict=True):
        for layer in range(2):
            slots.write(layer, line, prompt(line + 1, length), -prompt(line + 1, length))
    return slots


def seen(slots, line):
    """What a line of the cache holds, without what is masked."""
    mask = slots.mask(torch.device("cpu"))[line, : slots.length].bool()
    layer = slots.layers[1]
    keys, values = (whole[line, 0, : slots.length, 0][mask] for whole in (layer.keys, layer.values))
    assert torch.equal(keys, -values)
    return keys.tolist()


def step(slots, numbers):
    states = torch.tensor(numbers).float()[:, None, None, None].expand(len(numbers), 2, 1, 4)
    for layer in range(2):
        keys, _ = slots.update(states, -states, layer)
        assert keys.shape == (len(numbers), 2, slots.length + 1, 4)
    slots.advance()


def test_lines_end_in_one_column_and_grow_together():
    slots = filled([3, 1])
    assert slots.positions(torch.device("cpu")).tolist() == [[3], [1]]
    step(slots, [13, 21])
    assert seen(slots, 0) == [10, 11, 12, 13]
    assert seen(slots, 1) == [20, 21]
    assert slots.get_seq_length() == 4
    assert slots.get_mask_sizes(1, 0) == (5, 0)


def test_a_line_that_leaves_is_overwritten_by_a_later_one():
    slots = filled([2, 3, 1, 2])
    assert slots.keep([1, 3]) == [3, 1]
    assert slots.rows == 2
    assert seen(slots, 0) == [40, 41]
    assert seen(slots, 1) == [20, 21, 22]
    step(slots, [42, 23])
    assert seen(slots, 0) == [40, 41, 42]


def test_a_prompt_joins_before_the_common_column():
    slots = filled([3, 3])
    step(slots, [13, 23])
    slots.keep([1])
    (line,) = slots.admit([2])
    for layer in range(2):
        slots.write(layer, line, prompt(7, 2), -prompt(7, 2))
    assert seen(slots, 0) == [20, 21, 22, 23]
    assert seen(slots, 1) == [70, 71]
    assert slots.positions(torch.device("cpu")).tolist() == [[4], [2]]


def test_room_is_made_and_nothing_is_lost():
    slots = filled([3])
    for number in range(ROOM + 10):
        step(slots, [13 + number])
    assert seen(slots, 0) == [10.0 + n for n in range(ROOM + 13)]


def test_a_step_writes_one_column_and_copies_nothing():
    slots = filled([3, 2])
    before = slots.layers[0].keys.data_ptr()
    step(slots, [13, 22])
    assert slots.layers[0].keys.data_ptr() == before


@pytest.mark.parametrize(("least", "length"), [(0, 3), (5, 5), (9, 9)])
def test_leading_columns_that_nobody_uses_are_given_up(least, length):
    slots = filled([8, 2])
    step(slots, [18, 22])
    slots.keep([1])
    slots.trim(least)
    assert slots.length == length
    assert seen(slots, 0) == [20, 21, 22]
    step(slots, [23])
    assert seen(slots, 0) == [20, 21, 22, 23]


def test_a_few_unused_columns_are_not_worth_a_copy():
    slots = filled([10, 9])
    slots.keep([1])
    slots.trim(0)
    assert slots.length == 10
