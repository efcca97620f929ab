"""Rows one after the other in one long row, attention inside each row alone: no padding anywhere.

On a CPU attention runs row by row; on a GPU the variable-length flash kernel does the same. What a
model supports is found out by trying: a few tokens are run both ways, and a model for which the
results differ keeps padded rows.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.models.attention import attending
from expunge.models.head import HeadRequest, answering_head, innermost, output_head

logger = logging.getLogger(__name__)

Packing = Literal["auto", "off"]
ATTENTION = "expunge_packed"
"""Name under which transformers knows the attention of packed rows."""

KWARG = "packed_lengths"
"""Argument of a model's forward pass that says how long the rows are."""

_PACKED: contextvars.ContextVar[bool] = contextvars.ContextVar("packed rows", default=False)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a forward pass lie in memory.

    Attributes:
        packed: Rows lie one after the other instead of padded to the longest.
        longest: Rows of more tokens than this are padded; for attention with a window.
        fused_head: Log-probabilities of labels come from hidden states, in pieces.
        bucket: Padded rows are filled up to a multiple of this, so that few lengths occur.
    """

    packed: bool = False
    longest: int | None = None
    fused_head: bool = False
    bucket: int = 1

    def fits(self, longest: int) -> bool:
        """Whether rows of up to `longest` tokens may be packed."""
        return self.packed and (self.longest is None or longest <= self.longest)


PADDED = Layout()
"""Padded rows and the model's own head: what every model can do."""


# The attention ------------------------------------------------------------------------------------


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each of the rows that `packed_lengths` counts.

    Signature and shapes are those of transformers' attention functions. Without lengths this is its
    `sdpa`.

    Args:
        module: The attention layer.
        query: [1, heads, N, d].
        key: [1, key heads, N, d].
        value: [1, key heads, N, d].
        attention_mask: Mask of padded rows, if they are not packed.
        dropout: Share of attention weights that are dropped.
        scaling: Factor of the scores.
        **kwargs: What a model passes along, `packed_lengths` among them.

    Returns:
        [1, N, heads, d] and no weights.

    Raises:
        ValueError: The layer asks for something that packed rows do not support.
    """
    lengths = kwargs.pop(KWARG, None)
    if lengths is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        kwargs.pop("is_causal", None)
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return found
    odd = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if odd:
        raise ValueError(f"packed attention does not know {', '.join(odd)}")
    # A tensor and no tuple: compiled layers hand it on, and do not count its entries.
    sizes = lengths.tolist()
    if query.is_cuda:
        return _varlen(query, key, value, sizes, dropout, scaling), None
    # Half-precision kernels of a CPU are slow backwards, and their products are a small part.
    queries, keys, values = (
        torch.split(half.float() if half.dtype == torch.bfloat16 else half, sizes, dim=2)
        for half in (query, key, value)
    )
    grouped = query.shape[1] != key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        rows = [
            F.scaled_dot_product_attention(
                own,
                seen,
                said,
                dropout_p=dropout,
                scale=scaling,
                is_causal=True,
                enable_gqa=grouped,
            ).transpose(1, 2)
            for own, seen, said in zip(queries, keys, values, strict=True)
        ]
    return torch.cat(rows, dim=1).to(query.dtype), None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    dropout: float,
    scaling: float | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise ValueError("packed attention on a GPU has no dropout")
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ends = ends.to(query.device, non_blocking=True)
    own, seen, said = (whole[0].transpose(0, 1) for whole in (query, key, value))
    found = varlen_attn(
        own,
        seen,
        said,
        ends,
        ends,
        max(lengths),
        max(lengths),
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor), "nothing besides the output was asked for"
    return found[None]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of padded rows; packed ones have none."""
    if _PACKED.get():
        return None
    from transformers.masking_utils import sdpa_mask

    found: Tensor | None = sdpa_mask(*args, **kwargs)
    return found


@contextlib.contextmanager
def packable(model: nn.Module, *, compiled: bool = False) -> Iterator[None]:
    """The model can take packed rows until this ends, also when activations are recomputed.

    Args:
        model: A model of transformers, possibly wrapped.
        compiled: The layers are compiled; attention row by row, which would be compiled anew for
            every batch, stays as it is between their pieces.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    attention: Any = packed_attention
    if compiled:
        attention = torch.compiler.disable(packed_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, _mask)
    with attending(model, ATTENTION):
        yield


def is_packable(model: nn.Module) -> bool:
    """Whether the model can take packed rows right now."""
    return getattr(innermost(model).config, "_attn_implementation", None) == ATTENTION


@contextlib.contextmanager
def packed_pass() -> Iterator[None]:
    """A forward pass over packed rows; their mask is in their lengths."""
    token = _PACKED.set(True)
    try:
        yield
    finally:
        _PACKED.reset(token)


def packed_arguments(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """Arguments of a forward pass over packed rows besides their tokens.

    Args:
        lengths: Tokens of each row.
        device: Where the model is.
    """
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"position_ids": places.to(device), KWARG: torch.tensor(lengths)}


# What a model supports ----------------------------------------------------------------------------


def find_layout(model: nn.Module, *, packing: Packing = "auto") -> Layout:
    """The fastest layout that gives this model's own numbers, found by trying.

    Args:
        model: A causal language model, in evaluation mode or not; left as it is.
        packing: `off` keeps padded rows.
    """
    fused = _same(model, fused=True)
    if packing == "off" or not _may_pack(model):
        return Layout(fused_head=fused)
    with packable(model):
        packed = _same(model, packed=True, fused=fused)
    if not packed:
        logger.info("this model does not take packed rows; they are padded")
    return Layout(packed=packed, longest=_window(model), fused_head=fused)


def _may_pack(model: nn.Module) -> bool:
    """What a trial on a few tokens could not see."""
    inner = innermost(model)
    kinds = set(getattr(inner.config, "layer_types", None) or ())
    plain = kinds <= {"full_attention", "sliding_attention"}
    kernel = next(inner.parameters()).device.type == "cpu" or _has_varlen(inner)
    supported = bool(getattr(inner, "_supports_attention_backend", False))
    return plain and kernel and supported and not getattr(inner, "_is_stateful", False)


def _has_varlen(model: nn.Module) -> bool:
    if not torch.cuda.is_available() or next(model.parameters()).device.type != "cuda":
        return False
    modern = torch.cuda.get_device_capability() >= (8, 0)
    return modern and importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _window(model: nn.Module) -> int | None:
    config: Any = innermost(model).config
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=None)


@torch.no_grad()
def _same(model: nn.Module, *, packed: bool = False, fused: bool = False) -> bool:
    """Whether two short rows get the same log-probabilities as by themselves, padded and plain."""
    head = output_head(model)
    if fused and head is None:
        return False
    inner: Any = innermost(model)
    device = next(inner.parameters()).device
    size = int(inner.config.get_text_config().vocab_size)
    rows = [(torch.arange(length) * 7 + length) % size for length in (5, 9)]
    training = inner.training
    inner.eval()
    # On a GPU the kernel of packed rows knows half precision alone.
    half = (
        torch.autocast(device.type, dtype=torch.bfloat16)
        if device.type == "cuda"
        else contextlib.nullcontext()
    )
    try:
        with half:
            own = [_logps(inner, row[None].to(device)) for row in rows]
            if packed:
                joined = torch.cat(rows)[None].to(device)
                arguments = packed_arguments([len(row) for row in rows], device)
                with packed_pass():
                    found = _logps(inner, joined, arguments, head if fused else None)
            else:
                found = torch.cat(
                    [_logps(inner, row[None].to(device), {}, head) for row in rows], dim=0
                )
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        logger.info("trial of packed=%s fused=%s: %s", packed, fused, error)
        return False
    finally:
        inner.train(training)
    # Tokens that follow inside a row; the last of the first row has no follower of its own.
    wanted = torch.cat([values[:-1] for values in own])
    if packed:
        inside = torch.ones(len(found), dtype=torch.bool, device=found.device)
        inside[len(rows[0]) - 1] = inside[-1] = False
        found = found[inside]
    else:
        ends = [len(rows[0]) - 1, len(rows[0]) + len(rows[1]) - 1]
        inside = torch.ones(len(found), dtype=torch.bool, device=found.device)
        inside[ends] = False
        found = found[inside]
    fine = device.type == "cpu" and next(inner.parameters()).dtype in (torch.float32, torch.float64)
    return bool(torch.allclose(found, wanted, rtol=0, atol=1e-3 if fine else 0.15))


def _logps(
    model: nn.Module,
    tokens: Tensor,
    arguments: Mapping[str, Any] | None = None,
    head: nn.Linear | None = None,
) -> Tensor:
    """Log-probability of every following token, and of anything at the last place, [L]."""
    length = tokens.shape[1]
    everything = torch.arange(length, device=tokens.device)
    request = HeadRequest(
        labelled=everything, targets=tokens[0].roll(-1), whole=everything.new_zeros(0)
    )
    answering = contextlib.nullcontext() if head is None else answering_head(head, request)
    with answering:
        logits = model(input_ids=tokens, use_cache=False, **(arguments or {})).logits
    return logits[0] if isinstance(logits, tuple) else request.answer_logits(logits)[0]
