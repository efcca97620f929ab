"""Multipliers that follow a primal-dual rule, and the state that methods keep between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MultiplierOptions:
    """A weight that rises while a measured value is above its limit and falls below it.

    Attributes:
        limit: Level of the measured value that is to be kept, in its own unit (nats).
        start: Weight at the beginning.
        rate: Change of the weight per step and unit of violation (dual step size).
        warmup: Epochs during which the weight stays as it is.
        every: Whether the weight moves after every optimizer `step`, by the step's own value, or
            after every `epoch`, by a pass over the whole set.
        maximum: The weight never exceeds this.
    """

    limit: float
    start: Annotated[float, Ge(0)] = 1.0
    rate: Annotated[float, Gt(0)] = 1.0
    warmup: Annotated[float, Ge(0)] = 0.0
    every: Literal["step", "epoch"] = "step"
    maximum: float = float("inf")


class Multiplier:
    """A dual variable: `w <- clamp(w + rate (measured - limit), 0, maximum)`.

    arXiv:2506.05314, algorithm 1, for the retain weight of PDU.

    Args:
        options: Start, limit and rate.
    """

    def __init__(self, options: MultiplierOptions) -> None:
        self.options = options
        self.value = min(options.start, options.maximum)

    def update(self, measured: float, *, epoch: float) -> None:
        """Move the weight.

        Args:
            measured: Value of this step or epoch over all processes.
            epoch: Epochs done, this step included.
        """
        if epoch <= self.options.warmup:
            return
        moved = self.value + self.options.rate * (measured - self.options.limit)
        self.value = min(max(0.0, moved), self.options.maximum)


def control_vector(size: int, seed: int) -> Tensor:
    """The random direction of RMU: uniform draws in [0, 1), scaled to length 1, float32, [D].

    Args:
        size: Hidden size D.
        seed: Seed of the run; the global random state is left alone.
    """
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    length: Tensor = drawn.norm()
    return drawn / length
