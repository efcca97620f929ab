"""What a method keeps between steps, and the values that depend on all rows of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from expunge.objectives.constraints import Multiplier
from expunge.objectives.entanglement import EntanglementState


@dataclass(kw_only=True)
class ObjectiveState:
    """State of a method; the same on every process and saved with every checkpoint.

    Attributes:
        entanglement: Past embeddings and retain centre of EGU.
        retain_weight: Multiplier of the retain term, if it follows a primal-dual rule.
        proxy_weight: Multiplier of the proxy penalty, if it does.
        control: Control vector of RMU, [D].
    """

    entanglement: EntanglementState | None = None
    retain_weight: Multiplier | None = None
    proxy_weight: Multiplier | None = None
    control: Tensor | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save; empty entries are left out."""
        state = {} if self.entanglement is None else self.entanglement.state_dict()
        for name in ("retain_weight", "proxy_weight"):
            multiplier: Multiplier | None = getattr(self, name)
            if multiplier is not None:
                state[name] = torch.tensor(multiplier.value, dtype=torch.float64)
        if self.control is not None:
            state["control"] = self.control
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` saved."""
        if self.entanglement is not None:
            self.entanglement.load_state_dict(state)
        for name in ("retain_weight", "proxy_weight"):
            multiplier: Multiplier | None = getattr(self, name)
            if multiplier is not None and name in state:
                multiplier.value = float(state[name])
        self.control = state.get("control", self.control)


class Statistics(Protocol):
    """Means and sums that run over all rows of an optimizer step."""

    def mean(self, name: str, sums: Tensor, count: Tensor) -> Tensor:
        """Sum of the sums over sum of the counts, 0-d."""

    def log_sum(self, name: str, exponents: Tensor) -> Tensor:
        """Logarithm of the sum of the exponentials, 0-d; -inf entries do not count."""

    def log_mean(self, name: str, exponents: Tensor) -> Tensor:
        """The same of their mean over the entries that are not -inf, 0-d."""


class OwnRows:
    """Statistics of one micro-batch alone."""

    def mean(self, name: str, sums: Tensor, count: Tensor) -> Tensor:
        """See `Statistics`."""
        return sums.sum() / count.sum().clamp(min=1)

    def log_sum(self, name: str, exponents: Tensor) -> Tensor:
        """See `Statistics`."""
        return exponents.flatten().logsumexp(0)

    def log_mean(self, name: str, exponents: Tensor) -> Tensor:
        """See `Statistics`."""
        number = exponents.isfinite().sum().clamp(min=1)
        return self.log_sum(name, exponents) - number.to(exponents).log()
