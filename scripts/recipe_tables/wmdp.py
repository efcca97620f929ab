"""WMDP: RMU and the three configurations of SimNPO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recipe_tables.common import (
    MIXED,
    PRECISION,
    SIMNPO_CODE,
    WHAT,
    ZEPHYR,
    model_section,
    training,
)
from recipe_tables.layout import Inline, Recipe, scalar

WIKITEXT = (
    "The retain text is the test split of wikitext-2-raw-v1, its lines of more than {least} "
    'characters, one {{"text": ...}} per line in wmdp/wikitext.jsonl.'
)
CORPORA = (
    "The forget corpora are behind a request form and do not come with the package: put "
    '{files} here, one {{"text": ...}} per line.'
)
PIECES = (
    "Texts longer than max_length are cut into several samples; that code keeps the first piece "
    "only."
)

QUESTIONS = (
    "Evaluation asks the multiple-choice questions of this topic and MMLU by lm-evaluation-harness "
    "(pip install 'expunge[lm-eval]'), which reads them from the hub; to measure the texts alone: "
    "evaluation.harness.tasks=[]."
)


def wmdp() -> Iterator[Recipe]:
    """RMU with the values of the script and those used with Zephyr; SimNPO's three."""
    for topic in ("bio", "cyber"):
        yield rmu_recipe(topic, "rmu", 20, 100, 80, "the values of the script")
        yield rmu_recipe(topic, "rmu_zephyr", 6.5, 1200, 150, "the values used with Zephyr")
    yield _simnpo("simnpo_gd", "SimNPO+GD", "SimNPO-WMDP(beta=0.1)+GD", 9.5e-6, "beta 0.1, ")
    yield _simnpo("npo_gd", "NPO+GD", "NPO-WMDP(beta=0.0225)+GD", 5e-6, "beta 0.0225, ")
    yield _simnpo("ga_gd", "GA+GD", "GA+GD", 5e-6, "")


def rmu_recipe(
    topic: str, key: str, steering: float, weight: int, batches: int, whose: str
) -> Recipe:
    """RMU on one topic as the script of WMDP runs it."""
    script = (
        "centerforaisafety/wmdp (rmu/unlearn.py)"
        if key == "rmu"
        else "centerforaisafety/wmdp (steering, weight and batches: the command widely used with "
        "Zephyr; the rest: rmu/unlearn.py)"
    )
    length = 512 if topic == "bio" else 768
    average = "positions=all, average=tokens"
    return Recipe(
        name=f"wmdp/{key}_{topic}",
        summary=f"RMU on WMDP {topic}, Zephyr-7B: {whose}.",
        notes=(
            f"Numbers: arXiv:2403.03218 and {script}: block 7, steering {steering}, retain weight "
            f"{weight}, learning rate 5e-5, batch 4, {batches} batches, seed 42, no schedule, no "
            "weight decay (that of its AdamW), no clipping; the means run over padding, too. Only "
            "the down-projections of blocks 5, 6 and 7 move. Text of at most "
            f"{length} tokens for this topic; retain text of at most 512 there, here the same.",
            "That script takes turns between two topics with a direction each, so its batches are "
            "shared by both. A topic alone is one run; for both, run the second from the result "
            "of the first: model.path=runs/wmdp-..../model.",
            CORPORA.format(files=f"wmdp/{topic}-forget-corpus.jsonl")
            + " "
            + WIKITEXT.format(least=0),
            PIECES,
            QUESTIONS,
            PRECISION,
        ),
        seed=42,
        model=model_section(ZEPHYR.path),
        template=ZEPHYR.template,
        data={
            "forget": f"wmdp/{topic}-forget-corpus.jsonl",
            "retain": "wmdp/wikitext.jsonl",
            "max_length": length,
            "on_too_long": "truncate",
            "text_form": "separate",
            "retain_pairing": "modulo",
        },
        method=f"RMU(layer=7, steering={steering}, {average})"
        f"+ACT(weight={weight}, layer=7, {average})",
        training=training(
            5e-5, 1, max_steps=batches, batch=4, decay=0.0, schedule="constant",
            warmup={"warmup_steps": 0}, clip=None, trainable="auto",
        ),
        evaluation={
            "benchmark": "wmdp",
            "options": Inline(topic=topic),
            "harness": Inline(tasks=["benchmark"]),
        },
    )  # fmt: skip


def _simnpo(key: str, label: str, method: str, rate: float, beta: str) -> Recipe:
    base = rmu_recipe("bio", "rmu", 20, 100, 80, "")
    config = {"simnpo_gd": "SimNPO", "npo_gd": "NPO", "ga_gd": "GradDiff"}[key]
    forms = {
        "simnpo_gd": "As released: the token mean of the batch and not of each sequence; the "
        "latter is method=SimNPO(beta=0.1, weight=1)+GD.",
        "npo_gd": "As released: the token mean of the batch and not sequence sums; the latter is "
        "method=NPO+GD.",
    }
    return replace(
        base,
        name=f"wmdp/{key}_bio",
        summary=f"{label} on WMDP bio, Zephyr-7B: {WHAT[label]}.",
        notes=(
            f"Numbers: {SIMNPO_CODE} (WMDP/configs/unlearn/wmdp/{config}.json, "
            f"WMDP/src/model/unlearn.py): {beta}retain weight 1, learning rate {scalar(rate)}, "
            "batch 1 x 4 on one process, at most 500 steps with 50 of warm-up, linear, no weight "
            f"decay, texts of at most 512 tokens, seed {3 if key == 'ga_gd' else 0}.",
            *((forms[key],) if key in forms else ()),
            CORPORA.format(files="wmdp/bio-forget-corpus.jsonl") + " " + WIKITEXT.format(least=50),
            PIECES,
            QUESTIONS,
            MIXED,
        ),
        seed=3 if key == "ga_gd" else 0,
        data=dict(base.data) | {"retain_pairing": "random"},
        method=method,
        training=training(
            rate, 5, max_steps=500, batch=4, micro=1, decay=0.0, warmup={"warmup_steps": 50}
        ),
    )
