"""A model's attention exchanged for another one that transformers knows by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from expunge.models.head import innermost


@contextlib.contextmanager
def attending(model: nn.Module, name: str) -> Iterator[None]:
    """All parts of a model use the attention called `name` until this ends.

    Args:
        model: A model of transformers, possibly wrapped.
        name: Name under which transformers knows an attention function.
    """
    found = [getattr(part, "config", None) for part in innermost(model).modules()]
    configs: dict[int, Any] = {
        id(config): config for config in found if hasattr(config, "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
