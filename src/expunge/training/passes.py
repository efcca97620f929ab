"""Passes over a whole stream without gradient: embeddings, reference tables, proxy boundaries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.collate import collate
from expunge.data.encode import Example
from expunge.models.forward import Precision, StreamRequest, forward_streams
from expunge.models.outputs import Positions, TokenOutputs


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Without gradient and without dropout; the mode of the model is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def run_over(
    model: nn.Module,
    examples: Sequence[Example],
    extract: Callable[[TokenOutputs], list[Tensor]],
    *,
    accelerator: Any,
    pad_token_id: int,
    batch_tokens: int,
    reads: frozenset[str] = frozenset(),
    positions: Positions = "labels",
    hidden_layer: int = -1,
    precision: Precision = Precision(),  # noqa: B008 - frozen
) -> list[Tensor]:
    """Apply `extract` to the outputs of every example and return one tensor each, in order.

    The examples are sorted by length, batched by padded tokens and shared among the processes.

    Args:
        model: The unwrapped model.
        examples: One per row of the stream, indices 0 to n - 1.
        extract: From the record of a batch, one tensor per row.
        accelerator: Tells which process this is.
        pad_token_id: Filling.
        batch_tokens: Padded tokens per batch.
        reads: Fields to fill.
        positions: Logit positions to keep.
        hidden_layer: Layer of the hidden states.
        precision: How to compute.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    batches = _by_tokens([examples[i] for i in order], batch_tokens)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, Tensor]] = []
    with inference(model):
        for batch in mine:
            rows = collate(batch, pad_token_id=pad_token_id).to(accelerator.device)
            request = StreamRequest(rows=rows, reads=reads, positions=positions)
            outputs = forward_streams(
                model,
                {"rows": request},
                pad_token_id=pad_token_id,
                hidden_layer=hidden_layer,
                precision=precision,
            )["rows"]
            values = [value.detach().cpu() for value in extract(outputs)]
            found += list(zip(rows.index.tolist(), values, strict=True))
    gathered = dict(gather_objects(accelerator, found))
    return [gathered[example.index] for example in examples]


def gather_objects(accelerator: Any, items: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other, on every process."""
    if accelerator.num_processes == 1:
        return items
    gathered: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def _by_tokens(examples: Sequence[Example], batch_tokens: int) -> list[list[Example]]:
    batches: list[list[Example]] = []
    longest = 0
    for example in examples:
        longest = max(longest, len(example.input_ids))
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
            longest = len(example.input_ids)
    return batches
