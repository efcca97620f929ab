"""UIPE: parameter extrapolation, arXiv:2503.04693."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from expunge.core.errors import InputError, Problem


@dataclass(frozen=True, kw_only=True)
class ExtrapolationOptions:
    """Options of UIPE.

    Attributes:
        alpha: How much of the update is added once more; 0 is the unlearned model, -1 the target
            model, the paper's grid is 0 to 1 and 0.5 across methods. `auto` takes the largest
            factor that stays within the utility budget, see `choose_alpha`.
        alpha_max: Largest factor that `auto` considers.
        evaluations: Factors that `auto` measures at most.
    """

    alpha: float | Literal["auto"] = 0.5
    alpha_max: Annotated[float, Gt(0)] = 2.0
    evaluations: Annotated[int, Ge(2)] = 8


class AlphaPoint(NamedTuple):
    """Utility at a factor, as a share of the target model's."""

    alpha: float
    utility: float


@dataclass(frozen=True, kw_only=True)
class AlphaSearch:
    """What `choose_alpha` found.

    Attributes:
        alpha: The chosen factor.
        budget: Share of the utility that must be left.
        curve: Every factor measured, in ascending order.
        bounded: The largest factor allowed is within the budget, so a larger one may be too.
    """

    alpha: float
    budget: float
    curve: tuple[AlphaPoint, ...]
    bounded: bool


def choose_alpha(
    utility: Callable[[float], float],
    *,
    budget: float,
    alpha_max: float = 2.0,
    evaluations: int = 8,
) -> AlphaSearch:
    """The largest extrapolation factor within a utility budget, by bisection on weights alone.

    Utility falls along the update, so the factor lies between the last one within the budget and
    the first one beyond it. Where already the unlearned model (0) is beyond, it lies between the
    target model (-1), which has all its utility, and 0: the update is shortened.

    Args:
        utility: Share of the target model's utility at a factor, 1 at -1; called once per factor.
        budget: Share that must be left, above 0 to 1.
        alpha_max: Largest factor considered.
        evaluations: Calls of `utility` at most, at least 2.
    """
    curve = {0.0: utility(0.0)}
    if curve[0.0] < budget:
        low, high = -1.0, 0.0
    else:
        curve[alpha_max] = utility(alpha_max)
        if curve[alpha_max] >= budget:
            return _found(alpha_max, budget, curve, bounded=True)
        low, high = 0.0, alpha_max
    while len(curve) < evaluations:
        middle = (low + high) / 2
        if middle in curve:
            break  # no number lies between the two
        curve[middle] = utility(middle)
        low, high = (middle, high) if curve[middle] >= budget else (low, middle)
    return _found(low, budget, curve, bounded=False)


def _found(alpha: float, budget: float, curve: dict[float, float], *, bounded: bool) -> AlphaSearch:
    points = tuple(AlphaPoint(at, curve[at]) for at in sorted(curve))
    return AlphaSearch(alpha=alpha, budget=budget, curve=points, bounded=bounded)


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
