"""Which parameters move: all, those a name pattern selects, or a low-rank adapter."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError, Problems

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """A low-rank adapter, arXiv:2106.09685. The update of a weight is `alpha / r * B @ A`.

    The defaults are those of the TOFU family of papers.

    Attributes:
        r: Rank of the update.
        alpha: Scale of the update, divided by the rank.
        dropout: Probability that an input of the adapter is dropped while training, in [0, 1).
        target_modules: "all-linear" for every linear layer but the output head; a regular
            expression matched against whole module names; or the last parts of module names,
            such as `("q_proj", "v_proj")`.
    """

    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        problems = Problems()
        if self.r < 1:
            problems.add("lora.r", f"must be at least 1, got {self.r}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            problems.add("lora.alpha", f"must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            problems.add("lora.dropout", f"must be in [0, 1), got {self.dropout}")
        if not self.target_modules:
            problems.add("lora.target_modules", "names no module. Possible: all-linear")
        problems.raise_if_any()


def add_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int = 0) -> PreTrainedModel:
    """The model wrapped with a fresh adapter, the only part that trains; it changes nothing yet.

    Adapter weights are float32 also where the model is bfloat16.

    Args:
        model: A plain model; its layers are replaced in place.
        settings: Rank, scale, dropout and where the adapter sits.
        seed: Seed of the adapter's first weights. The process-wide random state is left alone.

    Raises:
        InputError: The model carries an adapter already, or no module matches.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    if is_peft(model):
        raise InputError("the model has an adapter already; merge it first")
    modules = settings.target_modules
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float works and is common
        lora_dropout=settings.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 6 will rename; peft has to follow, not we.
        message = ".*is_gradient_checkpointing"
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            names = ", ".join(_linear_names(model)) or "none"
            raise InputError(
                f"lora.target_modules {modules!r} fits no layer of this model. "
                f"Possible: all-linear, {names}"
            ) from error


def is_peft(model: Any) -> bool:
    """Whether the model is wrapped by peft."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


@contextlib.contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model computes what it did before the adapter was added.

    Raises:
        ValueError: The model has no adapter.
    """
    if not is_peft(model):
        raise ValueError("the model has no adapter to turn off")
    with model.disable_adapter():
        yield


def merge(model: PreTrainedModel, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The plain `transformers` model with the adapter's update added to its weights.

    The sum is taken in float32 and rounded once. Note that bfloat16 keeps 8 bits: an update
    smaller than about 1/500 of a weight is rounded away; `dtype=torch.float32` keeps it.

    Args:
        model: A model wrapped by peft; it is taken apart and must not be used afterwards.
        dtype: Number format of all weights of the result; by default each keeps its own.

    Raises:
        ValueError: The model has no adapter.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not is_peft(model):
        raise ValueError("the model has no adapter to merge")
    with torch.no_grad():
        layers: list[Any] = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
        for layer in layers:
            before = layer.get_base_layer().weight.dtype
            # One layer at a time, so that a large bfloat16 model is never held twice.
            layer.float()
            layer.merge(safe_merge=True)
            layer.get_base_layer().to(before if dtype is None else dtype)
        plain = model.unload()
    if dtype is not None:
        plain = plain.to(dtype)
    return plain.requires_grad_(True)


def select_trainable(model: nn.Module, trainable: str = "all") -> list[str]:
    r"""Freeze every parameter whose name does not match, thaw the others.

    Args:
        model: A plain model.
        trainable: "all", or a regular expression searched for in parameter names, such as
            `layers\.(5|6|7)\.mlp`. A tied parameter trains if any of its names matches.

    Returns:
        Names of the trainable parameters, in the model's order; of a tied parameter the first.

    Raises:
        InputError: The expression is malformed or matches nothing.
    """
    try:
        pattern = re.compile("" if trainable == "all" else trainable)
    except re.error as error:
        raise InputError(f"trainable: {trainable!r} is no regular expression: {error}") from error
    every = list(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameter) for name, parameter in every if pattern.search(name)}
    if not chosen:
        some = ", ".join(name for name, _ in model.named_parameters() if "layers.0." in name)
        raise InputError(
            f"trainable: {trainable!r} matches no parameter name. Names look like: "
            f"{some or every[0][0]}"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _linear_names(model: nn.Module) -> list[str]:
    from torch import nn

    found = {
        name.rpartition(".")[2] for name, part in model.named_modules() if type(part) is nn.Linear
    }
    return sorted(found)
