"""Examples to padded batches. Masks are made here, from lengths, and passed along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.data.encode import Example

IGNORE = -100  # label of a token that does not count, as in transformers


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one stream, or of several one after the other.

    Shape legend: B rows, L tokens.

    Attributes:
        input_ids: Token ids, padding included, int64, [B, L].
        attention_mask: 1 for real tokens, 0 for padding, int64, [B, L].
        labels: The token id where a token is to be learned, else -100, int64, [B, L].
        index: Position of each row in its stream, int64, [B].
        valid: The row counts; rows that only fill a batch do not, bool, [B].
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    index: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            index=self.index.to(device),
            valid=self.valid.to(device),
        )


def collate(
    examples: Sequence[Example],
    *,
    pad_token_id: int,
    pad_to: int | None = None,
    side: Literal["right", "left"] = "right",
    num_rows: int | None = None,
) -> Batch:
    """Pad examples to the longest of them.

    Args:
        examples: One for each row.
        pad_token_id: What stands at padding places; any id will do, since masks do not look at it.
        pad_to: Length to pad to instead; at least that of the longest example.
        side: Where padding goes. Training pads on the right, generation on the left.
        num_rows: Rows of the batch. Missing ones repeat the first example without labels and are
            not valid; with no examples they hold one padding token.

    Raises:
        ValueError: `pad_to` or `num_rows` is too small, or there would be no row at all.
    """
    filler = examples[0].input_ids if examples else (pad_token_id,)
    rows = [example.input_ids for example in examples]
    rows += [filler] * ((num_rows or 0) - len(examples))
    longest = max((len(row) for row in rows), default=0)
    length = longest if pad_to is None else pad_to
    if not rows or length < longest or (num_rows is not None and num_rows < len(examples)):
        raise ValueError(
            f"cannot make {num_rows} rows of {pad_to} tokens from {len(examples)} examples with up "
            f"to {longest} tokens"
        )
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE)
    for i, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        ids = torch.tensor(row, dtype=torch.long)
        input_ids[i, start : start + len(row)] = ids
        attention_mask[i, start : start + len(row)] = 1
        if i < len(examples):
            skip = examples[i].num_prompt
            labels[i, start + skip : start + len(row)] = ids[skip:]
    spare = len(rows) - len(examples)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        index=torch.tensor([example.index for example in examples] + [0] * spare, dtype=torch.long),
        valid=torch.tensor([True] * len(examples) + [False] * spare, dtype=torch.bool),
    )


def concat(batches: Sequence[Batch], *, pad_token_id: int) -> Batch:
    """Rows of several right-padded batches as one batch, padded to the longest.

    Raises:
        ValueError: There is no batch.
    """
    if not batches:
        raise ValueError("no batches to concatenate")
    length = max(batch.input_ids.shape[1] for batch in batches)

    def widen(values: Tensor, fill: int) -> Tensor:
        missing = length - values.shape[1]
        return torch.nn.functional.pad(values, (0, missing), value=fill)

    return Batch(
        input_ids=torch.cat([widen(batch.input_ids, pad_token_id) for batch in batches]),
        attention_mask=torch.cat([widen(batch.attention_mask, 0) for batch in batches]),
        labels=torch.cat([widen(batch.labels, IGNORE) for batch in batches]),
        index=torch.cat([batch.index for batch in batches]),
        valid=torch.cat([batch.valid for batch in batches]),
    )
