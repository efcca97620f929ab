"""What happens with the trained weights: extrapolation, negation, or two models that act as one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.methods import Method
from expunge.models.combine import UldOptions, WhpOptions
from expunge.models.peft import is_peft
from expunge.models.truncate import first_layers
from expunge.postprocess import ExtrapolationOptions, extrapolate
from expunge.postprocess.extrapolate import AlphaSearch, choose_alpha
from expunge.postprocess.task_vector import TaskVectorOptions
from expunge.training.budget import Budget, UtilityMeter
from expunge.training.passes import Passes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UpdateLine:
    """The line through the weights before and after training; the model stands somewhere on it.

    With an adapter the update is the adapter itself, so its scale is all that changes.

    Args:
        model: The model before training, with its adapter or with its parameters thawed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.peft = is_peft(model)
        self.start = {} if self.peft else self._moving()
        self.end: dict[str, Tensor] = {}

    def finish(self) -> None:
        """Take the weights as they are now as the end of training."""
        self.end = self._moving()

    def go_to(self, alpha: float) -> None:
        """Put the model at `end + alpha (end - start)`: 0 the end of training, -1 its start."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            if self.peft:
                for name, value in self.end.items():
                    wide = value.to(torch.promote_types(value.dtype, torch.float32))
                    parameters[name].copy_(wide * (1 + alpha))
                return
            for name, value in extrapolate(self.start, self.end, alpha=alpha).items():
                parameters[name].copy_(value)

    def _moving(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and (not self.peft or "lora_B" in name)
        }


def needs_line(method: Method) -> bool:
    """Whether the weights before training are needed afterwards."""
    return isinstance(method.post_options, ExtrapolationOptions | TaskVectorOptions)


def along_line(
    method: Method, line: UpdateLine, passes: Passes, budget: Budget | None
) -> AlphaSearch | None:
    """Move along the update as the method says; returns the search of an automatic alpha."""
    line.finish()
    options = method.post_options
    if isinstance(options, TaskVectorOptions):
        # start - alpha (end - start), counted from the end.
        line.go_to(-(1 + options.alpha))
        return None
    if options.alpha != "auto":
        line.go_to(options.alpha)
        return None
    line.go_to(-1.0)
    meter = UtilityMeter(passes)

    def utility(alpha: float) -> float:
        line.go_to(alpha)
        return meter.share()

    found = choose_alpha(
        utility,
        budget=(budget or Budget()).utility,
        alpha_max=options.alpha_max,
        evaluations=options.evaluations,
    )
    line.go_to(found.alpha)
    return found


def needs_reserve(method: Method, stop_at: tuple[str, ...]) -> bool:
    """Whether retain rows are set aside to measure utility on."""
    options = method.post_options
    automatic = isinstance(options, ExtrapolationOptions) and options.alpha == "auto"
    return automatic or "budget" in stop_at


def model_to_train(model: PreTrainedModel, method: Method) -> tuple[PreTrainedModel, Any]:
    """The model that training changes, and the one that stays beside it at inference time.

    Returns:
        The model itself and None, unless the method combines two models: then the assistant or a
        copy to be reinforced, and the target model.
    """
    if method.post is None or method.post.result == "weights":
        return model, None
    if isinstance(method.post_options, UldOptions):
        return first_layers(model, method.post_options.layers), model
    return copy.deepcopy(model), model


def combined(method: Method, target: Any, trained: PreTrainedModel) -> PreTrainedModel:
    """Both models as one that answers and is saved like any other."""
    from expunge.models.combined import combine_models

    options = method.post_options
    if isinstance(options, UldOptions):
        return combine_models(
            "uld",
            {"target": target, "assistant": trained},
            weight=options.weight,
            top_logit_filter=options.top_logit_filter,
        )
    assert isinstance(options, WhpOptions), "no other step combines models"
    return combine_models("whp", {"target": target, "reinforced": trained}, alpha=options.alpha)
