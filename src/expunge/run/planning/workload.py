"""What a run does, in numbers: rows and tokens, passes of the method, settings of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["float32", "mixed", "bfloat16"]

OPTIMIZER_BYTES: dict[str, float] = {
    "adamw": 8.0,
    "adamw_8bit": 2.0 + 8 / 256,
    "adamw_bf16": 4.0,
}
"""Bytes of state per trained number: two float32 moments; two bytes and two float32 scales per
block of 256 (arXiv:2110.02861); two bfloat16 moments, as used with stochastic rounding."""

Attention = Literal["scores", "fused", "rows"]
"""How attention runs: storing its scores (eager); in one fused kernel; row by row in a fused kernel
(packed rows on a CPU)."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rows of one stream.

    Attributes:
        rows: How many rows there are.
        tokens: Tokens of a row on average, prompt and answer.
        labels: Of these, tokens with a label.
        square: Squared length of a row on average, for attention.
        spread: Standard deviation of the length.
        longest: Tokens of the longest row.
    """

    rows: int
    tokens: float
    labels: float
    square: float
    spread: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, tokens: Sequence[int], labels: Sequence[int]) -> Lengths:
        """The lengths of rows that have been tokenised, at least one."""
        number = len(tokens)
        mean = sum(tokens) / number
        square = sum(length**2 for length in tokens) / number
        return cls(
            rows=number,
            tokens=mean,
            labels=sum(labels) / number,
            square=square,
            spread=math.sqrt(max(0.0, square - mean**2)),
            longest=max(tokens),
        )

    @classmethod
    def even(cls, rows: int, tokens: float, labels: float) -> Lengths:
        """Rows that are all of one length."""
        return cls(rows=rows, tokens=tokens, labels=labels, square=tokens**2, longest=tokens)

    def most(self, number: int, draws: int) -> float:
        """Tokens of the largest of `draws` batches of `number` rows, as expected.

        The expected maximum of n normal values lies about sqrt(2 ln n) deviations above their mean.
        """
        above = self.spread * math.sqrt(2 * math.log(max(1, draws)) * number)
        most = number * max(self.longest, self.tokens)
        return min(number * self.tokens + above, most)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Forward passes of a method over its streams.

    Attributes:
        streams: Lengths of every stream.
        trained: Streams that run with gradient, one row of each per forget row.
        ahead: Streams that run once more without gradient in every micro-batch: proxies of EGUP.
        statistics: Streams that run ahead of a step that has several micro-batches.
        references: Where the reference values of a stream come from, by stream: `table`, computed
            once; `adapter_off`, the same weights without the adapter; anything else: a model that
            runs beside the one that trains.
        copies: Frozen models in memory beside the one that trains.
        states: Streams whose table holds hidden states, of which a frozen output head makes whole
            distributions.
        whole: Streams of which whole distributions are read, not only the labels'.
        uphill: Gradients of a step: 1, or 2 for a sharpness-aware update.
    """

    streams: Mapping[str, Lengths]
    trained: tuple[str, ...]
    ahead: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)
    copies: int = 0
    states: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    uphill: int = 1

    def tokens(self, names: Sequence[str]) -> float:
        """Tokens of one row of each of these streams, on average."""
        return sum(self.streams[name].tokens for name in names)

    def labels(self, names: Sequence[str]) -> float:
        """Labels of one row of each."""
        return sum(self.streams[name].labels for name in names)

    def squares(self, names: Sequence[str]) -> float:
        """Squared lengths of one row of each."""
        return sum(self.streams[name].square for name in names)

    def largest(self, names: Sequence[str], number: int, draws: int) -> float:
        """Tokens of the largest micro-batch of `number` rows of each stream, as expected."""
        mean = number * self.tokens(names)
        # Streams vary independently, so their deviations add as squares.
        streams = [self.streams[name] for name in names]
        excess = [each.most(number, draws) - number * each.tokens for each in streams]
        return mean + math.sqrt(sum(value**2 for value in excess))

    def padded(self, names: Sequence[str], number: int) -> float:
        """The same where every row is filled up to the longest one of all streams."""
        longest = max(max(self.streams[n].longest, self.streams[n].tokens) for n in names)
        return number * len(names) * longest


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is trained, as far as cost depends on it.

    Attributes:
        precision: As training.precision.
        micro_batch: Forget rows per forward pass of one device.
        effective_batch: Forget rows per optimizer step, over all devices.
        steps: Optimizer steps of the run.
        checkpointing: Activations are recomputed in the backward pass.
        optimizer: A key of `OPTIMIZER_BYTES`.
        master: float32 copies of weights that train in bfloat16.
        rank: Rank of adapters; 0: the weights themselves train.
        modules: Layers that get an adapter.
        dropout: Whether adapters drop inputs while training.
        frozen_bytes: Bytes per weight under adapters, 4 or 2.
        trainable: "all", or a pattern of parameter names.
        attention: How attention runs.
        packed: Rows follow each other without padding; else all are as long as the longest.
        chunk: Bytes of float32 logits that exist at a time.
    """

    precision: Precision = "float32"
    micro_batch: int = 4
    effective_batch: int = 32
    steps: int = 1
    checkpointing: bool = False
    optimizer: str = "adamw"
    master: bool = False
    rank: int = 0
    modules: tuple[str, ...] = ("all-linear",)
    dropout: bool = True
    frozen_bytes: int = 4
    trainable: str = "all"
    attention: Attention = "fused"
    packed: bool = True
    chunk: int = 64 * 2**20

    @property
    def weight_bytes(self) -> int:
        """Bytes per weight of the model."""
        if self.precision == "bfloat16":
            return 2
        return self.frozen_bytes if self.rank else 4

    @property
    def trained_bytes(self) -> int:
        """Bytes per number that trains; adapters are float32 always."""
        return 4 if self.rank or self.precision != "bfloat16" else 2

    def accumulation(self, world: int) -> int:
        """Micro-batches of one device in one step."""
        return max(1, math.ceil(self.effective_batch / (self.micro_batch * world)))
