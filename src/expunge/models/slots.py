"""A key-value cache whose rows come and go: one line per answer being written, all on one column.

Answers are written in step, so all lines end in the same column; a prompt that joins later is put
before that column, and what lies left of it is masked. Keys and values lie in buffers with room to
grow: a step writes one column and copies nothing, a line that leaves is overwritten by the last
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from expunge.models.combined_folder import MODEL_TYPE

# Columns of room that a full buffer gets at least.
ROOM = 64
# Leading columns are given up when they are at least this share of all.
TRIM_SHARE = 0.25


class Slots(DynamicCache):  # type: ignore[misc]
    """The cache of the lines being written.

    Attributes:
        rows: Lines in use.
        length: Columns in use.
        starts: First column of each line that holds one of its tokens.
    """

    def __init__(self, config: Any, rows: int) -> None:
        """Make an empty cache.

        Args:
            config: Of the model.
            rows: Most lines that are in use at once; sets no limit, only memory.
        """
        super().__init__(config=config)
        count: int = len(self.layers)  # of all that have keys and values
        self.layers: list[_Layer] = [_Layer(self) for _ in range(count)]
        self.capacity = rows
        self.rows = 0
        self.length = 0
        self.starts: list[int] = []

    def clear(self) -> None:
        """Start again from the first column; the buffers stay."""
        self.rows, self.length, self.starts = 0, 0, []

    def mask(self, device: torch.device) -> Tensor:
        """1 for what each line sees, the column to come included, [rows, length + 1]."""
        starts = torch.tensor(self.starts, device=device)
        columns = torch.arange(self.length + 1, device=device)
        return (columns >= starts[:, None]).long()

    def positions(self, device: torch.device) -> Tensor:
        """Tokens before the one to come, [rows, 1]."""
        return (self.length - torch.tensor(self.starts, device=device))[:, None]

    def advance(self) -> None:
        """Count the column that a step has written."""
        self.length += 1

    def admit(self, lengths: Sequence[int]) -> range:
        """Make lines for prompts of these lengths, in tokens; gives their numbers.

        Their keys and values must be written by `write` for every layer.
        """
        self.length = max(self.length, *lengths)  # only at the start: later prompts are no longer
        new = range(self.rows, self.rows + len(lengths))
        self.rows += len(lengths)
        self.capacity = max(self.capacity, self.rows)
        self.starts += [self.length - length for length in lengths]
        return new

    def write(self, layer: int, line: int, keys: Tensor, values: Tensor) -> None:
        """Put a prompt's keys and values into a line, each [key heads, length, d]."""
        self.layers[layer].write(line, keys, values)

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Give up all lines but these; gives the lines that are now in order.

        Args:
            kept: Their numbers, ascending.
        """
        staying = set(kept)
        holes = [line for line in range(len(kept)) if line not in staying]
        movers = [line for line in kept if line >= len(kept)]
        for layer in self.layers:
            layer.move(movers, holes)
        order = list(range(len(kept)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.starts = [self.starts[line] for line in order]
        self.rows = len(kept)
        return order

    def trim(self, least: int) -> None:
        """Give up leading columns that no line uses, if they are many.

        Args:
            least: Columns that must remain, for prompts to come.
        """
        unused = min(min(self.starts, default=0), self.length - least)
        if unused < max(1, TRIM_SHARE * self.length):
            return
        for layer in self.layers:
            layer.shift(unused, self.length)
        self.length -= unused
        self.starts = [start - unused for start in self.starts]


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one attention layer, [lines, key heads, columns, d], with room."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self._slots = slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        slots = self._slots
        upto = slots.length + 1
        self._reserve(key_states, value_states, upto)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[: slots.rows, :, slots.length : upto] = states
        return self.keys[: slots.rows, :, :upto], self.values[: slots.rows, :, :upto]

    def write(self, line: int, keys: Tensor, values: Tensor) -> None:
        end = self._slots.length
        self._reserve(keys[None], values[None], end)
        self.keys[line, :, end - keys.shape[1] : end] = keys
        self.values[line, :, end - values.shape[1] : end] = values

    def move(self, sources: list[int], targets: list[int]) -> None:
        if sources and self.is_initialized:
            end = self._slots.length
            for buffer in (self.keys, self.values):
                buffer[targets, :, :end] = buffer[sources, :, :end]

    def shift(self, columns: int, length: int) -> None:
        for buffer in (self.keys, self.values):
            buffer[:, :, : length - columns] = buffer[:, :, columns:length].clone()

    def get_seq_length(self) -> int:
        return self._slots.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._slots.length + query_length, 0

    def _reserve(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Room for so many columns in every line; the shapes are those of [*, heads, *, d]."""
        rows = self._slots.capacity
        if not self.is_initialized:
            self.dtype, self.device = keys.dtype, keys.device
            self.keys, self.values = (
                # Not empty: a masked column may hold anything but not-a-number.
                states.new_zeros(rows, states.shape[1], columns + ROOM, states.shape[3])
                for states in (keys, values)
            )
            self.is_initialized = True
        elif columns > self.keys.shape[2] or rows > len(self.keys):
            self.keys, self.values = (
                self._grown(buffer, rows, columns) for buffer in (self.keys, self.values)
            )

    @staticmethod
    def _grown(buffer: Tensor, rows: int, columns: int) -> Tensor:
        lines, heads, old, size = buffer.shape
        wide = old if columns <= old else columns + max(ROOM, columns // 4)
        grown = buffer.new_zeros(max(rows, lines), heads, wide, size)
        grown[:lines, :, :old] = buffer
        return grown


def slots_for(model: nn.Module, rows: int) -> Slots | None:
    """A cache for a model, or None if its layers keep something else than all keys and values."""
    config = getattr(model, "config", None)
    # A combined model makes its cache from those of its parts.
    if config is None or getattr(config, "model_type", None) == MODEL_TYPE:
        return None
    try:
        plain = DynamicCache(config=config).layers
    except (AttributeError, TypeError, ValueError):
        return None
    if not plain or any(type(layer) is not DynamicLayer for layer in plain):
        return None
    return Slots(config, rows)
