"""One forward pass over several streams: rows stacked, logits only where something reads them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.models.head import HeadRequest, answering_head, innermost, output_head
from expunge.models.outputs import Positions, TokenOutputs, shift_left, upcast
from expunge.models.packing import PADDED, Layout, is_packable, packed_arguments, packed_pass


class Rows(Protocol):
    """Padded rows of one stream, right-padded, [B, L] each; `index` and `valid` are [B]."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids."""

    @property
    def attention_mask(self) -> Tensor:
        """1 for a real token."""

    @property
    def labels(self) -> Tensor:
        """Token ids, -100 where a token does not count."""

    @property
    def index(self) -> Tensor:
        """Index of each row in its stream."""

    @property
    def valid(self) -> Tensor:
        """Rows that take part."""


@dataclass(frozen=True, kw_only=True)
class StreamRequest:
    """What is wanted of one stream.

    Attributes:
        rows: The padded rows.
        reads: Fields of `TokenOutputs` to fill beyond log-probabilities and masks.
        positions: Logit positions to keep.
    """

    rows: Rows
    reads: frozenset[str] = frozenset()
    positions: Positions = "labels"

    @property
    def reads_logits(self) -> bool:
        """Whether whole distributions are wanted."""
        return "logits" in self.reads or "ref_logits" in self.reads

    @property
    def reads_activations(self) -> bool:
        """Whether the output of a decoder block is wanted."""
        return "activations" in self.reads or "ref_activations" in self.reads


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a forward pass computes. `autocast` runs matrix products in bfloat16."""

    autocast: bool = False

    def context(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The autocast context for a device, or nothing."""
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def forward_streams(
    model: nn.Module,
    requests: Mapping[str, StreamRequest],
    *,
    pad_token_id: int,
    hidden_layer: int = -1,
    block: int = 0,
    precision: Precision = Precision(),
    layout: Layout = PADDED,
) -> dict[str, TokenOutputs]:
    """Run all streams through the model in one forward pass.

    Args:
        model: A causal language model, possibly wrapped for training.
        requests: Streams by name.
        pad_token_id: Token that fills rows up to the longest of all streams.
        hidden_layer: Layer of the hidden states, for streams that read `hidden`.
        block: Decoder block whose output is kept, counted from 0, for streams that read
            `activations`. The last block's is only known after the final norm.
        precision: How to compute.
        layout: How the rows lie in memory, and who makes log-probabilities of hidden states. Rows
            of a model that was not made `packable` are padded.

    Returns:
        A record per stream, without reference values.
    """
    grid = _lay_out(model, list(requests.values()), pad_token_id, layout)
    parts = [
        _Part(request, place) for request, place in zip(requests.values(), grid.places, strict=True)
    ]
    kept = _kept(parts, grid)
    selects = accepts_logits_to_keep(model)
    arguments: dict[str, Any] = {"use_cache": False, **grid.arguments}
    if any("hidden" in part.request.reads or part.request.reads_activations for part in parts):
        arguments["output_hidden_states"] = True
    if selects:
        arguments["logits_to_keep"] = kept
    wanted = _head_request(parts, kept, grid) if selects else _head_request(parts, None, grid)
    head = output_head(model) if layout.fused_head else None
    with (
        precision.context(grid.input_ids.device),
        packed_pass() if grid.packed else contextlib.nullcontext(),
        contextlib.nullcontext() if head is None else answering_head(head, wanted),
    ):
        result = model(input_ids=grid.input_ids, **arguments)
    logps, logits = (
        wanted.answer_logits(result.logits) if isinstance(result.logits, Tensor) else result.logits
    )
    outputs: dict[str, TokenOutputs] = {}
    at_logps = at_logits = 0
    for name, part in zip(requests, parts, strict=True):
        own_logps = logps[at_logps : at_logps + len(part.labelled)]
        own_logits = logits[at_logits : at_logits + len(part.whole)]
        at_logps, at_logits = at_logps + len(part.labelled), at_logits + len(part.whole)
        record = part.record(own_logps, own_logits)
        if "hidden" in part.request.reads:
            record = replace(record, hidden=part.spread(result.hidden_states[hidden_layer]))
        if part.request.reads_activations:
            states = part.spread(result.hidden_states[block + 1])
            record = replace(record, activations=states[:, record.columns])
        outputs[name] = record
    return outputs


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The token ids of a forward pass and where every token of every stream lies in them.

    Attributes:
        input_ids: [R, W]; R is 1 for packed rows.
        arguments: Further arguments of the model.
        places: Flat place in `input_ids` of every token of each stream, -1 for padding that is not
            there, [B, L] each.
        packed: Rows lie one after the other.
    """

    input_ids: Tensor
    arguments: dict[str, Any]
    places: list[Tensor]
    packed: bool


def _lay_out(
    model: nn.Module, requests: Sequence[StreamRequest], pad_token_id: int, layout: Layout
) -> _Grid:
    lengths = [request.rows.attention_mask.sum(-1).tolist() for request in requests]
    longest = max(max(own) for own in lengths)
    # Padding has logits of its own only in padded rows.
    bare = any(request.reads_logits and request.positions == "all" for request in requests)
    whole = all(min(own) > 0 for own in lengths)
    if layout.fits(longest) and is_packable(model) and whole and not bare:
        return _packed(requests, [int(n) for own in lengths for n in own])
    return _padded(requests, pad_token_id, layout.bucket)


def _packed(requests: Sequence[StreamRequest], lengths: list[int]) -> _Grid:
    tokens, places, start = [], [], 0
    for request in requests:
        attended = request.rows.attention_mask.bool()
        own = request.rows.input_ids[attended]
        place = torch.full_like(request.rows.input_ids, -1)
        place[attended] = torch.arange(start, start + len(own), device=place.device)
        tokens.append(own)
        places.append(place)
        start += len(own)
    input_ids = torch.cat(tokens)[None]
    arguments = packed_arguments(lengths, input_ids.device)
    return _Grid(input_ids=input_ids, arguments=arguments, places=places, packed=True)


def _padded(requests: Sequence[StreamRequest], pad_token_id: int, bucket: int) -> _Grid:
    streams = [request.rows for request in requests]
    length = max(rows.input_ids.shape[1] for rows in streams)
    length = -(-length // bucket) * bucket

    def fill(values: Tensor, value: int) -> Tensor:
        return F.pad(values, (0, length - values.shape[1]), value=value)

    places, start = [], 0
    for rows in streams:
        count, own = rows.input_ids.shape
        columns = torch.arange(own, device=rows.input_ids.device)
        first = torch.arange(start, start + count, device=columns.device)
        places.append(first[:, None] * length + columns)
        start += count
    return _Grid(
        input_ids=torch.cat([fill(rows.input_ids, pad_token_id) for rows in streams]),
        arguments={"attention_mask": torch.cat([fill(rows.attention_mask, 0) for rows in streams])},
        places=places,
        packed=False,
    )


def _selectable(request: StreamRequest, columns: Tensor, mask: Tensor) -> Tensor:
    """Logit positions that a mask of the record may select, bool, [B, T]."""
    rows = request.rows
    if request.positions == "unshifted":
        return mask | (rows.labels != -100)[:, columns]
    if request.positions == "nonpad":
        return mask | rows.attention_mask.bool()[:, columns]
    return mask if request.positions == "labels" else torch.ones_like(mask)


class _Part:
    """One stream of a forward pass: what it needs of the head, and its record from that."""

    def __init__(self, request: StreamRequest, place: Tensor) -> None:
        self.request = request
        self.place = place
        rows = request.rows
        # Only the stream's own columns: what another stream needs must not change its counts.
        self.columns = _needed(request).nonzero()[:, 0]
        self.mask = shift_left(rows.labels != -100)[:, self.columns]
        self.targets = shift_left(rows.labels)[:, self.columns]
        own = place[:, self.columns]
        empty = own.new_zeros(0)
        if request.reads_logits:
            self.present = _selectable(request, self.columns, self.mask)
            self.labelled, self.whole = empty, own[self.present]
        else:
            self.labelled, self.whole = own[self.mask], empty

    def record(self, logps: Tensor, logits: Tensor) -> TokenOutputs:
        """The record, from log-probabilities of `labelled` or logits of `whole`."""
        rows = self.request.rows
        if not self.request.reads_logits:
            empty = logps.new_zeros(self.mask.shape)
            return _masks(rows, self.columns, logps=empty.masked_scatter(self.mask, logps))
        shape = (*self.mask.shape, logits.shape[-1])
        if self.present.all():
            whole = upcast(logits).view(shape)
        else:
            # What no mask of the record selects has flat logits.
            empty = upcast(logits).new_zeros(shape)
            whole = empty.masked_scatter(self.present[..., None], upcast(logits))
        picked = whole.log_softmax(-1).gather(-1, self.targets.clamp(min=0)[..., None])[..., 0]
        masked = picked.masked_fill(~self.mask, 0.0)
        return replace(_masks(rows, self.columns, logps=masked), logits=whole)

    def spread(self, states: Tensor) -> Tensor:
        """States of the whole grid, [R, W, D], as those of this stream, 0 where nothing is."""
        flat = states.reshape(-1, states.shape[-1])
        own = flat[self.place.clamp(min=0)]
        return own.masked_fill((self.place < 0)[..., None], 0.0)


def _kept(parts: Sequence[_Part], grid: _Grid) -> Tensor:
    """Columns of the grid whose hidden states the head sees, sorted, [T]."""
    width = grid.input_ids.shape[1]
    needed = torch.zeros(width, dtype=torch.bool, device=grid.input_ids.device)
    for part in parts:
        needed[part.labelled % width] = True
        needed[part.whole % width] = True
    if not needed.any():
        needed[0] = True  # a model cannot return no logits at all
    return needed.nonzero()[:, 0]


def _head_request(parts: Sequence[_Part], kept: Tensor | None, grid: _Grid) -> HeadRequest:
    """What is wanted of the head, by place in what the head sees."""
    width = grid.input_ids.shape[1]

    def seen(places: Tensor) -> Tensor:
        if kept is None:
            return places
        return places // width * len(kept) + torch.searchsorted(kept, places % width)

    return HeadRequest(
        labelled=seen(torch.cat([part.labelled for part in parts])),
        targets=torch.cat(
            [part.targets[part.mask] for part in parts if not part.request.reads_logits]
            or [kept.new_zeros(0) if kept is not None else parts[0].whole.new_zeros(0)]
        ),
        whole=seen(torch.cat([part.whole for part in parts])),
    )


def mask_outputs(rows: Rows) -> TokenOutputs:
    """A record with right masks and no values, for counting before a forward pass."""
    columns = torch.arange(rows.labels.shape[1], device=rows.labels.device)
    return _masks(rows, columns, logps=torch.zeros_like(rows.labels, dtype=torch.float32))


def with_reference(outputs: TokenOutputs, reference: TokenOutputs) -> TokenOutputs:
    """`outputs` completed with what a reference pass on its rows gave."""
    return replace(
        outputs,
        ref_logps=reference.logps,
        ref_logits=reference.logits,
        ref_activations=reference.activations,
    )


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the innermost model can restrict its logits to chosen positions."""
    return "logits_to_keep" in inspect.signature(innermost(model).forward).parameters


def _labelled(request: StreamRequest) -> Tensor:
    """Positions that predict a labelled token of some row, bool, [L]."""
    return shift_left(request.rows.labels != -100).any(0)


def _needed(request: StreamRequest) -> Tensor:
    """Positions that the record of a stream has, bool, [L]."""
    rows = request.rows
    labelled = _labelled(request)
    if request.positions == "labels":
        return labelled
    if request.positions == "unshifted":
        return labelled | (rows.labels != -100).any(0)
    if request.positions == "nonpad":
        return labelled | rows.attention_mask.bool().any(0)
    return torch.ones_like(labelled)


def _masks(rows: Rows, columns: Tensor, *, logps: Tensor) -> TokenOutputs:
    attended = rows.attention_mask.bool()
    labelled = rows.labels != -100
    return TokenOutputs(
        logps=logps,
        mask=shift_left(labelled)[:, columns],
        nonpad=attended[:, columns],
        predicts=shift_left(attended)[:, columns],
        not_last=shift_left(torch.ones_like(attended))[:, columns],
        targets=shift_left(rows.input_ids)[:, columns],
        num_labels=labelled.sum(-1),
        valid=rows.valid,
        index=rows.index,
        columns=columns,
        hidden_mask=attended,
        label_mask=labelled,
    )
