"""Weights of tokens and samples that go around any forget loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from expunge.models.outputs import TokenOutputs
from expunge.objectives.losses import NotNegative, confidence, saturation_importance


@dataclass(frozen=True, kw_only=True)
class ConfidenceOptions:
    """Token weights p^beta, WGA's, around any forget loss.

    Attributes:
        beta: Power of the token's probability; 0 leaves the loss as it is.
    """

    beta: NotNegative = 1.0

    def weights(self, out: TokenOutputs) -> Tensor:
        """Weights of the label tokens, without gradient, [B, T]."""
        return confidence(out, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class SaturationOptions:
    """Token weights p^beta1 (1 - p)^beta2, SatImp's, around any forget loss.

    Attributes:
        beta1: Power of the token's probability (saturation).
        beta2: Power of its complement (importance); both 0 leave the loss as it is.
    """

    beta1: NotNegative = 5.0
    beta2: NotNegative = 1.0

    def weights(self, out: TokenOutputs) -> Tensor:
        """Weights of the label tokens, without gradient, [B, T]."""
        return saturation_importance(out, beta1=self.beta1, beta2=self.beta2)


@dataclass(frozen=True, kw_only=True)
class EmpiricalOptions:
    """Sample weights from each sample's own loss, arXiv:2409.19732, around any forget loss.

    `1 / (A^power + 1e-15)`, scaled to mean 1 over the step, with A the token-mean NLL of the forget
    answer: what is not forgotten yet is pushed hardest.

    Attributes:
        power: Called lambda in the paper; 0.5 in its released settings, 1 the default of its code,
            0 makes all weights equal.
    """

    power: Annotated[float, Ge(0)] = 0.5

    def weights(self, out: TokenOutputs) -> Tensor:
        """Weights of the samples before they are scaled, without gradient, [B]."""
        return 1 / (out.mean_nll().detach() ** self.power + 1e-15)
