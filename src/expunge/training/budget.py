"""Utility on retain rows that are set aside: what a run may cost, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from expunge.models.outputs import TokenOutputs
from expunge.training.passes import Passes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much utility may be lost, measured on retain rows that do not train.

    Attributes:
        utility: Share of the target model's utility that must be left, above 0 to 1. Utility is the
            mean over rows of the answer's probability per token, `exp(-NLL / tokens)`, 0 to 1.
        rows: Retain rows set aside for it; they take no part in training.
    """

    utility: Annotated[float, Gt(0), Le(1)] = 0.98
    rows: Annotated[int, Ge(1)] = 32


def row_probabilities(out: TokenOutputs) -> Tensor:
    """Probability of each answer to the power 1 / tokens, 0 to 1, [B]."""
    return (-out.mean_nll()).exp()


class UtilityMeter:
    """Measures utility relative to where unlearning starts.

    Args:
        passes: How streams are run; the stream `reserve` holds the rows set aside.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.start = self.mean()

    def mean(self) -> float:
        """Mean probability per token on the rows set aside, 0 to 1."""
        values = self.passes.over("reserve", lambda out: list(row_probabilities(out)))
        return float(torch.stack(values).double().mean())

    def share(self) -> float:
        """Utility as a share of the start model's; 1 at the start, 0 when everything is lost."""
        return self.mean() / max(self.start, 1e-12)
