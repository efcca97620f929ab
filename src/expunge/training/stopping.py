"""When to stop: at the proxy boundary, or when the utility budget is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.models.outputs import TokenOutputs
from expunge.training.budget import Budget, UtilityMeter
from expunge.training.checkpoint import load_parameters, trainable_parameters
from expunge.training.passes import Passes

StopAt = Literal["proxy", "budget"]


@dataclass(frozen=True, kw_only=True)
class StopCheck:
    """What was measured after a step.

    Attributes:
        step: Optimizer steps done.
        proxy_gap: Mean over the forget set of NLL(answer) - NLL(proxy) per token, in nats; above 0
            the model knows the answers less than what an uninformed model would say.
        utility: Share of the start model's utility that is left on the rows set aside.
        reason: Why training stops here; empty while it goes on.
    """

    step: int
    proxy_gap: float | None = None
    utility: float | None = None
    reason: str = ""


class StopRule:
    """Checks a run at regular steps.

    Crossing the proxy boundary is the paper's own reading of "forgotten enough", arXiv:2508.20443,
    section 5.2: the forget loss of the true answers passes that of the proxies. The parameters of
    that step are kept. When the utility budget is spent, the parameters of the last check within
    it are put back.

    Args:
        at: What stops the run.
        passes: How whole streams are run.
        model: The trained model.
        budget: The utility budget, for `budget`.
    """

    def __init__(
        self, at: tuple[StopAt, ...], passes: Passes, model: nn.Module, budget: Budget | None
    ) -> None:
        self.at = at
        self.passes = passes
        self.model = model
        self.budget = budget
        self.meter = UtilityMeter(passes) if "budget" in at else None
        self.kept: Mapping[str, Tensor] = {}
        self.checks: list[StopCheck] = []

    def begin(self) -> None:
        """Keep the parameters that training starts or resumes from."""
        if self.meter is not None:
            self._keep()

    def check(self, step: int) -> StopCheck:
        """Measure after `step` optimizer steps; puts parameters back if the budget is spent."""
        gap = self._proxy_gap() if "proxy" in self.at else None
        utility = None if self.meter is None else self.meter.share()
        reason = ""
        if gap is not None and gap >= 0:
            reason = f"the forget answers are past their proxies (mean gap {gap:.3f} nats)"
        if utility is not None and self.budget is not None:
            if utility < self.budget.utility:
                load_parameters(self.model, self.kept)
                reason = (
                    f"utility fell to {utility:.3f} of the start, below the budget of "
                    f"{self.budget.utility:g}; the parameters of the check before are kept"
                )
            else:
                self._keep()
        found = StopCheck(step=step, proxy_gap=gap, utility=utility, reason=reason)
        self.checks.append(found)
        return found

    def _keep(self) -> None:
        self.kept = {
            name: value.detach().to("cpu", copy=True)
            for name, value in trainable_parameters(self.model).items()
        }

    def _proxy_gap(self) -> float:
        forget = torch.stack(self.passes.over("forget", _mean_nll))
        proxy = torch.stack(self.passes.over("proxy", _mean_nll))
        return float((forget - proxy).double().mean())


def _mean_nll(out: TokenOutputs) -> list[Tensor]:
    return list(out.mean_nll())
