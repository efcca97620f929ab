"""Gradient norms of single samples, for the membership attack of that name: a pass of its own.

It needs a backward pass per sample and memory for one gradient of the chosen parameters, so it runs
only on request.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import InputError
from expunge.models.forward import accepts_logits_to_keep
from expunge.models.generate import evaluating

Which = Literal["trainable", "all"]
"""Parameters whose gradients count: those that require one, or all of them."""

_NOTHING = (
    "the loss depends on no trainable parameter of the model, so there is no gradient to measure; "
    'take parameters="all"'
)


class LabelledTokens(NamedTuple):
    """One sample.

    Attributes:
        prompt: Token ids that carry no label. If there are none, the first token of the answer
            takes their place, since nothing predicts it.
        answer: Token ids that are predicted, the end of the turn included.
    """

    prompt: Sequence[int]
    answer: Sequence[int]


def gradient_norms(
    model: nn.Module,
    samples: Sequence[LabelledTokens],
    *,
    p: float = 2.0,
    drop_last: bool = True,
    parameters: Which = "trainable",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[float]:
    """Size of the gradient of the mean token NLL of every sample, one sample at a time.

    The mean over parameter tensors of the p-norm of each one's gradient, as GradNorm in
    open-unlearning (arXiv:2506.12618); in nats per unit of the parameters, 0 or more. Tied weights
    are one tensor, and a tensor that the loss does not depend on is left out. Dropout is off; the
    released code leaves it on. The model is left as it was: parameters, their `.grad`, whether they
    require one, and the mode of every module.

    Args:
        model: A causal language model.
        samples: What to score.
        p: Order of the norm, above 0; infinity is the largest entry.
        drop_last: Leave out the last label, the end of the turn (M-09).
        parameters: `trainable`: those that require a gradient. `all`: every floating-point tensor,
            also of a model that was loaded frozen.
        on_progress: Called with samples done, samples in all and a label.

    Returns:
        A number per sample; nan where no label is left.

    Raises:
        InputError: p is not above 0, or no trainable parameter takes part.
    """
    if not p > 0:
        raise InputError(f"the order of the gradient norm is {p}; it must be above 0")
    norms = []
    with evaluating(model), torch.enable_grad(), _chosen(model, parameters) as chosen:
        for sample in samples:
            norms.append(_gradient_norm(model, chosen, sample, p, drop_last))
            if on_progress is not None:
                on_progress(len(norms), len(samples), "gradient norms")
    return norms


@contextlib.contextmanager
def _chosen(model: nn.Module, which: Which) -> Iterator[list[nn.Parameter]]:
    """The parameters that count, each once, requiring gradients inside the block."""
    every = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    chosen = [parameter for parameter in every if which == "all" or parameter.requires_grad]
    if not chosen:
        raise InputError(_NOTHING)
    required = [parameter.requires_grad for parameter in chosen]
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for parameter, before in zip(chosen, required, strict=True):
            parameter.requires_grad_(before)


def _gradient_norm(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    sample: LabelledTokens,
    p: float,
    drop_last: bool,
) -> float:
    ids = [*sample.prompt, *sample.answer]
    stop = len(ids) - drop_last
    num_labels = stop - max(1, len(sample.prompt))
    if num_labels <= 0:
        return math.nan
    loss = _mean_nll(model, ids[:stop], num_labels)
    if not loss.requires_grad:
        raise InputError(_NOTHING)
    # Nothing is accumulated: the gradients come as new tensors and go with this frame.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [_norm(gradient, p) for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).mean())


def _mean_nll(model: nn.Module, ids: Sequence[int], num_labels: int) -> Tensor:
    """Mean NLL of the last `num_labels` tokens, each predicted from those before it."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    # The last token predicts nothing.
    seen, targets = tokens[:, :-1], tokens[0, -num_labels:]
    kept: dict[str, Any] = {"logits_to_keep": num_labels} if accepts_logits_to_keep(model) else {}
    result = model(input_ids=seen, attention_mask=torch.ones_like(seen), use_cache=False, **kept)
    logits = result.logits[0, -num_labels:]
    return F.cross_entropy(logits.float() if _is_narrow(logits) else logits, targets)


def _norm(gradient: Tensor, p: float) -> Tensor:
    """p-norm of all entries, on the CPU; in float32 where the gradient is narrower."""
    dtype = torch.float32 if _is_narrow(gradient) else gradient.dtype
    norm: Tensor = torch.linalg.vector_norm(gradient, ord=p, dtype=dtype)
    return norm.double().cpu()


def _is_narrow(values: Tensor) -> bool:
    return values.dtype in (torch.float16, torch.bfloat16)
