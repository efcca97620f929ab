"""EGU and EGUP around four bases, on TOFU and MUSE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recipe_tables.common import (
    EGUP_FINETUNED,
    EGUP_PAPER,
    KEYS,
    LORA,
    MIXED,
    MODELS,
    SPLITS,
    finetune,
    tofu_recipe,
    training,
)
from recipe_tables.layout import Noted, Recipe
from recipe_tables.muse import muse_recipe, muse_source, muse_target, muse_training

EGUP_BASES = ("GA", "GA+GD", "NPO", "NPO+GD")


def egup() -> Iterator[Recipe]:
    """Both tables of the paper: EGU and EGUP around four bases, and EGUP on MUSE."""
    for wrapper in ("EGU", "EGUP"):
        for base in EGUP_BASES:
            for key in MODELS:
                for forget in SPLITS:
                    name = f"egup/{wrapper.lower()}_{KEYS[base]}_{key}_{forget}"
                    yield egup_recipe(name, wrapper, base, key, forget)
    for corpus in ("news", "books"):
        for base in EGUP_BASES:
            yield _on_muse(corpus, base)


def egup_recipe(name: str, wrapper: str, base: str, key: str, forget: str) -> Recipe:
    """EGU or EGUP around a base on one TOFU split."""
    model, adapters = MODELS[key], key == "llama2_7b"
    with_proxies = wrapper == "EGUP"
    method = f"{wrapper}({base}, k=1, mu=0.001)" if with_proxies else f"EGU({base}, k=1)"
    sizes = "batch 8, 2 epochs, LoRA with dropout 0.05" if adapters else "batch 16, 1 epoch"
    missing = ["learning rate (TOFU's for this model)"]
    missing += ["LoRA rank and alpha (8 and 32 as in Closer Look)"] if adapters else []
    missing += ["beta (0.1 as in NPO)"] if "NPO" in base else []
    missing += [
        "schedule (TOFU's, linear with one epoch of warm-up)"
        if adapters
        else "schedule (TOFU's, linear; without its epoch of warm-up, as there is only one)"
    ]
    notes = (
        "Tried there: k 0.5, 1 and 2"
        + ("; mu 0.001 and 0.005" if with_proxies else "")
        + f'. The other rows of its tables: method={base} for the base, method="PROXY({base}, '
        'mu=0.001)" for the proxy constraint alone.',
        f"Open points (E-18), missing in the paper and taken elsewhere: {', '.join(missing)}. The "
        "row length of 500 is TOFU's. How the text was read otherwise: docs/explanation/egup.md.",
    )
    if with_proxies:
        notes += (f"Needs proxy answers: expunge proxies {name}, then expunge unlearn {name}.",)
    warmup = {"warmup_epochs": 1 if adapters else Noted(None, "missing in the paper")}
    return tofu_recipe(
        name,
        model,
        forget,
        label=f"{wrapper}({base})",
        what="weights by entanglement" + (", proxy constraint" if with_proxies else ""),
        method=method,
        numbers=f"Numbers: {EGUP_PAPER}: {sizes}, weight decay 0.01, seed 42"
        f"{', retain weight 1' if 'GD' in base else ''}.",
        notes=notes,
        section=training(
            Noted(model.learning_rate, "missing in the paper: TOFU's"),
            2 if adapters else 1,
            batch=8 if adapters else 16,
            warmup=warmup,
            checkpointing=model.checkpointing,
        ),
        pairing="shuffled",
        lora=LORA if adapters else None,
        made=finetune(model, 10, "the EGUP paper: 10 epochs; learning rate of TOFU"),
        how_made=EGUP_FINETUNED,
    )


EGUP_EPOCHS = {"GA": (1, 1), "GA+GD": (7, 1), "NPO": (1, 1), "NPO+GD": (10, 1)}  # News, Books


def _on_muse(corpus: str, base: str) -> Recipe:
    title = corpus.capitalize()
    epochs = EGUP_EPOCHS[base][corpus == "books"]
    name = f"egup/muse_{corpus}_egup_{KEYS[base]}"
    return replace(
        muse_recipe(corpus, base, base, name=name, epochs=epochs),
        summary=f"EGUP({base}) on MUSE {title}: weights by entanglement, proxy constraint.",
        notes=(
            "Numbers: arXiv:2508.20443, appendix A.2 and table 3: learning rate 1e-5 constant, "
            f"batch 16, {epochs} of 10 epochs for this base. Weight decay 0 and length 2048 are "
            "MUSE's.",
            "Open points: how text was given a proxy. The constraint compares two answers to one "
            f"question, so the forget text is read here as pairs: muse/{corpus}_forget_pairs.jsonl "
            "with the beginning of a piece as question and its continuation as answer, and "
            f"muse/{corpus}_proxies.jsonl with question and proxy_answer. For the plain text, "
            f'which needs no proxies: method="EGU({base}, k=1)" with the data of '
            f"muse/{corpus}_{KEYS[base]}. Which NPO: that of sequences, not MUSE's. Beta: 0.1. "
            "k and mu: 1 and 0.001 as on TOFU.",
            muse_target(title),
            MIXED,
        ),
        data={
            "forget": f"muse/{corpus}_forget_pairs.jsonl",
            "retain": muse_source(corpus, "retain1"),
            "proxies": f"muse/{corpus}_proxies.jsonl",
            "max_length": 2048,
            "on_too_long": "truncate",
            "text_form": "muse",
            "retain_pairing": "shuffled",
        },
        method=f"EGUP({base}, k=1, mu=0.001)",
        training=muse_training(epochs, batch=16),
    )
