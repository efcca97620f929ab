"""Losses on whole next-token distributions: entropy, divergences, distillation, flat logits."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from expunge.models.outputs import TokenOutputs
from expunge.objectives.losses import NotNegative, loss


@loss(unit="token", reads={"logits"}, positions="nonpad")
def maximise_entropy(
    out: TokenOutputs,
    *,
    direction: Literal["model_to_uniform", "uniform_to_model"] = "model_to_uniform",
) -> Tensor:
    """Distance of the predictions from a uniform guess, in nats, [B, T]; 0 at a uniform guess.

    ME, arXiv:2410.08109, section 3.2: KL(model || uniform) = log V - entropy, over question and
    answer. The released code minimises KL(uniform || model) over the whole padded row instead; that
    is `direction=uniform_to_model, positions=all`. Both vanish only at a uniform guess, but the
    released form keeps pushing every tail token up, the paper's hardly touches them.

    Args:
        out: The forget stream.
        direction: Which argument of the divergence the model is.
    """
    assert out.logits is not None, "maximise_entropy reads logits"
    log_p = out.logits.log_softmax(-1)
    log_v = math.log(log_p.shape[-1])
    if direction == "model_to_uniform":
        return log_v + (log_p.exp() * log_p).sum(-1)
    # 1e-12 is the released code's guard against log 0; it also bounds the loss at 27.6 - log V.
    return -log_v - (log_p.exp() + 1e-12).log().mean(-1)


@loss(unit="token", reads={"logits"}, positions="nonpad", predicts=False)
def uniform_to_model(out: TokenOutputs) -> Tensor:
    """KL(uniform || model) of the next-token distribution, in nats, [B, T]; 0 at a uniform guess.

    What the assistant of ULD learns on retain data, arXiv:2406.08607, equation 5. The released code
    also averages over padding, which is `positions=all`.
    """
    assert out.logits is not None, "uniform_to_model reads logits"
    log_p = out.logits.log_softmax(-1)
    return -math.log(log_p.shape[-1]) - log_p.mean(-1)


@loss(unit="token", reads={"logits", "ref_logits"}, positions="nonpad", predicts=False)
def kl_to_reference(
    out: TokenOutputs, *, form: Literal["divergence", "cross_entropy"] = "divergence"
) -> Tensor:
    """KL(reference || model) of the next-token distribution, in nats, [B, T]; 0 at the reference.

    arXiv:2401.06121, section 4 (KL minimisation). The paper averages over the tokens of question
    and answer; the released codes also average over padding, which is `positions=all`.

    Args:
        out: The stream to stay close on.
        form: `cross_entropy` leaves out the reference's own entropy, as the code of LLMU does,
            arXiv:2310.10683: same gradient, another value.
    """
    assert out.logits is not None, "kl_to_reference reads logits"
    assert out.ref_logits is not None, "kl_to_reference reads ref_logits"
    log_p = out.logits.log_softmax(-1)
    log_ref = out.ref_logits.log_softmax(-1)
    if form == "cross_entropy":
        return -(log_ref.exp() * log_p).sum(-1)
    return (log_ref.exp() * (log_ref - log_p)).sum(-1)


@loss(unit="token", reads={"logits", "ref_logits"}, positions="all", predicts=False,
      average="sums", batch_layout=True)  # fmt: skip
def kl_muse_as_released(out: TokenOutputs) -> Tensor:
    """What the MUSE baselines call KL: their formula on raw logits, summed over a row, [B, T].

    `sum_v exp(r) (r - l)` with raw logits r of the reference and l of the model; code of
    arXiv:2407.06460 (C-02). No divergence: it can be far below 0.
    """
    assert out.logits is not None, "kl_muse_as_released reads logits"
    assert out.ref_logits is not None, "kl_muse_as_released reads ref_logits"
    return (out.ref_logits.exp() * (out.ref_logits - out.logits)).sum(-1)


def _not_among_first(out: TokenOutputs, *, ignore_first: int = 1) -> Tensor:
    """Label positions behind the first `ignore_first` labels of the row, bool, [B, T]."""
    # A row of plain text has one more label in front of those that are predicted.
    unpredicted = (out.num_labels - out.mask.sum(-1))[:, None]
    return out.mask.cumsum(-1) + unpredicted > ignore_first


@loss(unit="token", reads={"logits"}, keep=_not_among_first)
def cross_entropy_unlearning(
    out: TokenOutputs, *, ignore_first: Annotated[int, Ge(0)] = 1
) -> Tensor:
    """Cross-entropy to the model's own distribution without the true token, in nats, [B, T].

    CE-U, arXiv:2503.01224: the target has the true token's logit at minus infinity and carries no
    gradient, so the gradient stays bounded. Rows whose labels are all ignored contribute nothing.

    Args:
        out: The forget stream.
        ignore_first: Labels at the start of each answer that do not count.
    """
    assert out.logits is not None, "cross_entropy_unlearning reads logits"
    target = out.logits.detach().scatter(-1, out.targets[..., None], -torch.inf).softmax(-1)
    return -(target * out.logits.log_softmax(-1)).sum(-1)


def _distilled(out: TokenOutputs, token: Tensor, beta: float) -> Tensor:
    """Cross-entropy to the reference with the logit of `token` [B, T] lowered by beta, [B, T]."""
    assert out.logits is not None, "self-distillation reads logits"
    assert out.ref_logits is not None, "self-distillation reads ref_logits"
    lowered = torch.zeros_like(out.ref_logits).scatter(-1, token[..., None], beta)
    target = (out.ref_logits - lowered).softmax(-1)
    return -(target * out.logits.log_softmax(-1)).sum(-1)


@loss(unit="token", reads={"logits", "ref_logits"})
def self_distillation(out: TokenOutputs, *, beta: NotNegative = 10.0) -> Tensor:
    """Cross-entropy to the reference's distribution with the true token held down, [B, T].

    UNDIAL, arXiv:2402.10052, equation 5, on answer tokens.

    Args:
        out: The forget stream.
        beta: How far the reference's logit of the true token is lowered; 3, 10 and 30 in the paper.
    """
    return _distilled(out, out.targets, beta)


@loss(unit="token", reads={"logits", "ref_logits"}, positions="all", batch_layout=True)
def self_distillation_as_released(out: TokenOutputs, *, beta: NotNegative = 10.0) -> Tensor:
    """UNDIAL (arXiv:2402.10052) as open-unlearning runs it, over prompt and padding, [B, T].

    There the label -100 of a masked position indexes the vocabulary from its end, so an unrelated
    token, number V - 100, is held down at every masked position (C-10).

    Args:
        out: The forget stream.
        beta: How far the reference's logit is lowered.
    """
    assert out.logits is not None, "self_distillation_as_released reads logits"
    wrapped = (out.logits.shape[-1] - 100) % out.logits.shape[-1]
    return _distilled(out, torch.where(out.mask, out.targets, wrapped), beta)


@loss(unit="token", reads={"logits"})
def flatten_logits(out: TokenOutputs) -> Tensor:
    """Squared gap between the largest and the mean logit of a position, [B, T]; 0 when flat.

    PDU, arXiv:2506.05314, section 4. open-unlearning leaves out the shift by one token, which is
    `positions=unshifted` (C-12).
    """
    assert out.logits is not None, "flatten_logits reads logits"
    return (out.logits.amax(-1) - out.logits.mean(-1)).square()
