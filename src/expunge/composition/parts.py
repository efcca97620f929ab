"""What every building block of a method declares, and the registries that know them by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from expunge.core.registry import Registry
from expunge.objectives import Term


@dataclass(frozen=True, kw_only=True)
class Part:
    """What every registered building block declares.

    Attributes:
        name: Name in the notation.
        title: What it is, in a few words.
        paper: Where it comes from.
        notes: Where sources disagree and what is done here.
        aliases: Other names that are understood.
    """

    name: str
    title: str
    paper: str
    notes: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ForgetLoss(Part):
    """What is done on the forget set.

    Attributes:
        term: The loss with its stream and weight.
        kind: `untargeted`: forget without saying what to answer instead; `targeted`: answer this;
            `reinforcing`: learn the forget set, for steps that turn what was learned around.
        auxiliary: Further terms, by the name that stands before `_weight` in its option.
        weight_with: Published forget weight when combined with the named retain term.
        retain_weight_with: Published weight of the named retain term.
        alternates: Where the alternate answers come from: `rejections`, or a `file` with answers
            for every forget row.
        needs_limit: The retain term must follow a primal-dual rule.
        trainable: Parameters that move unless the user says otherwise: "all", or a pattern in which
            `{layer}`, `{layer-1}` and `{layer-2}` stand for the block of the loss and those before.
    """

    term: Term
    kind: Literal["untargeted", "targeted", "reinforcing"] = "untargeted"
    auxiliary: Mapping[str, Term] = field(default_factory=dict)
    weight_with: Mapping[str, float] = field(default_factory=dict)
    retain_weight_with: Mapping[str, float] = field(default_factory=dict)
    alternates: Literal["rejections", "file"] = "rejections"
    needs_limit: bool = False
    trainable: str = "all"


@dataclass(frozen=True, kw_only=True)
class RetainTerm(Part):
    """What protects the rest. Attributes: `term`, the loss with its stream and weight."""

    term: Term


@dataclass(frozen=True, kw_only=True)
class Wrapper(Part):
    """What weighs, constrains or updates any forget loss.

    Attributes:
        options: Dataclasses whose fields are its options.
        rank: Place among nested wrappers, 0 innermost.
    """

    options: tuple[type, ...]
    rank: int = 1


@dataclass(frozen=True, kw_only=True)
class PostStep(Part):
    """What is done with the trained weights.

    Attributes:
        options: Dataclass of its options.
        inner: The method that is meant when nothing stands in its brackets.
        result: Whether it gives `weights` or a `combination` of two models at inference time.
    """

    options: type
    inner: str = ""
    result: Literal["weights", "combination"] = "weights"


def _discover() -> None:
    package = importlib.import_module("expunge.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


forget_losses: Registry[ForgetLoss] = Registry("forget loss", _discover)
retain_terms: Registry[RetainTerm] = Registry("retain term", _discover)
wrappers: Registry[Wrapper] = Registry("wrapper", _discover)
post_steps: Registry[PostStep] = Registry("post-processing step", _discover)


def register(part: Part) -> None:
    """Make a building block known by its name.

    Raises:
        ValueError: The name is taken.
        TypeError: It is of no known kind.
    """
    match part:
        case ForgetLoss():
            forget_losses.add(part.name, part, *part.aliases)
        case RetainTerm():
            retain_terms.add(part.name, part, *part.aliases)
        case Wrapper():
            wrappers.add(part.name, part, *part.aliases)
        case PostStep():
            post_steps.add(part.name, part, *part.aliases)
        case _:
            raise TypeError(f"cannot register {type(part).__name__}")
