"""Methods as declarations, one file each: they register themselves when imported."""

from expunge.composition.method import Method, describe
from expunge.composition.notation import parse
from expunge.composition.parts import (
    ForgetLoss,
    Part,
    PostStep,
    RetainTerm,
    Wrapper,
    forget_losses,
    post_steps,
    register,
    retain_terms,
    wrappers,
)

__all__ = [
    "ForgetLoss",
    "Method",
    "Part",
    "PostStep",
    "RetainTerm",
    "Wrapper",
    "describe",
    "forget_losses",
    "parse",
    "post_steps",
    "register",
    "retain_terms",
    "wrappers",
]
