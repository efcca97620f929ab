"""UIPE: parameter extrapolation, arXiv:2503.04693."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.core.errors import InputError, Problem


@dataclass(frozen=True, kw_only=True)
class ExtrapolationOptions:
    """Options of UIPE.

    Attributes:
        alpha: How much of the update is added once more; 0 is the unlearned model, -1 the target
            model, the paper's grid is 0 to 1 and 0.5 across methods.
    """

    alpha: float = 0.5


def extrapolate(
    initial: Mapping[str, Tensor], unlearned: Mapping[str, Tensor], *, alpha: float
) -> dict[str, Tensor]:
    """`unlearned + alpha (unlearned - initial)` for every floating tensor; others are copied.

    The difference is formed in float32 at least and cast once at the end, to the type of the
    unlearned tensor. Exactly `unlearned` at alpha 0 and `initial` at alpha -1.

    Args:
        initial: Parameters where unlearning started.
        unlearned: Parameters where it ended.
        alpha: Extrapolation factor.

    Raises:
        InputError: The two have different names or shapes, that is, different architectures.
    """
    check_same_architecture(initial, unlearned)
    result = {}
    for name, end in unlearned.items():
        start = initial[name]
        if not end.is_floating_point() or alpha == 0:
            result[name] = end.clone()
        elif alpha == -1:
            result[name] = start.to(end.dtype, copy=True)
        else:
            wide = torch.promote_types(torch.promote_types(end.dtype, start.dtype), torch.float32)
            update = end.to(wide) - start.to(wide)
            result[name] = (end.to(wide) + alpha * update).to(end.dtype)
    return result


def check_same_architecture(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Raise when two sets of parameters differ in names or shapes.

    Raises:
        InputError: Lists up to five parameters that differ.
    """
    problems = []
    for name in sorted(first.keys() | second.keys()):
        shapes = [tuple(d[name].shape) if name in d else None for d in (first, second)]
        if shapes[0] != shapes[1]:
            problems.append(
                Problem(
                    where=name, message=f"shape {shapes[0]} in one model, {shapes[1]} in the other"
                )
            )
    if problems:
        shown = problems[:5]
        if len(problems) > 5:
            shown.append(Problem(where="", message=f"and {len(problems) - 5} more"))
        raise InputError(shown, source="the pair of models (they must share one architecture)")


def update_norm(initial: Mapping[str, Tensor], unlearned: Mapping[str, Tensor]) -> float:
    """Euclidean norm of the parameter update, at least 0; summed in float64."""
    total = 0.0
    for name, end in unlearned.items():
        if end.is_floating_point():
            total += float((end.double() - initial[name].double()).square().sum())
    return math.sqrt(total)
