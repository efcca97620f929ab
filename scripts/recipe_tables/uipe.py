"""UIPE after four bases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recipe_tables.baselines import npo_recipe, original_recipe
from recipe_tables.common import FAMILY, KEYS, LLAMA2, SPLITS, UIPE_PAPER, tofu_data
from recipe_tables.layout import Recipe


def uipe() -> Iterator[Recipe]:
    """Extrapolation after each of the four bases."""
    for label in ("GA", "GA+GD", "GA+KL", "NPO"):
        for forget in SPLITS:
            base = (
                npo_recipe("", label, LLAMA2)
                if label == "NPO"
                else original_recipe("", label, LLAMA2)
            )
            method = base.method
            whose = "NPO's, 10 epochs" if label == "NPO" else "TOFU's, 5 epochs"
            kept = [note for note in base.notes[1:] if not note.startswith("The released code")]
            padded = (
                "The KL averages over all positions of rows padded to 500 tokens, as in TOFU's "
                "code.",
            )
            yield replace(
                base,
                name=f"uipe/{KEYS[label]}_llama2_7b_{forget}",
                summary=f"UIPE({label}) on TOFU {forget}, Llama-2-7B-chat: {label}, extrapolated.",
                notes=(
                    f"Numbers: {UIPE_PAPER}: the base, this split and alpha 0.5, at which methods "
                    "are compared; the grid is 0, 0.2, 0.4, 0.6, 0.8, 1.",
                    f"Open points: its summary has no training settings. They are {whose}, "
                    f"learning rate 1e-5, {FAMILY}, weights 1. Stop the base before utility "
                    "collapses: extrapolation amplifies the direction it went.",
                    *(padded if label == "GA+KL" else ()),
                    *kept,
                ),
                data=tofu_data(forget, str(base.data["retain_pairing"])),
                method=f"UIPE({method}, alpha=0.5)",
            )
