"""Passes over a whole stream without gradient: embeddings, reference tables, proxy boundaries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.data.collate import collate
from expunge.data.encode import Example
from expunge.data.streams import Streams
from expunge.models.forward import Precision, StreamRequest, forward_streams
from expunge.models.outputs import Positions, TokenOutputs
from expunge.models.packing import PADDED, Layout


def make_accelerator(**options: Any) -> Accelerator:
    """Processes and devices of this launch; on a machine without accelerators gloo on the CPU.

    accelerate by itself ignores a launcher where it sees no device to distribute over.

    Args:
        **options: Further arguments of `Accelerator`.
    """
    return Accelerator(cpu=not torch.accelerator.is_available(), **options)


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


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How whole streams are run through the model without gradient.

    Attributes:
        model: The unwrapped model.
        streams: The tokenised rows.
        accelerator: Tells which process this is.
        pad_token_id: Filling of short rows.
        precision: How to compute.
        hidden_layer: Layer of the hidden states.
        block: Decoder block whose output is looked at.
        batch_tokens: Padded tokens per batch.
        layout: How rows lie in memory.
    """

    model: nn.Module
    streams: Streams
    accelerator: Any
    pad_token_id: int
    precision: Precision
    hidden_layer: int = -1
    block: int = 0
    batch_tokens: int = 2048
    layout: Layout = PADDED

    def forward(
        self, model: nn.Module, requests: Mapping[str, StreamRequest]
    ) -> dict[str, TokenOutputs]:
        """One forward pass over the rows of several streams."""
        return forward_streams(
            model,
            requests,
            pad_token_id=self.pad_token_id,
            hidden_layer=self.hidden_layer,
            block=self.block,
            precision=self.precision,
            layout=self.layout,
        )

    def over(
        self,
        stream: str,
        extract: Callable[[TokenOutputs], list[Tensor]],
        *,
        reads: frozenset[str] = frozenset(),
        positions: Positions = "labels",
        index: Sequence[int] | None = None,
        model: nn.Module | None = None,
    ) -> list[Tensor]:
        """Apply `extract` to the outputs of every row of a fixed stream: one tensor each, in order.

        The rows are sorted by length, batched by padded tokens and shared among the processes.

        Args:
            stream: Name of the stream.
            extract: From the record of a batch, one tensor per row.
            reads: Fields to fill.
            positions: Logit positions to keep.
            index: Rows to run; all if None.
            model: Another model than the one that trains.
        """
        stored = self.streams.fixed(stream)
        examples = stored if index is None else [stored[i] for i in index]
        ordered = sorted(examples, key=lambda example: len(example.input_ids))
        batches = _by_tokens(ordered, self.batch_tokens)
        found: list[tuple[int, Tensor]] = []
        chosen = self.model if model is None else model
        with inference(chosen):
            for batch in batches[self.accelerator.process_index :: self.accelerator.num_processes]:
                rows = collate(batch, pad_token_id=self.pad_token_id).to(self.accelerator.device)
                request = StreamRequest(rows=rows, reads=reads, positions=positions)
                outputs = self.forward(chosen, {stream: request})[stream]
                values = [value.detach().cpu() for value in extract(outputs)]
                found += list(zip(rows.index.tolist(), values, strict=True))
        gathered = dict(gather_objects(self.accelerator, found))
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
