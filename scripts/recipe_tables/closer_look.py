"""A Closer Look at Machine Unlearning: single and continual requests, individuals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recipe_tables.common import (
    CLOSER_CODE,
    FAMILY,
    KEYS,
    LLAMA2,
    LLAMA3,
    LORA,
    MIXED,
    OTHER_SPLITS,
    OTHERS_1001,
    PHI,
    SPLITS,
    WHAT,
    Model,
    model_section,
    tofu_recipe,
    training,
)
from recipe_tables.layout import Inline, Recipe, Values, scalar

ME_ALL = "ME(direction=uniform_to_model, positions=all, weight={weight})+GD"
ME_NOTE = (
    "As released: KL(uniform || model) over every position of rows padded to {length} tokens, "
    "because mask=false labels the padding, too. The paper's text has KL(model || uniform) over "
    'question and answer: method="ME(weight={weight})+GD" training.pad_to=null.'
)
CLOSER_METHODS = (
    *("ME+GD", "IDK+AP", "GA+GD", "GA+KL", "NPO+GD", "NPO+KL"),
    *("IDK+GD", "IDK+KL", "DPO+GD", "DPO+KL"),
)


def closer_look() -> Iterator[Recipe]:
    """Single requests, adapters, continual requests, real-world individuals."""
    for forget in SPLITS:
        for label in CLOSER_METHODS:
            yield closer_look_recipe(f"closer_look/{KEYS[label]}_{forget}", label, LLAMA2, forget)
        for label in ("ME+GD", "IDK+AP"):
            name = f"closer_look/{KEYS[label]}_lora_{forget}"
            yield closer_look_recipe(name, label, LLAMA2, forget, lora=LORA)
            yield _continual(label, forget)
    yield from (_real_world("ME+GD"), _real_world("IDK+AP"))


def closer_look_recipe(
    name: str, label: str, model: Model, forget: str, *, lora: Values | None = None
) -> Recipe:
    """A method on one TOFU split, with all weights or adapters."""
    script = "me_gd" if label == "ME+GD" else "idk_ap" if label == "IDK+AP" else "baselines"
    weights = "forget weight 0.1, retain weight 1" if label == "ME+GD" else "weights 1, beta 0.1"
    notes = (ME_NOTE.format(length=500, weight=0.1),) if label == "ME+GD" else ()
    if forget == "forget01":
        notes += ("No warm-up: 40 rows are one step per epoch in that code, which then has none.",)
    if lora is not None:
        notes += (
            "Adapters: r 8, alpha 32, dropout 0.05 on all linear layers but the head "
            "(config/tofu.yaml). Open point: a learning rate for adapters; the scripts switch "
            "use_LoRA on and leave 1e-5.",
        )
    if model is PHI:
        notes += ("Open point: that paper has no Phi-1.5; its settings are kept.", OTHER_SPLITS)
    return tofu_recipe(
        name,
        model,
        forget,
        label=label + (" with LoRA" if lora is not None else ""),
        what=WHAT[label],
        method=_method(label),
        numbers=f"Numbers: {CLOSER_CODE} (config/tofu.yaml, scripts/tofu/{script}.sh): learning "
        f"rate 1e-5, 5 epochs, {FAMILY}; {weights}.",
        notes=notes,
        section=training(
            1e-5,
            5,
            warmup={"warmup_epochs": 0} if forget == "forget01" else None,
            checkpointing=model.checkpointing,
        ),
        pairing="fixed_by_index",
        lora=lora,
        seeds=OTHERS_1001,
    )


def _method(label: str, weight: float = 0.1) -> str:
    if label == "ME+GD":
        return ME_ALL.format(weight=weight)
    return label.replace("KL", "KL(positions=all)")


# Forget and retain rows of the second request; None: the retain rows are not contiguous.
SECOND = {
    "forget01": ("tofu:full[3800:3840]", None),
    "forget05": ("tofu:full[3600:3800]", "tofu:retain90"),
    "forget10": ("tofu:full[3200:3600]", "tofu:retain80"),
}


def _continual(label: str, forget: str) -> Recipe:
    first = closer_look_recipe("", label, LLAMA2, forget)
    name = f"closer_look/continual_{KEYS[label]}_{forget}"
    rows, retain = SECOND[forget]
    where = "" if retain else ", where FILE holds full without the rows of both requests"
    script = "me_gd" if label == "ME+GD" else "idk_ap"
    me = (
        "The forget weight is 1.0 in this script, 0.1 for a single request and 0.5 for real-world "
        "individuals.",
        ME_NOTE.format(length=500, weight=1.0),
    )
    return replace(
        first,
        name=name,
        summary=f"{label}, continual requests of TOFU {forget} size, Llama-2-7B-chat: the first.",
        notes=(
            f"Numbers: {CLOSER_CODE} (scripts/continual_tofu/{script}.sh, config/tofu.yaml): "
            f"learning rate 1e-5, 5 epochs per request, {FAMILY}; "
            + ("weights 1." if label == "ME+GD" else "weights 1, beta 0.1."),
            *(me if label == "ME+GD" else ()),
            *(note for note in first.notes if note.startswith(("No warm-up", "All 7"))),
            f"{10 if forget != 'forget10' else 9} requests follow each other. The second starts "
            "from the result of this one, which is its reference model, too (fix_ref_model=false): "
            f"expunge unlearn {name} finetune=null "
            f"model.path=runs/{name.replace('/', '-').replace('_', '-')}/model "
            f"data.forget={rows} data.retain={retain or 'FILE'} "
            f"output_dir=runs/request2{where}. The rows of every request are in "
            "expunge.data.tofu.continual_splits(); what is retained is everything that no request "
            "has named so far.",
            *first.notes[-2:],
        ),
        method=_method(label, 1.0),
    )


def _real_world(label: str) -> Recipe:
    entropy = label == "ME+GD"
    script = "me_gd" if entropy else "idk_ap"
    weights = "forget weight 0.5, retain weight 1" if entropy else "weights 1, beta 0.1"
    rate = 5e-6 if entropy else 1e-5
    return Recipe(
        name=f"closer_look/real_world_{KEYS[label]}",
        summary=f"{label} on real-world individuals, Llama-3-8B-Instruct: {WHAT[label]}.",
        notes=(
            f"Numbers: {CLOSER_CODE} (config/real_world.yaml, scripts/real_world/{script}.sh): "
            f"learning rate {scalar(rate)}, 5 epochs, batch 4 x 4 x 2 = 32, weight decay 0.01, "
            "linear with one epoch of warm-up, rows of at most 300 tokens, seed 1001; "
            f"{weights}. The baselines there try learning rates 1e-5, 5e-6 and 2e-6, and 3 and 5 "
            "epochs.",
            "The data have no licence and do not come with the package. Put forget.json, "
            "forget_perturbed.json, neighbor.json and neighbor_perturbed.json, JSON lines, into "
            "the folder real_world here. Training reads the first of each pair, question and the "
            "model's own answer in answer, for 20 people to forget and 20 others; evaluation reads "
            "the second and compares with golden_answer, as the paper does.",
            *((ME_NOTE.format(length=300, weight=0.5),) if entropy else ()),
            "There is no retain model: the knowledge is in the pretraining.",
            MIXED,
        ),
        seed=1001,
        model=model_section(LLAMA3.path),
        template=LLAMA3.template,
        data={
            "forget": "real_world/forget.json",
            "retain": "real_world/neighbor.json",
            "max_length": 300,
            "on_too_long": "truncate",
            "retain_pairing": "fixed_by_index",
        },
        method=_method(label, 0.5),
        training=training(rate, 5) | ({"pad_to": 300} if entropy else {}),
        evaluation={
            "benchmark": "real_world",
            "preset": "real_world_cl",
            "options": Inline(folder="real_world"),
        },
    )
