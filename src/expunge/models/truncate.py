"""A smaller model from the first layers of a larger one: the start of ULD's assistant."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from expunge.core.errors import InputError
from expunge.models.peft import is_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def first_layers(model: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """An independent copy of the model with only its first decoder layers, arXiv:2406.08607.

    Embeddings, final norm and output head are copied with their weights, so the copy is what the
    model would be if it left out all later layers. Only what is kept is ever held twice.

    Args:
        model: A plain model; it is left as it is.
        num_layers: How many layers to keep.

    Raises:
        InputError: The model has fewer layers, or none that can be found.
        ValueError: The model still carries an adapter.
    """
    if is_peft(model):
        raise ValueError("merge the adapter before taking layers of the model")
    total = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    if not 1 <= num_layers <= total:
        raise InputError(
            f"cannot keep {num_layers} layers of a model that has {total}. Possible: 1 to {total}"
        )
    layers = _decoder_layers(model, total)
    # What deepcopy finds here counts as copied already; the later layers are never looked at.
    memo: dict[int, Any] = {}
    kept: list[nn.Module] = [copy.deepcopy(layer, memo) for layer in layers[:num_layers]]
    memo[id(layers)] = nn.ModuleList(kept)
    small = copy.deepcopy(model, memo)
    _shorten(small.config.get_text_config(decoder=True), total, num_layers)
    return small


def _decoder_layers(model: nn.Module, total: int) -> nn.ModuleList:
    """The list of all decoder layers: of those as long as the config says, the one with most in it.

    Lists inside the layers, such as experts, may happen to have the same length.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if not found:
        raise InputError(
            f"{type(model).__name__}: no list of {total} decoder layers was found, so it cannot be "
            "shortened. Use a model of the Llama, Phi, Qwen or GPT-NeoX kind"
        )
    return max(found, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def _shorten(config: Any, total: int, num_layers: int) -> None:
    """Make a config say what the shortened model is, lists with an entry per layer included."""
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, value[:num_layers])
    config.num_hidden_layers = num_layers
