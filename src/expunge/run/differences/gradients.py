"""How two gradients compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Leaves = Mapping[tuple[str, str], Tensor]
Gradients = Mapping[tuple[str, str], Tensor]

_NOISE = 1e-13  # what rounding leaves of a gradient that is 0


class Ran(NamedTuple):
    """Value of an objective, and its gradient by every leaf."""

    value: float
    gradients: Gradients


class Agreement(NamedTuple):
    """Cosine of two gradients, and norm of the second over that of the first.

    The cosine is nan where one of them is 0; then the ratio is 0, infinite, or nan for two zeros.
    """

    cosine: float
    ratio: float


def gradients_of(leaves: Leaves) -> Gradients:
    """Gradients after a backward pass, 0 where it did not reach."""
    return {
        key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for key, leaf in leaves.items()
    }


def agreement(plain: Gradients, other: Gradients) -> Agreement:
    """Compare two gradients over all leaves; one that is missing is 0."""
    first, second = norm(plain), norm(other)
    if not first or not second:
        ratio = math.nan if first == second else (math.inf if second else 0.0)
        return Agreement(math.nan, ratio)
    dot = sum(float((plain[key] * other[key]).sum()) for key in plain.keys() & other.keys())
    return Agreement(dot / (first * second), second / first)


def norm(gradients: Gradients) -> float:
    """Euclidean norm over all leaves; 0 for what is rounding noise."""
    total = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    return 0.0 if total < _NOISE else total


def share_that_moves(gradients: Gradients) -> float:
    """Share of the gradient by logits that changes a probability; nan without one.

    The part that is the same for all tokens of a position does not.
    """
    by_logits = {key: gradient for key, gradient in gradients.items() if key[1] == "logits"}
    whole = norm(by_logits)
    centred = {key: g - g.mean(-1, keepdim=True) for key, g in by_logits.items()}
    return norm(centred) / whole if whole else math.nan
