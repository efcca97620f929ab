"""Baselines of the TOFU and the NPO paper."""

from __future__ import annotations

from recipe_tables.common import (
    FAMILY,
    NPO_CODE,
    OTHER_SPLITS,
    OTHERS_1001,
    PHI,
    TOFU_CODE,
    WHAT,
    Model,
    tofu_recipe,
    training,
)
from recipe_tables.layout import Recipe, scalar


def original_recipe(name: str, label: str, model: Model) -> Recipe:
    """A baseline of TOFU on forget10."""
    method = {"GA+KL": "GA+KL(positions=all)", "IDK": "IDK-TOFU"}.get(label, label)
    union = (
        "The released code takes one token mean over refusals and retain rows in one batch; the "
        "sum of two means is method=IDK+GD, refusals alone method=IDK."
    )
    return tofu_recipe(
        name,
        model,
        "forget10",
        label=label,
        what="refusals and retain rows in one batch" if label == "IDK" else WHAT[label],
        method=method,
        numbers=f"Numbers: {TOFU_CODE}: learning rate {scalar(model.learning_rate)} for this "
        f"model, 5 epochs, {FAMILY}; weights 1. {OTHER_SPLITS}",
        notes=(union,) if label == "IDK" else (),
        section=training(model.learning_rate, 5, checkpointing=model.checkpointing),
        pairing="random",
    )


def npo_recipe(name: str, label: str, model: Model) -> Recipe:
    """NPO with or without a retain term on forget10."""
    phi = " Open point: the paper has no Phi-1.5; its one learning rate is kept."
    return tofu_recipe(
        name,
        model,
        "forget10",
        label=label,
        what=WHAT[label],
        method="NPO+KL(positions=all)" if label == "NPO+KL" else label,
        numbers=f"Numbers: {NPO_CODE}: learning rate 1e-5, 10 epochs, {FAMILY}; beta 0.1, weights "
        f"1.{phi if model is PHI else ''} {OTHER_SPLITS}",
        section=training(1e-5, 10, checkpointing=model.checkpointing),
        pairing="fixed_by_index",
        seeds=OTHERS_1001,
    )
