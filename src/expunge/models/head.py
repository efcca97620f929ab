"""Log-probabilities of labels straight from hidden states; the logits never exist as a whole.

Shape legend: K tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.models.outputs import upcast

CHUNK_BYTES = 64 * 2**20
"""Bytes of float32 logits that exist at a time; more are made in several pieces of vocabulary."""


def head_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Log-probability of every target under `softmax(hidden @ weight.T + bias)`.

    The vocabulary is gone through in pieces, forward and backward, so memory does not grow with
    tokens times vocabulary. On a GPU the kernel of cut-cross-entropy does the same, if installed.

    Args:
        hidden: Hidden states that go into the output head, [K, D].
        weight: Weight of the head, [V, D].
        bias: Bias of the head, [V].
        targets: Token ids, [K].
        chunk_bytes: Most bytes of float32 logits at a time.

    Returns:
        At least float32, at most 0, in nats, [K].
    """
    if hidden.is_cuda and torch.is_autocast_enabled("cuda"):
        hidden = hidden.to(torch.get_autocast_dtype("cuda"))
    kernel = _cuda_kernel(hidden)
    if kernel is not None:
        half = weight.to(hidden.dtype)
        return -upcast(kernel(hidden, half, targets, bias=bias, reduction="none"))
    compute = _compute_dtype(hidden)
    size = max(1, min(len(weight), chunk_bytes // (4 * max(1, len(targets)))))
    found: Tensor = _HeadLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, size, compute
    )
    return found


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _cuda_kernel(hidden: Tensor) -> Any | None:
    half = hidden.dtype in (torch.float16, torch.bfloat16)
    if not (hidden.is_cuda and half) or importlib.util.find_spec("cut_cross_entropy") is None:
        return None
    return importlib.import_module("cut_cross_entropy").linear_cross_entropy


class _HeadLogps(torch.autograd.Function):
    """`head_logps` in pieces of `size` vocabulary entries, matrix products in `compute`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        size: int,
        compute: torch.dtype,
    ) -> Tensor:
        states = hidden.to(compute)
        pieces = range(0, len(weight), size)
        picked = torch.zeros(len(targets), dtype=_wide(compute), device=hidden.device)
        sums = []
        kept: Tensor | None = None
        for start in pieces:
            stop = min(start + size, len(weight))
            logits = _piece(states, weight, bias, start, stop)
            wide = upcast(logits)
            inside = (targets >= start) & (targets < stop)
            column = (targets - start).clamp(0, stop - start - 1)
            picked += wide.gather(1, column[:, None])[:, 0].masked_fill(~inside, 0.0)
            sums.append(wide.logsumexp(-1))
            if len(pieces) == 1:
                kept = logits  # small enough to be kept for the backward pass
        norm = torch.stack(sums).logsumexp(0) if len(sums) > 1 else sums[0]
        ctx.save_for_backward(states, weight, bias, targets, norm, kept)
        ctx.size, ctx.dtype = size, hidden.dtype
        # A loss that does not look at these leaves no gradient of zeros, which weights decay by.
        ctx.set_materialize_grads(False)
        return picked - norm

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        (grad,) = gradients
        if grad is None:
            return (None,) * 6
        states, weight, bias, targets, norm, kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(states, dtype=norm.dtype) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        rows = torch.arange(len(targets), device=targets.device)
        for start in range(0, len(weight), ctx.size):
            stop = min(start + ctx.size, len(weight))
            logits = _piece(states, weight, bias, start, stop) if kept is None else kept
            # d log p[target] / d logits = onehot(target) - p
            slope = (upcast(logits) - norm[:, None]).exp_().mul_(-grad[:, None])
            inside = (targets >= start) & (targets < stop)
            slope[rows[inside], targets[inside] - start] += grad[inside]
            narrow = slope.to(states.dtype)
            part = weight[start:stop].to(states.dtype)
            if grad_hidden is not None:
                grad_hidden += narrow @ part
            if grad_weight is not None:
                grad_weight[start:stop] = narrow.T @ states
            if grad_bias is not None:
                grad_bias[start:stop] = slope.sum(0)
        result = None if grad_hidden is None else grad_hidden.to(ctx.dtype)
        return result, grad_weight, grad_bias, None, None, None


def _wide(compute: torch.dtype) -> torch.dtype:
    return torch.float64 if compute == torch.float64 else torch.float32


def _piece(states: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int) -> Tensor:
    offset = None if bias is None else bias[start:stop].to(states.dtype)
    with torch.autocast(states.device.type, enabled=False):
        return F.linear(states, weight[start:stop].to(states.dtype), offset)


# In the place of a model's own head --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeadRequest:
    """What is wanted of the output head.

    Attributes:
        labelled: Flat index of the hidden states whose target's log-probability is wanted, [K].
        targets: Their targets, [K].
        whole: Flat index of the hidden states whose logits are wanted, [W].
    """

    labelled: Tensor
    targets: Tensor
    whole: Tensor

    def answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities [K] and logits [W, V] from hidden states [..., D]."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = F.linear(flat[self.whole], weight, bias)
        return head_logps(flat[self.labelled], weight, bias, self.targets), logits

    def answer_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The same from logits that a model has made itself, [..., V]."""
        flat = logits.reshape(-1, logits.shape[-1])
        # The rows of the matrix that are no answers never become float32.
        answers = upcast(flat[self.labelled])
        return -F.cross_entropy(answers, self.targets, reduction="none"), flat[self.whole]


def output_head(model: nn.Module) -> nn.Linear | None:
    """The output head of a causal language model, if it is nothing but a linear layer."""
    found = getattr(innermost(model), "get_output_embeddings", lambda: None)()
    return found if type(found) is nn.Linear else None


def innermost(model: nn.Module) -> nn.Module:
    """The model itself, without what processes, compilers and adapters wrap around it."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        else:
            return inner  # type: ignore[no-any-return]


@contextlib.contextmanager
def answering_head(head: nn.Linear, request: HeadRequest) -> Iterator[None]:
    """The head answers a request instead of returning logits.

    It is called by the model as ever, so that whatever gathers or moves its weights does so.
    """

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
        return request.answer(hidden, head.weight, head.bias)

    before = head.__dict__.get("forward")
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before  # type: ignore[method-assign]
