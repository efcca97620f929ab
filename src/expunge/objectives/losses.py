"""Losses as pure functions of token outputs: no model call, no reduction over the batch.

Positional arguments are the streams a loss looks at, keyword-only arguments its hyperparameters and
the only home of their defaults. A token loss returns one value per logit position, [B, T], a
sequence loss one per row, [B]; all are in nats and are minimised. S(x) is the sum of the negative
log-likelihood over the labelled tokens of a row, S0(x) the same under the reference model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt
from torch import Tensor

from expunge.models.outputs import Positions, TokenOutputs

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Unit = Literal["token", "sequence"]
Average = Literal["tokens", "rows", "sums", "broadcast"]
"""How a token loss becomes one number.

`tokens`: mean over all tokens of a step, long answers weigh more; `rows`: mean of the rows' token
means; `sums`: mean of the rows' sums; `broadcast`: as open-unlearning's RMU divides, mean of the
sums times mean of the inverse lengths of a micro-batch, which depends on the batch layout (C-11).
"""


LossFn = Callable[..., Tensor]
FnT = TypeVar("FnT", bound=LossFn)


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
        average: How a token loss becomes one number unless a term says otherwise.
        keep: For a token loss, narrows its positions: record and options to bool, [B, T].
        statistic: A value per token or sequence, like the loss's own, whose mean over the whole
            step the loss takes as its last positional argument, without gradient.
        batch_layout: The value depends on how rows are padded or split, as in the released code.
    """

    name: str
    reads: frozenset[str]
    unit: Unit
    positions: Positions = "labels"
    predicts: bool = True
    average: Average = "tokens"
    keep: LossFn | None = None
    statistic: LossFn | None = None
    batch_layout: bool = False


_INFO: dict[LossFn, LossInfo] = {}


def loss(
    *,
    reads: set[str] | frozenset[str] = frozenset(),
    unit: Unit,
    positions: Positions = "labels",
    predicts: bool = True,
    average: Average = "tokens",
    keep: LossFn | None = None,
    statistic: LossFn | None = None,
    batch_layout: bool = False,
) -> Callable[[FnT], FnT]:
    """Declare what a loss function reads and returns; see `LossInfo`."""

    def declare(fn: FnT) -> FnT:
        _INFO[fn] = LossInfo(
            name=fn.__name__,
            reads=frozenset(reads),
            unit=unit,
            positions=positions,
            predicts=predicts,
            average=average,
            keep=keep,
            statistic=statistic,
            batch_layout=batch_layout,
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


def confidence(out: TokenOutputs, *, beta: NotNegative = 1.0) -> Tensor:
    """Probability of each label token to the power beta, 0 to 1, without gradient, [B, T].

    arXiv:2502.19301 (WGA): tokens that are already unlikely count less.
    """
    return (beta * out.logps.detach()).exp()


def saturation_importance(
    out: TokenOutputs, *, beta1: NotNegative = 5.0, beta2: NotNegative = 1.0
) -> Tensor:
    """p^beta1 (1 - p)^beta2 of each label token, 0 to 1, without gradient, [B, T].

    arXiv:2505.11953 (SatImp): the first factor is saturation, the second importance.
    """
    log_p = out.logps.detach()
    return (beta1 * log_p).exp() * (-log_p.expm1()).clamp(min=0) ** beta2


@loss(unit="token")
def weighted_gradient_ascent(out: TokenOutputs, *, beta: NotNegative = 1.0) -> Tensor:
    """Gradient ascent with every token weighted by its confidence, [B, T].

    WGA, arXiv:2502.19301: `-p^beta nll`. The weights are not normalised; beta 0 is GA.

    Args:
        out: The forget stream.
        beta: Power of the token's probability.
    """
    return confidence(out, beta=beta) * gradient_ascent(out)


@loss(unit="token")
def saturation_importance_ascent(
    out: TokenOutputs, *, beta1: NotNegative = 5.0, beta2: NotNegative = 1.0
) -> Tensor:
    """Gradient ascent with every token weighted by saturation and importance, [B, T].

    SatImp, arXiv:2505.11953: `-p^beta1 (1 - p)^beta2 nll`; both powers 0 give GA.

    Args:
        out: The forget stream.
        beta1: Power of the token's probability.
        beta2: Power of its complement.
    """
    return saturation_importance(out, beta1=beta1, beta2=beta2) * gradient_ascent(out)
