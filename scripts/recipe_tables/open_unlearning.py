"""Defaults of open-unlearning on TOFU, MUSE and WMDP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from recipe_tables.common import (
    LLAMA32,
    MIXED,
    OTHER_SPLITS,
    OU_CODE,
    WHAT,
    finetune,
    model_section,
    tofu_data,
    training,
)
from recipe_tables.layout import Recipe, scalar
from recipe_tables.muse import muse_evaluation, muse_recipe, muse_training
from recipe_tables.wmdp import CORPORA, PIECES, QUESTIONS, rmu_recipe

RMU_OU = (
    "RMU(layer=7, steering=2, average=broadcast, positions=unshifted)"
    "+ACT(layer=7, average=broadcast, positions=unshifted)"
)
RMU_NOTE = (
    "As released: the mask is not shifted and per-row sums meet the mean of the reciprocal lengths "
    "(average=broadcast)."
)
PDU_NOTE = (
    "As released: the mask is not shifted. Its multiplier moves in every micro-batch of each "
    "process, here once per optimizer step."
)


class Setting(NamedTuple):
    """One method of open-unlearning on TOFU."""

    key: str
    label: str
    what: str
    method: str
    numbers: str
    learning_rate: float = 1e-5
    epochs: int = 10
    trainable: str = ""


OU_TOFU = (
    Setting("ga", "GA", WHAT["GA"], "GA", "GradAscent."),
    Setting("ga_gd", "GA+GD", WHAT["GA+GD"], "GA+GD", "GradDiff: gamma 1, alpha 1."),
    Setting(
        "npo_gd", "NPO+GD", WHAT["NPO+GD"], "NPO(beta=0.1)+GD",
        "NPO: beta 0.1, gamma 1, alpha 1; the name includes the retain term there.",
    ),
    Setting(
        "dpo_gd", "DPO+GD", WHAT["DPO+GD"], "DPO(beta=0.1)+GD",
        "DPO with refusals (IdkDPO): beta 0.1, gamma 1, alpha 1.",
    ),
    Setting(
        "simnpo_gd", "SimNPO+GD", WHAT["SimNPO+GD"], "SimNPO(beta=4.5, weight=0.125)+GD",
        "SimNPO: beta 4.5, delta 0, gamma 0.125, alpha 1.",
    ),
    Setting(
        "wga_gd", "WGA+GD", "ascent weighted by confidence", "WGA(beta=1.0)+GD",
        "WGA: beta 1, gamma 1, alpha 1, 5 epochs (configs/trainer/WGA.yaml; the experiment file "
        "of TOFU puts 10 over it). The paper, arXiv:2502.19301, has batch 16.",
        epochs=5,
    ),
    Setting(
        "satimp_gd", "SatImp+GD", "ascent weighted by saturation and importance",
        "SatImp(beta1=5.0, beta2=1.0, weight=1.0)+GD(weight=0.1)",
        "SatImp: beta1 5, beta2 1, forget weight 1 and retain weight 0.1 as in its class and its "
        "page; the configuration that ships has them the other way round: satimp_gd_config.",
        epochs=5,
    ),
    Setting(
        "satimp_gd_config", "SatImp+GD (shipped weights)", "weighted ascent",
        "SatImp(beta1=5.0, beta2=1.0, weight=0.1)+GD(weight=1.0)",
        "SatImp: beta1 5, beta2 1, forget weight 0.1 and retain weight 1 as in "
        "configs/trainer/SatImp.yaml; its class and its page have 1 and 0.1: satimp_gd.",
        epochs=5,
    ),
    Setting(
        "ceu", "CE-U", "its own guess without the true token",
        "CE-U(ignore_first=1)", "CE-U: the first answer token is left out; no retain term.",
    ),
    Setting(
        "undial", "UNDIAL-OU", "self-distillation, true token held down", "UNDIAL-OU(beta=10)",
        "UNDIAL: beta 10, learning rate 1e-4, retain weight 0 (configs/trainer/UNDIAL.yaml). As "
        "released it averages over prompt and padding; masked: method=UNDIAL(beta=10). The paper, "
        "arXiv:2402.10052, trains LoRA with r 8 and alpha 16.",
        learning_rate=1e-4,
    ),
    Setting(
        "pdu_gd", "PDU+GD", "flat logits, primal-dual retain weight",
        "PDU(positions=unshifted)+GD(weight=100, limit=0.3, dual_step=5, dual_warmup=5)",
        "PDU (community/methods/PDU/run.sh): multiplier from 100, dual step 5, limit 0.3, 5 epochs "
        f"of warm-up of the multiplier, 10 epochs for 1B and 3B. {PDU_NOTE}",
    ),
    Setting(
        "rmu", "RMU", "hidden states steered away", RMU_OU,
        f"RMU: block 7, steering 2, alpha 1, all parameters. {RMU_NOTE}", trainable="all",
    ),
    Setting(
        "altpo_gd", "AltPO+GD", "preference of plausible wrong answers",
        "AltPO(beta=0.1)+GD(weight=2)",
        "AltPO (community/methods/AltPO, arXiv:2409.13474): 2 epochs over 5 alternates per "
        "question. Open point: no single choice is published; beta, learning rate and retain "
        "weight are the middle of the grids 0.05, 0.1, 0.5; 1e-5, 2e-5, 5e-5; 1, 2, 5. Needs "
        "alternates, sampled from the target model: expunge alternates {name}, then expunge "
        "unlearn {name}.",
        learning_rate=2e-5, epochs=2,
    ),
)  # fmt: skip


def open_unlearning() -> Iterator[Recipe]:
    """Defaults of open-unlearning on TOFU, MUSE and WMDP."""
    for setting in OU_TOFU:
        yield _ou_tofu(setting)
    for corpus in ("news", "books"):
        for key, label, method, what in (
            ("ga", "GA", "GA", WHAT["GA"]),
            ("ga_gd", "GA+GD", "GA+GD", WHAT["GA+GD"]),
            ("npo_gd", "NPO+GD", "NPO(beta=0.1)+GD", WHAT["NPO+GD"]),
            ("simnpo_gd", "SimNPO+GD", "SimNPO(beta=4.5, weight=0.125)+GD", WHAT["SimNPO+GD"]),
            ("rmu", "RMU", RMU_OU, "hidden states steered away"),
            ("pdu_gd", "PDU+GD", _pdu_muse(corpus), "flat logits, primal-dual retain weight"),
        ):
            yield _ou_muse(corpus, key, label, method, what)
    for topic in ("bio", "cyber"):
        yield _ou_wmdp(topic)


def _ou_tofu(setting: Setting) -> Recipe:
    name = f"open_unlearning/tofu_{setting.key}_llama32_1b"
    rate = scalar(setting.learning_rate)
    return Recipe(
        name=name,
        summary=f"{setting.label} on TOFU forget10, Llama-3.2-1B-Instruct: {setting.what}.",
        notes=(
            f"Numbers: {OU_CODE}, experiment/unlearn/tofu/default.yaml: learning rate {rate}, "
            f"{setting.epochs} epochs, batch 8 x 4 = 32, weight decay 0.01, linear with one epoch "
            "of warm-up, rows of at most 512 tokens, a fresh retain row per visit, seed 0. "
            + setting.numbers.format(name=name),
            OTHER_SPLITS,
            "The target and the retain model are made first, once, and kept in the cache: "
            "5 epochs, learning rate 1e-5, batch 32, weight decay 0.01, one epoch of warm-up, as "
            "its published ones (open-unlearning/tofu_Llama-3.2-1B-Instruct_full; to start from "
            "that: finetune=null model.path=...).",
            MIXED,
        ),
        seed=0,
        model=model_section(LLAMA32.path),
        template=LLAMA32.template,
        data=tofu_data("forget10", "random", max_length=512),
        method=setting.method,
        training=training(setting.learning_rate, setting.epochs, micro=8)
        | ({"trainable": setting.trainable} if setting.trainable else {}),
        finetune=finetune(LLAMA32, 5, "open-unlearning"),
        evaluation={"benchmark": "tofu", "preset": "tofu_ou"},
    )


def _pdu_muse(corpus: str) -> str:
    limit = 1.5 if corpus == "news" else 0.1
    return f"PDU(positions=unshifted)+GD(weight=50, limit={limit}, dual_step=1, dual_warmup=3)"


def _ou_muse(corpus: str, key: str, label: str, method: str, what: str) -> Recipe:
    title = corpus.capitalize()
    base = muse_recipe(corpus, "GA", "GA", epochs=10)
    more = {
        "npo_gd": " NPO: beta 0.1, gamma 1, alpha 1, on sequences and not MUSE's form.",
        "simnpo_gd": " SimNPO: beta 4.5, delta 0, gamma 0.125, alpha 1.",
        "rmu": f" RMU: block 7, steering 2, alpha 1, all parameters. {RMU_NOTE}",
        "pdu_gd": " PDU (community/methods/PDU/run.sh): multiplier from 50, dual step 1, limit "
        f"1.5 for News and 0.1 for Books at 7B, 3 epochs of warm-up of the multiplier. {PDU_NOTE}",
    }
    return replace(
        base,
        name=f"open_unlearning/muse_{corpus}_{key}",
        summary=f"{label} on MUSE {title}, defaults of open-unlearning: {what}.",
        notes=(
            f"Numbers: {OU_CODE}, experiment/unlearn/muse/default.yaml: learning rate 1e-5 "
            "constant, batch 4 x 8 = 32, 10 epochs, no weight decay, pieces of 2048 tokens cut as "
            f"there, a fresh retain piece per visit, seed 0.{more.get(key, ' Weights 1.')}",
            *base.notes[-2:],
        ),
        seed=0,
        data=dict(base.data) | {"text_form": "open_unlearning", "retain_pairing": "random"},
        method=method,
        training=muse_training(10) | ({"trainable": "all"} if key == "rmu" else {}),
        evaluation=muse_evaluation(corpus, "muse_ou"),
    )


def _ou_wmdp(topic: str) -> Recipe:
    base = rmu_recipe(topic, "rmu", 20, 100, 80, "")
    return replace(
        base,
        name=f"open_unlearning/wmdp_{topic}_rmu",
        summary=f"RMU on WMDP {topic}, Zephyr-7B, with the defaults of open-unlearning.",
        notes=(
            f"Numbers: {OU_CODE}, experiment/unlearn/wmdp/default.yaml: block 7, steering 2, alpha "
            "1, learning rate 5e-5 constant, batch 1 x 16, 80 steps, no weight decay, at most 512 "
            "tokens, seed 0; only the down-projections of blocks 5, 6 and 7 move. "
            f"{RMU_NOTE} Rows are padded on the left there; with one row nothing is padded.",
            CORPORA.format(
                files=f"wmdp/{topic}-forget-corpus.jsonl and wmdp/{topic}-retain-corpus.jsonl"
            ),
            PIECES,
            QUESTIONS,
            MIXED,
        ),
        seed=0,
        data=dict(base.data)
        | {
            "retain": f"wmdp/{topic}-retain-corpus.jsonl",
            "max_length": 512,
            "retain_pairing": "random",
        },
        method=RMU_OU,
        training=training(
            5e-5, 1, max_steps=80, batch=16, micro=1, decay=0.0, schedule="constant",
            warmup={"warmup_steps": 0}, trainable="auto",
        ),
    )  # fmt: skip
