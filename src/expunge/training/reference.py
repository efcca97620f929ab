"""Reference values: a table computed once, the weights without the adapter, or a frozen copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from expunge.models.forward import StreamRequest, with_reference, with_reference_logps
from expunge.models.outputs import TokenOutputs
from expunge.models.peft import adapter_off
from expunge.objectives import Objective
from expunge.training.passes import Passes, inference

Source = Literal["table", "adapter_off", "frozen_copy"]


def reference_sources(
    objective: Objective, *, peft: bool, fixed: frozenset[str]
) -> dict[str, Source]:
    """Where the reference values of each stream come from; streams that need none are left out.

    Args:
        objective: What reads them.
        peft: Whether an adapter trains and can be switched off.
        fixed: Streams whose rows have one fixed text each, so that a table can hold them.
    """
    sources: dict[str, Source] = {}
    for stream in objective.all_streams():
        reads = objective.reads(stream)
        if reads & {"ref_logits", "ref_activations"}:
            sources[stream] = "adapter_off" if peft else "frozen_copy"
        elif "ref_logps" in reads:
            if stream in fixed:
                sources[stream] = "table"
            else:
                sources[stream] = "adapter_off" if peft else "frozen_copy"
    return sources


@dataclass(kw_only=True)
class Reference:
    """The reference model of a loss, in the cheapest form that gives what is read.

    Attributes:
        sources: Where each stream's values come from.
        tables: Log-probabilities of the labelled tokens of every row, per stream.
        frozen: A copy of the start model, only if some source asks for one; or the model that is to
            be the reference instead.
    """

    sources: Mapping[str, Source]
    tables: dict[str, list[Tensor]] = field(default_factory=dict)
    frozen: nn.Module | None = None

    def freeze(self, model: nn.Module) -> None:
        """Copy the start model if some stream needs a copy and no other model takes its place."""
        if "frozen_copy" in self.sources.values() and self.frozen is None:
            self.frozen = copy.deepcopy(model).eval().requires_grad_(False)

    def complete(
        self,
        outputs: Mapping[str, TokenOutputs],
        requests: Mapping[str, StreamRequest],
        passes: Passes,
    ) -> dict[str, TokenOutputs]:
        """`outputs` with the reference values of every stream that has a source."""
        result = dict(outputs)
        passed = {}
        for stream in outputs:
            source = self.sources.get(stream)
            if source == "table":
                result[stream] = with_reference_logps(outputs[stream], self.tables[stream])
            elif source is not None:
                passed[stream] = requests[stream]
        if passed:
            for stream, reference in self._forward(passed, passes).items():
                result[stream] = with_reference(outputs[stream], reference)
        return result

    def _forward(
        self, requests: Mapping[str, StreamRequest], passes: Passes
    ) -> dict[str, TokenOutputs]:
        if self.frozen is not None:
            with inference(self.frozen):
                return passes.forward(self.frozen, requests)
        with inference(passes.model), adapter_off(passes.model):
            return passes.forward(passes.model, requests)
