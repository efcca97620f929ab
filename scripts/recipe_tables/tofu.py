"""One file per method and model on TOFU forget10, and SimNPO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recipe_tables.baselines import npo_recipe, original_recipe
from recipe_tables.closer_look import closer_look_recipe
from recipe_tables.common import (
    KEYS,
    LLAMA2,
    MODELS,
    OTHERS_1001,
    SIMNPO_CODE,
    UIPE_PAPER,
    WHAT,
    tofu_recipe,
    training,
)
from recipe_tables.egup import egup_recipe
from recipe_tables.layout import Recipe


def tofu() -> Iterator[Recipe]:
    """One file per method and model on forget10, and SimNPO, whose numbers follow the split."""
    for key, model in MODELS.items():
        for label in ("GA", "GA+GD", "GA+KL", "IDK"):
            yield original_recipe(f"tofu/{KEYS[label]}_{key}", label, model)
        for label in ("NPO", "NPO+GD", "NPO+KL"):
            yield npo_recipe(f"tofu/{KEYS[label]}_{key}", label, model)
        yield replace(
            npo_recipe(f"tofu/uipe_npo_gd_{key}", "NPO+GD", model),
            summary=f"UIPE(NPO+GD) on TOFU forget10, {model.title}: NPO+GD, then extrapolated.",
            method="UIPE(NPO+GD, alpha=0.5)",
            notes=(
                *npo_recipe("", "NPO+GD", model).notes,
                f"alpha 0.5 is the value at which {UIPE_PAPER} compares methods; its grid is 0 to "
                "1. NPO+GD is not among its four bases: those are in uipe/.",
            ),
        )
        for label in ("IDK+GD", "IDK+AP", "ME+GD"):
            yield closer_look_recipe(f"tofu/{KEYS[label]}_{key}", label, model, "forget10")
        for wrapper in ("EGU", "EGUP"):
            yield egup_recipe(
                f"tofu/{wrapper.lower()}_npo_gd_{key}", wrapper, "NPO+GD", key, "forget10"
            )
    for forget, beta, weight in (("forget05", 2.5, 0.1375), ("forget10", 4.5, 0.125)):
        yield tofu_recipe(
            f"tofu/simnpo_gd_llama2_7b_{forget}",
            LLAMA2,
            forget,
            label="SimNPO+GD",
            what=WHAT["SimNPO+GD"],
            method=f"SimNPO(beta={beta}, weight={weight})+GD",
            numbers=f"Numbers: {SIMNPO_CODE} (TOFU/README.md): beta {beta} and forget weight "
            f"{weight} for this split, retain weight 1, delta 0, learning rate 1e-5, 10 epochs, "
            "batch 1 x 4 x 8 = 32, weight decay 0.01, linear with one epoch of warm-up.",
            section=training(1e-5, 10),
            pairing="fixed_by_index",
            seeds=OTHERS_1001,
        )
