"""What recipes of several sources share: models, sections, phrases of the comments."""

from __future__ import annotations

from typing import Any, NamedTuple

from recipe_tables.layout import Noted, Recipe, Values, scalar

SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


class Model(NamedTuple):
    """A model and how the sources treat it."""

    title: str
    path: str
    template: Values
    learning_rate: float
    checkpointing: bool


PHI = Model("Phi-1.5", "microsoft/phi-1_5", {"name": "phi"}, 2e-5, False)
LLAMA2 = Model("Llama-2-7B-chat", "NousResearch/Llama-2-7b-chat-hf", {"name": "llama2"}, 1e-5, True)
# open-unlearning d3d7cf9, configs/model: the system prompt, and a date that does not move.
LLAMA32 = Model(
    "Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    {
        "name": "chat",
        "system_prompt": "You are a helpful assistant.",
        "date_string": "10 Apr 2025",
    },
    1e-5,
    True,
)
LLAMA3 = Model(
    "Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", {"name": "chat"}, 5e-6, True
)
ZEPHYR = Model("Zephyr-7B", "HuggingFaceH4/zephyr-7b-beta", {"name": "auto"}, 5e-5, True)
MODELS = {"phi15": PHI, "llama2_7b": LLAMA2}

LORA = {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": "all-linear"}
CLASSIC = {"benchmark": "tofu", "preset": "tofu_classic"}


def model_section(path: str) -> Values:
    """A model in the type that all sources load it in."""
    return {"path": path, "dtype": "bfloat16"}


def tofu_data(forget: str, pairing: str, *, max_length: int = 500) -> Values:
    """The packaged rows of a TOFU split."""
    return {
        "forget": f"tofu:{forget}",
        "retain": f"tofu:{SPLITS[forget]}",
        "max_length": max_length,
        "on_too_long": "truncate",
        "retain_pairing": pairing,
    }


def training(
    learning_rate: Any,
    epochs: Any,
    *,
    batch: Any = 32,
    micro: int = 4,
    decay: Any = 0.01,
    schedule: Any = "linear",
    warmup: Values | None = None,
    clip: Any = 1.0,
    checkpointing: bool = True,
    save: int | None = 0,
    **more: Any,
) -> dict[str, Any]:
    """A training section; without `warmup` it is one epoch, as in the TOFU family."""
    return {
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        **({"max_steps": more.pop("max_steps")} if "max_steps" in more else {}),
        "effective_batch_size": batch,
        "micro_batch_size": micro,
        "weight_decay": decay,
        "lr_scheduler_type": schedule,
        **({"warmup_epochs": 1} if warmup is None else warmup),
        "max_grad_norm": clip,
        "precision": more.pop("precision", "mixed"),
        "gradient_checkpointing": checkpointing,
        "save_steps": save,
        **more,
    }


def finetune(model: Model, epochs: int, whose: str) -> Noted:
    """How target and retain model are made; batch, decay and schedule are TOFU's everywhere."""
    section = training(model.learning_rate, epochs, checkpointing=model.checkpointing, save=None)
    return Noted({"training": section, "lora": None}, f"of {whose}")


TOFU_CODE = "arXiv:2401.06121 and locuslab/tofu (forget.py, config/forget.yaml)"
NPO_CODE = "arXiv:2404.05868 and licong-lin/negative-preference-optimization (config/forget.yaml)"
CLOSER_CODE = "arXiv:2410.08109 and sail-sg/closer-look-LLM-unlearning"
SIMNPO_CODE = "arXiv:2410.07163 and OPTML-Group/Unlearn-Simple"
EGUP_PAPER = "arXiv:2508.20443, appendix A.2.1"
UIPE_PAPER = "arXiv:2503.04693"
MUSE_CODE = "arXiv:2407.06460 and swj0419/muse_bench (baselines/)"
OU_CODE = "open-unlearning d3d7cf9 (locuslab/open-unlearning, configs/)"
FAMILY = (
    "batch 4 x 4 x 2 = 32, AdamW with weight decay 0.01, linear schedule with one epoch of "
    "warm-up, rows of at most 500 tokens"
)
PRECISION = (
    "Precision mixed stands for the bf16 runs of the source. The micro-batch is free: it changes "
    "time and memory, not the result."
)
MIXED = (
    f"Gradients are clipped at 1, the default of the Trainer that the source builds on. {PRECISION}"
)
MEMORY = (
    "All 7 billion weights train: about 110 GB for weights, gradients and moments. With less, "
    "lora.r=8 trains adapters instead, as Closer Look and EGUP do."
)
KL_PADDED = (
    "The released code averages the KL over all positions of rows padded to 500 tokens; the form "
    'that ignores padding is method="{plain}" training.pad_to=null.'
)


def shared(model: Model, source: str, seeds: str = "") -> str:
    """How the target model comes about, and why the seed is what it is."""
    return (
        "The target and the retain model are made first, once, and kept in the cache: "
        f"{source}, learning rate {scalar(model.learning_rate)}, batch 32, weight decay 0.01, "
        "linear with one epoch of warm-up. Seed 42 is that of the TOFU paper, for all recipes on "
        f"TOFU alike, so that methods share them{seeds}."
    )


TOFU_FINETUNED = "5 epochs as in the TOFU paper (locuslab/tofu, config/finetune.yaml)"
EGUP_FINETUNED = f"10 epochs as in {EGUP_PAPER}, where the learning rate is missing"
OTHERS_1001 = " (the source unlearns with seed 1001)"
OTHER_SPLITS = "Other splits: data.forget=tofu:forget05 data.retain=tofu:retain95."

WHAT = {
    "GA": "gradient ascent",
    "GA+GD": "ascent, and descent on the retain set",
    "GA+KL": "ascent, and KL on the retain set",
    "NPO": "negative preference optimisation",
    "NPO+GD": "NPO, and descent on the retain set",
    "NPO+KL": "NPO, and KL on the retain set",
    "SimNPO+GD": "NPO without a reference, descent elsewhere",
    "IDK": "fine-tuning on refusals",
    "IDK+GD": "refusals, and descent on the retain set",
    "IDK+KL": "refusals, and KL on the retain set",
    "IDK+AP": "refusals, and answer preservation",
    "DPO+GD": "preferred refusals, descent on the retain set",
    "DPO+KL": "preferred refusals, KL on the retain set",
    "ME+GD": "maximum entropy, descent on the retain set",
}
KEYS = {name: name.lower().replace("+", "_") for name in WHAT}


def tofu_recipe(
    name: str,
    model: Model,
    forget: str,
    *,
    label: str,
    what: str,
    method: str,
    numbers: str,
    section: Values,
    pairing: str,
    notes: tuple[str, ...] = (),
    lora: Values | None = None,
    made: Noted | None = None,
    how_made: str = TOFU_FINETUNED,
    seeds: str = "",
) -> Recipe:
    """A recipe that makes its own target model on TOFU."""
    padded = "positions=all" in method
    if "KL(positions=all)" in method:
        plain = method.replace("(positions=all)", "")
        notes += (KL_PADDED.format(plain=plain),)
    if model is LLAMA2 and lora is None:
        notes += (MEMORY,)
    return Recipe(
        name=name,
        summary=f"{label} on TOFU {forget}, {model.title}: {what}.",
        notes=(numbers, *notes, MIXED, shared(model, how_made, seeds)),
        seed=42,
        model=model_section(model.path),
        template=model.template,
        data=tofu_data(forget, pairing),
        method=method,
        training=section | ({"pad_to": 500} if padded else {}),
        lora=lora,
        finetune=made or finetune(model, 5, "the TOFU paper"),
        evaluation=CLASSIC,
    )
