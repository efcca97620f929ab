"""Unlearning at inference time: logits of several models, of one vocabulary, made into one.

Shape legend: ... any leading dimensions, V vocabulary. All arithmetic is in float32 at least, and
so is every result: with a large alpha, half precision would return rounding noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor

from expunge.core.errors import InputError, Problem, did_you_mean
from expunge.core.options import check_options, options_of
from expunge.models.combined_folder import PARTS
from expunge.models.outputs import upcast

CombineRule = Literal["uld", "uld_offset", "whp"]


@dataclass(frozen=True, kw_only=True)
class UldOptions:
    """Options of ULD, unlearning from logit difference, arXiv:2406.08607.

    Attributes:
        weight: Factor of the assistant's logits, at most 0: -0.8 in the released TOFU evaluation,
            -0.7 for copyright, -1 in the released config.
        top_logit_filter: Tokens less likely than this share of the target's likeliest one keep the
            target's logit, unless they are among that share of the vocabulary; 0 subtracts
            everywhere. 0.01 in the released scripts, 0.1 in the released config.
        layers: Decoder layers of the target that the assistant starts from.
    """

    weight: Annotated[float, Le(0)] = -0.8
    top_logit_filter: Annotated[float, Ge(0), Le(1)] = 0.01
    layers: Annotated[int, Gt(0)] = 8


@dataclass(frozen=True, kw_only=True)
class WhpOptions:
    """Options of WHP, who's Harry Potter, in the inference-time form of MUSE (arXiv:2310.02238).

    Attributes:
        alpha: How strongly tokens that reinforcement made likelier are pushed down; 0 is the target
            model. MUSE chose 4 for News and 256 for Books from powers of two.
    """

    alpha: Annotated[float, Ge(0)] = 4.0


def uld_logits(
    target: Tensor,
    assistant: Tensor,
    *,
    weight: float = UldOptions.weight,
    top_logit_filter: float = UldOptions.top_logit_filter,
) -> Tensor:
    """ULD: `target + weight * assistant`, unlikely tokens left as the target has them, [..., V].

    Args:
        target: Logits of the model to unlearn, [..., V].
        assistant: Logits of a model that knows the forget set and little else, [..., V].
        weight: Factor of the assistant, below 0 to unlearn.
        top_logit_filter: See `unlikely_tokens`.
    """
    target, assistant = upcast(target), upcast(assistant)
    unlikely = unlikely_tokens(target, top_logit_filter)
    if unlikely is not None:
        assistant = assistant.masked_fill(unlikely, 0.0)
    return target + weight * assistant


def unlikely_tokens(logits: Tensor, share: float) -> Tensor | None:
    """Tokens too unlikely for the assistant to speak about, bool, [..., V]; None if there are none.

    Below both thresholds: `share` of the likeliest token's probability, and the probability of
    rank `floor(share * V)`. Where that rank is 0 the released code takes the last token instead,
    so that nothing is below, and we do the same.

    Args:
        logits: Logits of the target model, [..., V].
        share: The released `top_logit_filter`, in [0, 1]; 0 turns the filter off.
    """
    rank = int(share * logits.shape[-1])
    if rank == 0:
        return None
    logps = upcast(logits).log_softmax(-1)
    best = logps.topk(rank, dim=-1).values
    threshold = (best[..., :1] + math.log(share)).minimum(best[..., -1:])
    return logps < threshold


def uld_offset_logits(
    target: Tensor,
    assistant: Tensor,
    base_assistant: Tensor,
    *,
    weight: float = UldOptions.weight,
) -> Tensor:
    """ULD's offset form: `target + weight * (assistant - base_assistant)`, [..., V].

    Args:
        target: Logits of the model to unlearn, [..., V].
        assistant: Logits of the trained assistant, [..., V].
        base_assistant: Logits of the assistant before training, [..., V].
        weight: Factor of what the assistant has learned, below 0 to unlearn.
    """
    return upcast(target) + weight * (upcast(assistant) - upcast(base_assistant))


def whp_logits(target: Tensor, reinforced: Tensor, *, alpha: float = WhpOptions.alpha) -> Tensor:
    """WHP: `target - alpha * relu(reinforced - target)`, [..., V].

    Args:
        target: Logits of the model to unlearn, [..., V].
        reinforced: Logits of the target model fine-tuned on the forget set, [..., V].
        alpha: How strongly tokens that became likelier are pushed down.
    """
    target, reinforced = upcast(target), upcast(reinforced)
    return target - alpha * (reinforced - target).relu()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the logits of several models become one.

    Attributes:
        parts: Names of the models, in the order of the function's arguments; the first one is the
            model to unlearn.
        combine: The function.
        options: Dataclass that holds limits and defaults of the function's options.
    """

    parts: tuple[str, ...]
    combine: Callable[..., Tensor]
    options: type

    def check(self, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """All options of the function, defaults filled in, and what is wrong with the given ones.

        Args:
            values: Options by name.
        """
        names = options_of(self.combine)
        known = {name: limits for name, limits in options_of(self.options).items() if name in names}
        given, problems = check_options(values, known, owner=self.combine.__name__)
        return {name: option.default for name, option in known.items()} | given, problems


RULES: dict[str, Rule] = {
    "uld": Rule(parts=PARTS["uld"], combine=uld_logits, options=UldOptions),
    "uld_offset": Rule(parts=PARTS["uld_offset"], combine=uld_offset_logits, options=UldOptions),
    "whp": Rule(parts=PARTS["whp"], combine=whp_logits, options=WhpOptions),
}
"""Everything that a `CombinedModel` can do."""


def find_rule(name: str) -> Rule:
    """The rule called `name`.

    Raises:
        InputError: It is none of `RULES`.
    """
    if name not in RULES:
        raise InputError(f"unknown rule {name!r}. {did_you_mean(name, list(RULES))}")
    return RULES[name]
