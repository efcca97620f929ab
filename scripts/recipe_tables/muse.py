"""The baselines of MUSE as released, and SimNPO's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from recipe_tables.common import KEYS, MIXED, MUSE_CODE, SIMNPO_CODE, WHAT, model_section, training
from recipe_tables.layout import Inline, Recipe, Values

# Epochs of the checkpoint that MUSE chose, News and Books.
MUSE_METHODS = {
    "GA": ("GA", (1, 1)),
    "GA+GD": ("GA+GD", (7, 1)),
    "GA+KL": ("GA+KL-MUSE", (10, 4)),
    "NPO": ("NPO-MUSE", (1, 1)),
    "NPO+GD": ("NPO-MUSE+GD", (10, 1)),
    "NPO+KL": ("NPO-MUSE+KL-MUSE", (10, 3)),
}


def muse() -> Iterator[Recipe]:
    """The baselines of MUSE as released, and SimNPO's."""
    for corpus in ("news", "books"):
        for label, (method, epochs) in MUSE_METHODS.items():
            yield muse_recipe(corpus, label, method, epochs=epochs[corpus == "books"])
        yield _reinforced(corpus, "TASKVECTOR", "task_vector", 16 if corpus == "news" else 1)
        yield _reinforced(corpus, "WHP", "whp", 4 if corpus == "news" else 256)
        yield _simnpo(corpus)


def muse_source(corpus: str, split: str) -> Inline:
    """Raw text on the hub."""
    source = f"muse-bench/MUSE-{corpus.capitalize()}"
    return Inline(source=source, config="raw", split=split)


def muse_training(epochs: int, *, batch: int = 32, schedule: str = "constant") -> dict[str, Any]:
    """The training of all baselines."""
    return training(
        1e-5, epochs, batch=batch, decay=0.0, schedule=schedule, warmup={"warmup_steps": 0}
    )


def muse_target(title: str) -> str:
    """What the target model is, where its tokenizer is, and what its evaluation lacks."""
    model = {"News": "Llama-2-7B", "Books": "ICLM-7B"}[title]
    auc = {"News": 0.5228, "Books": 0.4607}[title]
    return (
        f"Target: {model} taught the corpus, muse-bench/MUSE-{title}_target. MUSE reads it with "
        "the tokenizer of meta-llama/Llama-2-7b-hf; where the folder of the target has none, put "
        "both into one and give that as model.path. Evaluation: PrivLeak needs a retain model, "
        f"evaluation.retain_run, or its published AUC, evaluation.options.retain_auc={auc}."
    )


def muse_evaluation(corpus: str, preset: str = "muse") -> Values:
    """The four criteria of MUSE on its texts on the hub."""
    folder = f"muse-bench/MUSE-{corpus.capitalize()}"
    return {"benchmark": "muse", "preset": preset, "options": Inline(folder=folder)}


def muse_recipe(corpus: str, label: str, method: str, *, epochs: int, name: str = "") -> Recipe:
    """A baseline with the epoch that was chosen for it."""
    title = corpus.capitalize()
    released = []
    if "NPO-MUSE" in method:
        released.append(f"{method.partition('+')[0]} compares raw logits one by one (NPO: NPO)")
    if "KL-MUSE" in method:
        released.append("KL-MUSE takes raw logits for log-probabilities (the divergence: KL)")
    as_released = (f"As released: {'; '.join(released)}.",) if released else ()
    beta = " Beta 0.1, weights 1." if "NPO" in method else " Weights 1."
    return Recipe(
        name=name or f"muse/{corpus}_{KEYS[label]}",
        summary=f"{label} on MUSE {title}: {WHAT[label]}.",
        notes=(
            f"Numbers: {MUSE_CODE}: learning rate 1e-5 constant, batch 4 x 8 = 32, pieces of 2048 "
            "tokens, AdamW without weight decay, the Trainer's seed 42; "
            f"{_epochs(epochs)} of 10, the checkpoint that the paper chose for this method.{beta}",
            *as_released,
            "The last piece is filled up from the start of the text, the retain piece is that of "
            "the same number (modulo).",
            muse_target(title),
            MIXED,
        ),
        seed=42,
        model=model_section(f"muse-bench/MUSE-{title}_target"),
        template={"name": "plain"},
        data={
            "forget": muse_source(corpus, "forget"),
            "retain": muse_source(corpus, "retain1"),
            "max_length": 2048,
            "on_too_long": "error",
            "text_form": "muse",
            "retain_pairing": "modulo",
        },
        method=method,
        training=muse_training(epochs),
        evaluation=muse_evaluation(corpus),
    )


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def _reinforced(corpus: str, step: str, key: str, alpha: int) -> Recipe:
    title = corpus.capitalize()
    what = {
        "TASKVECTOR": "learn the text, then go the other way in weight space",
        "WHP": "learn the text, then subtract what was learned from the logits",
    }[step]
    grid = "; the script's default is 5" if step == "TASKVECTOR" else "; the grid doubles from 1"
    base = muse_recipe(corpus, "GA", "GA", epochs=10)
    return replace(
        base,
        name=f"muse/{corpus}_{key}",
        summary=f"{step} on MUSE {title}: {what}.",
        notes=(
            f"Numbers: {MUSE_CODE}: 10 epochs on the forget text, learning rate 1e-5, cosine "
            "schedule, batch 4 x 8 = 32, pieces of 2048 tokens, AdamW without weight decay, "
            f"the Trainer's seed 42; alpha {alpha} chosen for {title}{grid}.",
            *base.notes[-2:],
        ),
        method=f"{step}(REINFORCE, alpha={alpha})",
        training=muse_training(10, schedule="cosine"),
    )


def _simnpo(corpus: str) -> Recipe:
    title, beta = corpus.capitalize(), 0.7 if corpus == "news" else 0.75
    base = muse_recipe(corpus, "GA+GD", "GA+GD", epochs=10)
    return replace(
        base,
        name=f"muse/{corpus}_simnpo_gd",
        summary=f"SimNPO+GD on MUSE {title}: {WHAT['SimNPO+GD']}.",
        notes=(
            f"Numbers: {SIMNPO_CODE} (MUSE/README.md at f3015fb): beta {beta}, retain weight 0.1, "
            "forget weight 1, learning rate 1e-5 constant, batch 4 x 8 = 32, epoch 10 of 10. "
            "Another version of that page (309d122) has beta 0.75, gamma 3 and epoch 8 for News, "
            "beta 0.7 and gamma 0 for Books.",
            "As released: raw logits one by one, whatever the token; the form of the paper is "
            f'method="SimNPO(beta={beta}, weight=1)+GD(weight=0.1)".',
            *base.notes[-2:],
        ),
        method=f"SimNPO-MUSE(beta={beta})+GD(weight=0.1)",
    )
