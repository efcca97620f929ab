"""One forward pass over several streams: rows stacked, logits only where something reads them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.models.outputs import Positions, TokenOutputs, shift_left, upcast


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


class _Stacked(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor


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

    Returns:
        A record per stream, without reference values.
    """
    stacked = _stack([request.rows for request in requests.values()], pad_token_id)
    kept = _kept_columns(list(requests.values()), stacked.input_ids.shape[1])
    wants_hidden = any("hidden" in request.reads for request in requests.values())
    wants_block = any(request.reads_activations for request in requests.values())
    arguments: dict[str, Any] = {"use_cache": False}
    if wants_hidden or wants_block:
        arguments["output_hidden_states"] = True
    selects = accepts_logits_to_keep(model)
    if selects:
        arguments["logits_to_keep"] = kept
    with precision.context(stacked.input_ids.device):
        result = model(
            input_ids=stacked.input_ids, attention_mask=stacked.attention_mask, **arguments
        )
    logits = result.logits if selects else result.logits[:, kept]
    hidden = result.hidden_states[hidden_layer] if wants_hidden else None
    activations = result.hidden_states[block + 1] if wants_block else None
    outputs: dict[str, TokenOutputs] = {}
    start = 0
    for name, request in requests.items():
        rows = slice(start, start + len(request.rows.index))
        length = request.rows.labels.shape[1]
        record = _record(request, logits[rows], kept)
        if hidden is not None and "hidden" in request.reads:
            record = replace(record, hidden=hidden[rows, :length])
        if activations is not None and request.reads_activations:
            record = replace(record, activations=activations[rows][:, record.columns])
        outputs[name] = record
        start = rows.stop
    return outputs


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


def with_reference_logps(outputs: TokenOutputs, table: list[Tensor]) -> TokenOutputs:
    """`outputs` completed from stored log-probabilities of the labelled tokens of every row.

    Args:
        outputs: The record to complete.
        table: For every row of the stream, its reference log-probabilities in order, [n].
    """
    ref = torch.zeros_like(outputs.logps)
    # Rows that only fill a batch carry no labels and have no entry of their own.
    values = [table[i] for i in outputs.index[outputs.valid].tolist()]
    if values:
        ref[outputs.mask] = torch.cat(values).to(ref)
    return replace(outputs, ref_logps=ref)


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the innermost model can restrict its logits to chosen positions."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            break
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _stack(streams: list[Rows], pad_token_id: int) -> _Stacked:
    length = max(rows.input_ids.shape[1] for rows in streams)

    def fill(values: Tensor, value: int) -> Tensor:
        return F.pad(values, (0, length - values.shape[1]), value=value)

    return _Stacked(
        input_ids=torch.cat([fill(rows.input_ids, pad_token_id) for rows in streams]),
        attention_mask=torch.cat([fill(rows.attention_mask, 0) for rows in streams]),
    )


def _kept_columns(requests: list[StreamRequest], length: int) -> Tensor:
    """Sorted logit positions that any row of any stream needs."""
    device = requests[0].rows.labels.device
    needed = torch.zeros(length, dtype=torch.bool, device=device)
    for request in requests:
        # Whole positions of a stream whose logits nobody reads need none of the vocabulary.
        columns = _needed(request) if request.reads_logits else _labelled(request)
        needed[: len(columns)] |= columns
    if not needed.any():
        needed[0] = True  # a model cannot return no logits at all
    return needed.nonzero()[:, 0]


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


def _record(request: StreamRequest, logits: Tensor, kept: Tensor) -> TokenOutputs:
    rows = request.rows
    # Only the stream's own columns: what another stream needs must not change this one's counts.
    own = _needed(request).nonzero()[:, 0]
    targets = shift_left(rows.labels)[:, own]
    mask = shift_left(rows.labels != -100)[:, own]
    if request.reads_logits:
        logits = upcast(logits[:, torch.searchsorted(kept, own)])
        picked = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        logps = picked.masked_fill(~mask, 0.0)
        return replace(_masks(rows, own, logps=logps), logits=logits)
    # The rows of the vocabulary matrix that are no answers never become float32.
    labelled = _labelled(request).nonzero()[:, 0]
    answers = logits[:, torch.searchsorted(kept, labelled)][
        shift_left(rows.labels != -100)[:, labelled]
    ]
    wanted = -F.cross_entropy(upcast(answers), targets[mask], reduction="none")
    return _masks(rows, own, logps=wanted.new_zeros(mask.shape).masked_scatter(mask, wanted))


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
