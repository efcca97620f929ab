"""Update rules: how gradients become a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.objectives.losses import Positive


@dataclass(frozen=True, kw_only=True)
class SharpnessOptions:
    """Sharpness-aware minimisation, arXiv:2502.05374, equation 7; arXiv:2010.01412.

    The gradient is taken where the loss is worst nearby, at `theta + rho g / |g|`, so that what is
    forgotten is harder to learn again. A step costs two passes more over the forget rows.

    Attributes:
        rho: Distance of the perturbation, in the Euclidean norm over all trained parameters.
        on: Whose gradient is taken there: the `forget` terms, as the unlearning paper has it, or
            the `total` loss.
    """

    rho: Positive = 0.01
    on: Literal["forget", "total"] = "forget"
