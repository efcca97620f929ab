"""Proxy constraint: no reward for forgetting beyond what an uninformed model would show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

MU = 0.001


@dataclass(frozen=True, kw_only=True)
class ProxyOptions:
    """Options of the proxy constraint of EGUP, arXiv:2508.20443, section 5.2.

    A proxy answer is what an uninformed model would say. The penalty of a sample is
    `mu max(0, NLL(answer) - NLL(proxy))`: it holds back what is forgotten beyond its proxy.

    Attributes:
        mu: Weight of the penalty; the paper uses 0.001 and 0.005.
        penalty_nll: Scale of the comparison: token `mean`, sequence `sum`, or the values of the
            base `objective` (E-08).
        penalty_reduce: Penalties of a batch are summed, or averaged (E-09).
        proxy_grad: Let the gradient flow through the proxy side; by default it is a fixed boundary
            (E-10).
        mu_rule: `fixed`, as in the paper; `dual`: mu rises by `mu_rate` times the violation while
            the mean gap NLL(answer) - NLL(proxy) of a step is above `mu_target`, and falls below
            it, but never under 0. It then starts at `mu`, and is saved with the checkpoint.
        mu_target: Mean gap that `dual` steers to, on the scale of `penalty_nll`; 0: as unlikely as
            the proxies.
        mu_rate: Change of mu per step and nat with `dual`.
        proxy_loss: Whether the boundary moves with the `current` model or stays at the `initial`
            one (E-11).
    """

    mu: Annotated[float, Ge(0)] = MU
    mu_rule: Literal["fixed", "dual"] = "fixed"
    mu_target: float = 0.0
    mu_rate: Annotated[float, Gt(0)] = 0.01
    penalty_nll: Literal["mean", "sum", "objective"] = "mean"
    penalty_reduce: Literal["sum", "mean"] = "sum"
    proxy_grad: bool = False
    proxy_loss: Literal["current", "initial"] = "current"


def proxy_excess(nll_answer: Tensor, nll_proxy: Tensor) -> Tensor:
    """How far each sample is forgotten beyond its proxy, `max(0, d)`, in the unit of the NLLs, [B].

    Exactly 0, value and gradient, while the real answer is at least as likely as the proxy.
    """
    return torch.relu(nll_answer - nll_proxy)
