"""`torch.compile` for the decoder layers: one compilation serves all of them, at every length.

What is compiled is decided by what changes from step to step. The head, the objective and the
layout of a batch depend on its rows, so they stay as they are; a decoder layer sees tensors whose
length alone changes. Layers are compiled in place, one by one (regional compilation,
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html): equal layers share their code
because parameters are inputs of the compiled graph (`inline_inbuilt_nn_modules`), and names of
modules and parameters stay what they are. `accelerate.utils.compile_regions` wraps every layer
instead, which renames its parameters, and compiles embedding and head as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from accelerate.utils.other import is_repeated_blocks
from torch import nn

from expunge.core.errors import InputError

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""How much `torch.compile` tries; CUDA graphs (`reduce-overhead`) need few different lengths."""


def compile_regions(
    model: nn.Module,
    *,
    dynamic: bool = True,
    backend: str = "inductor",
    mode: Mode = "default",
) -> int:
    """Compile the decoder layers of a model in place; the work happens at their first calls.

    A layer is compiled once with gradient and once without, and once more where it meets a batch of
    a single row after batches of several. What `torch.compile` cannot follow, such as attention
    row by row, runs as it is between two compiled pieces.

    Args:
        model: A causal language model, possibly with an adapter; names and parameters stay.
        dynamic: One compilation for all lengths. Without it every length is compiled by itself:
            make them few with `bucket_length`.
        backend: Name of a backend of `torch.compile`.
        mode: How much to try; for the backend "inductor" alone.

    Returns:
        Number of layers, at least 1.

    Raises:
        InputError: The model has no list of equal layers, or the backend is unknown.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise InputError(f"unknown backend {backend!r} of torch.compile; here: {', '.join(known)}")
    layers = list(repeated_layers(model))
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no list of equal layers to compile; set torch_compile off"
        )
    options = {"mode": mode} if backend == "inductor" else {}
    for layer in layers:
        layer.compile(dynamic=dynamic, backend=backend, **options)
    return len(layers)


def release_regions(model: nn.Module) -> None:
    """Undo `compile_regions`: the layers run as they are written again."""
    for layer in repeated_layers(model):
        layer._compiled_call_impl = None


def repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of every outermost list of layers of one class; experts inside stay whole."""
    if is_repeated_blocks(model):
        yield from model.children()
        return
    for child in model.children():
        yield from repeated_layers(child)


def bucket_length(length: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `length`, so that few lengths occur.

    Args:
        length: Tokens, at least 0.
        multiple: Width of a bucket in tokens, at least 1; 64 fills up 32 tokens on average.

    Raises:
        InputError: One of them is out of range.
    """
    if length < 0 or multiple < 1:
        raise InputError(
            f"length is {length} and multiple is {multiple}; at least 0 and at least 1 are needed"
        )
    return -(-length // multiple) * multiple


def num_graphs() -> int:
    """Graphs that this process has compiled so far; it stands still once lengths are no news."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
