"""Losses as pure functions of token outputs: no model call, no reduction over the batch.

Positional arguments are the streams a loss looks at, keyword-only arguments its hyperparameters and
the only home of their defaults. A token loss returns one value per logit position, [B, T], a
sequence loss one per row, [B]; all are in nats and are minimised. S(x) is the sum of the negative
log-likelihood over the labelled tokens of a row, S0(x) the same under the reference model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from expunge.models.outputs import Positions, TokenOutputs

Positive = Annotated[float, Gt(0)]
Unit = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class LossInfo:
    """What a loss declares about itself.

    Attributes:
        name: Name in logs and messages.
        reads: Fields of `TokenOutputs` beyond log-probabilities and masks that it looks at; what no
            term reads is never computed.
        unit: Whether it returns a value per token or per sequence.
        positions: Logit positions a token loss averages over unless a term says otherwise.
        predicts: Positions that predict no real token, such as the last one, do not count.
    """

    name: str
    reads: frozenset[str]
    unit: Unit
    positions: Positions = "labels"
    predicts: bool = True


LossFn = Callable[..., Tensor]
FnT = TypeVar("FnT", bound=LossFn)
_INFO: dict[LossFn, LossInfo] = {}


def loss(
    *,
    reads: set[str] | frozenset[str] = frozenset(),
    unit: Unit,
    positions: Positions = "labels",
    predicts: bool = True,
) -> Callable[[FnT], FnT]:
    """Declare what a loss function reads and returns; see `LossInfo`."""

    def declare(fn: FnT) -> FnT:
        _INFO[fn] = LossInfo(
            name=fn.__name__,
            reads=frozenset(reads),
            unit=unit,
            positions=positions,
            predicts=predicts,
        )
        return fn

    return declare


def loss_info(fn: LossFn) -> LossInfo:
    """The declaration of a loss function.

    Raises:
        TypeError: The function was not declared with `loss`.
    """
    try:
        return _INFO[fn]
    except KeyError:
        raise TypeError(f"{fn!r} is not declared as a loss; decorate it with @loss") from None


def declared_losses() -> list[LossFn]:
    """Every declared loss function, in the order of declaration."""
    return list(_INFO)


@loss(unit="token")
def nll(out: TokenOutputs) -> Tensor:
    """Negative log-likelihood of every labelled token, [B, T]; GD as a retain term.

    arXiv:2401.06121, section 4 (gradient difference's retain part).
    """
    return -out.logps


@loss(unit="token")
def gradient_ascent(out: TokenOutputs) -> Tensor:
    """Log-likelihood of every labelled token, [B, T]: minimising it raises the loss without bound.

    GA, arXiv:2401.06121, section 4.
    """
    return out.logps


@loss(unit="sequence", reads={"ref_logps"})
def npo(out: TokenOutputs, *, beta: Positive = 0.1) -> Tensor:
    """Negative preference optimisation, [B]: gradient ascent that fades once a row is forgotten.

    `2/beta * softplus(-beta (S - S0))`, arXiv:2404.05868, equation 3. It starts at `2/beta ln 2`,
    falls to 0 and tends to sequence-sum gradient ascent as beta goes to 0.

    Args:
        out: The forget stream.
        beta: Inverse temperature; the gradient of a row has weight 2 sigmoid(-beta (S - S0)).
    """
    return 2 / beta * F.softplus(-beta * (out.nll() - out.ref_nll()))


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


@loss(unit="token", reads={"logits", "ref_logits"}, positions="nonpad", predicts=False)
def kl_to_reference(out: TokenOutputs) -> Tensor:
    """KL(reference || model) of the next-token distribution, in nats, [B, T]; 0 at the reference.

    arXiv:2401.06121, section 4 (KL minimisation). The paper averages over the tokens of question
    and answer; the released codes also average over padding, which is `positions=all`.
    """
    assert out.logits is not None, "kl_to_reference reads logits"
    assert out.ref_logits is not None, "kl_to_reference reads ref_logits"
    log_p = out.logits.log_softmax(-1)
    log_ref = out.ref_logits.log_softmax(-1)
    return (log_ref.exp() * (log_ref - log_p)).sum(-1)


@loss(unit="sequence")
def answer_preservation(
    retain: TokenOutputs, retain_alternate: TokenOutputs, *, beta: Positive = 0.1
) -> Tensor:
    """Keeps the gold answer of a retain question likelier than a rejection, [B].

    AP, arXiv:2410.08109, section 3.3: `1/beta softplus(-beta (S(q, y') - S(q, y)))`. Needs no
    reference model; it is `1/beta ln 2` when both are equally likely and falls to 0.

    Args:
        retain: Retain questions with their answers.
        retain_alternate: The same questions with a rejection.
        beta: Inverse temperature on the difference of sequence log-likelihoods.
    """
    return F.softplus(-beta * (retain_alternate.nll() - retain.nll())) / beta
