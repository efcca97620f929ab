"""The machine's limit: how fast it multiplies matrices, measured in the same run as the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from flops import GIGA, Linear, Shape
from torch import Tensor

SQUARES = (1024, 2048)
"""Sides of the square matrices; the faster one counts."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Speed of matrix products, 10^9 operations per second; higher is faster.

    Attributes:
        square: Of large square matrices: the ceiling.
        model: Of the products of one step of the model, forward and backward, one after the other:
            what is left of the ceiling at the model's own shapes.
    """

    square: float
    model: float


@dataclass(frozen=True, kw_only=True)
class Products:
    """The products of a step.

    Attributes:
        shape: The model.
        tokens: Real tokens of a step.
        answers: Answer tokens of a step.
    """

    shape: Shape
    tokens: int
    answers: int


def measure_ceiling(
    dtype: torch.dtype,
    products: Products,
    *,
    squares: Sequence[int] = SQUARES,
    repeats: int = 3,
) -> Ceiling:
    """Speed of this process with its number of threads.

    Args:
        dtype: Type of the matrices.
        products: The model's own shapes.
        squares: Sides of the square matrices.
        repeats: Runs of each; the fastest counts.
    """
    best = max(_square(side, dtype, repeats) for side in squares)
    shape = products.shape
    head = Linear(shape.hidden, shape.vocabulary, 1)
    measured = [
        *(_layer(one, products.tokens, dtype, repeats) for one in shape.linears),
        _layer(head, products.answers, dtype, repeats),
    ]
    work = sum(operations for operations, _ in measured)
    return Ceiling(square=best, model=work / sum(seconds for _, seconds in measured) / GIGA)


def _square(side: int, dtype: torch.dtype, repeats: int) -> float:
    left, right = _random(side, side, dtype), _random(side, side, dtype)
    return 2 * side**3 / _fastest(lambda: left @ right, repeats) / GIGA


def _layer(one: Linear, rows: int, dtype: torch.dtype, repeats: int) -> tuple[float, float]:
    """Operations and seconds of all layers of a shape: output, gradient of input and weight."""
    weight = _random(one.outputs, one.inputs, dtype)
    inputs, gradient = _random(rows, one.inputs, dtype), _random(rows, one.outputs, dtype)

    def step() -> None:
        torch.nn.functional.linear(inputs, weight)
        _ = gradient @ weight
        _ = gradient.T @ inputs

    seconds = _fastest(step, repeats) * one.count
    return 6.0 * one.inputs * one.outputs * rows * one.count, seconds


def _random(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns).to(dtype)


def _fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
