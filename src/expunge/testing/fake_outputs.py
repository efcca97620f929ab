"""Random rows with logits, for checking losses without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.models.outputs import TokenOutputs, outputs_from_logits

VOCABULARY = 13
DIMENSION = 5


@dataclass(frozen=True, kw_only=True)
class FakeRow:
    """One unpadded row: everything a stream could be asked for.

    Attributes:
        input_ids: [L].
        labels: [L], -100 on the prompt.
        logits: [L, V].
        ref_logits: [L, V].
        hidden: [L, D].
        activations: [L, D].
        ref_activations: [L, D].
    """

    input_ids: Tensor
    labels: Tensor
    logits: Tensor
    ref_logits: Tensor
    hidden: Tensor
    activations: Tensor
    ref_activations: Tensor


def fake_row(
    length: int,
    prompt: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
    *,
    vocabulary: int = VOCABULARY,
) -> FakeRow:
    """A row of `length` tokens whose first `prompt` carry no label; with 0 it is plain text."""
    generator = torch.Generator().manual_seed(seed)

    def normal(width: int) -> Tensor:
        return torch.randn(length, width, generator=generator, dtype=torch.float64).to(dtype)

    ids = torch.randint(1, vocabulary, (length,), generator=generator)
    labels = ids.clone()
    labels[:prompt] = -100
    return FakeRow(
        input_ids=ids,
        labels=labels,
        logits=normal(vocabulary),
        ref_logits=normal(vocabulary),
        hidden=normal(DIMENSION),
        activations=normal(DIMENSION),
        ref_activations=normal(DIMENSION),
    )


def fake_control(seed: int = 0) -> Tensor:
    """A direction of length 1 for losses that steer activations, float64, [D]."""
    generator = torch.Generator().manual_seed(seed)
    drawn: Tensor = torch.rand(DIMENSION, generator=generator).double()
    length: Tensor = drawn.norm()
    return drawn / length


def fake_rows(num: int, seed: int, dtype: torch.dtype = torch.float64) -> list[FakeRow]:
    """`num` rows of different lengths and prompts."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(num):
        length = int(torch.randint(3, 9, (), generator=generator))
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        rows.append(fake_row(length, prompt, seed * 101 + i, dtype))
    return rows


def batch_outputs(
    rows: Sequence[FakeRow],
    *,
    pad_to: int = 0,
    indices: Sequence[int] | None = None,
    valid: Sequence[bool] | None = None,
) -> TokenOutputs:
    """Rows padded into one record; the padding holds garbage that must not matter."""
    length = max(pad_to, max(len(row.input_ids) for row in rows))

    def pad(values: Tensor, filling: float) -> Tensor:
        missing = length - len(values)
        return torch.cat([values, torch.full((missing, *values.shape[1:]), filling).to(values)])

    return outputs_from_logits(
        torch.stack([pad(row.logits, 7.5) for row in rows]),
        torch.stack([pad(row.labels, -100) for row in rows]),
        torch.stack([pad(torch.ones_like(row.labels), 0) for row in rows]),
        input_ids=torch.stack([pad(row.input_ids, 0) for row in rows]),
        ref_logits=torch.stack([pad(row.ref_logits, -3.5) for row in rows]),
        hidden=torch.stack([pad(row.hidden, 9.5) for row in rows]),
        activations=torch.stack([pad(row.activations, 5.5) for row in rows]),
        ref_activations=torch.stack([pad(row.ref_activations, -4.5) for row in rows]),
        index=None if indices is None else torch.tensor(indices),
        valid=None if valid is None else torch.tensor(valid),
    )
