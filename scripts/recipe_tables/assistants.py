"""LLMU and ULD."""

from __future__ import annotations

from collections.abc import Iterator

from recipe_tables.common import (
    CLASSIC,
    CLOSER_CODE,
    FAMILY,
    LLAMA2,
    LORA,
    MIXED,
    OTHER_SPLITS,
    OTHERS_1001,
    model_section,
    tofu_recipe,
    training,
)
from recipe_tables.layout import Inline, Noted, Recipe


def llmu() -> Iterator[Recipe]:
    """The original on harmful answers, and the form of Closer Look on TOFU."""
    yield Recipe(
        name="llmu/harm_opt_1_3b",
        summary="LLMU+KL on harmful answers, OPT-1.3B: ascent, random answers, close elsewhere.",
        notes=(
            "Numbers: arXiv:2310.10683 and kevinyaobytedance/llm_unlearn (unlearn_harm.py): "
            "weights 0.5 for ascent, 1 for 5 random answers per question, 1 for the KL; learning "
            "rate 2e-6, linear to 0 without warm-up, batch 2, 1000 steps, AdamW with weight decay "
            "0.01 (PyTorch's default), no clipping, float32, seed 8888. The KL is written as a "
            "cross-entropy over all positions.",
            "That script stops once the forget loss is above 100; watch it in log.jsonl. Its "
            "AdaLoRA (r 32, alpha 16, q and v) is off by default. It writes '### Question: q' and "
            "'### Answer: a'; the plain template has no marks.",
            "Put the unsafe answers of PKU-SafeRLHF into llmu/harmful.jsonl, one "
            '{"question": ..., "answer": ...} per line. The retain set is TruthfulQA, from which '
            "the random answers come, too; that script keeps 70% of it for training.",
        ),
        seed=8888,
        model={"path": "facebook/opt-1.3b", "dtype": "float32"},
        template={"name": "plain"},
        data={
            "forget": "llmu/harmful.jsonl",
            "retain": {
                "source": "truthfulqa/truthful_qa",
                "config": "generation",
                "split": "validation",
                "columns": Inline(question="question", answer="best_answer"),
            },
            "max_length": 2048,
            "on_too_long": "truncate",
            "retain_pairing": "shuffled",
        },
        method="LLMU(weight=0.5, mismatch_weight=1.0, num_mismatch=5, average=rows)"
        "+KL(form=cross_entropy, positions=all)",
        training=training(
            2e-6, 1, max_steps=1000, batch=2, micro=2, warmup={"warmup_steps": 0}, clip=None,
            precision="float32", checkpointing=False,
        ),
        evaluation={"benchmark": "custom", "max_new_tokens": 128},
    )  # fmt: skip
    yield tofu_recipe(
        "llmu/tofu_llama2_7b",
        LLAMA2,
        "forget10",
        label="LLMU+KL",
        what="ascent, mismatched answers, close elsewhere",
        method="LLMU(weight=1.0, mismatch_weight=1.0, num_mismatch=1)+KL(positions=all)",
        numbers=f"Numbers: {CLOSER_CODE} (trainer/losses.py, config/tofu.yaml): all three weights "
        f"1, one mismatched answer, that of the retain row; learning rate 1e-5, 5 epochs, {FAMILY}."
        f" {OTHER_SPLITS}",
        section=training(1e-5, 5),
        pairing="fixed_by_index",
        seeds=OTHERS_1001,
    )


def uld() -> Iterator[Recipe]:
    """Unlearning from logit difference on TOFU."""
    yield Recipe(
        name="uld/tofu_llama2_7b",
        summary="ULD on TOFU forget10, Llama-2-7B-chat: subtract an assistant.",
        notes=(
            "Numbers: arXiv:2406.08607 and UCSB-NLP-Chang/ULD (bashes/tofu/uld_train.sh, "
            "configs/tune_config.yaml): assistant of the first 8 blocks with LoRA r 16, alpha 32, "
            "dropout 0.05; uniform weight 5 over all positions; learning rate 1e-3, batch 8 x 2 x "
            "2 = 32, 10 epochs, weight decay 0.01, linear with a tenth of warm-up, seed 42; logit "
            "weight -0.8 and filter 0.01 from the same script.",
            "Its forget side adds two paraphrases per row and its retain side a wrong answer per "
            "forget question; both come with that code and not with the package. Here the forget "
            "rows stand alone and the retain side is the last 400 rows of retain90, as there. "
            "Files with the additions: data.forget=FILE data.retain=FILE.",
            "Target: the published model of the TOFU paper, locuslab/tofu_ft_llama2-7b. Its "
            "tokenizer is that of NousResearch/Llama-2-7b-chat-hf; where the folder has none, put "
            "both into one and give that as model.path.",
            MIXED,
        ),
        seed=42,
        model=model_section("locuslab/tofu_ft_llama2-7b"),
        template=LLAMA2.template,
        data={
            "forget": "tofu:forget10",
            "retain": Inline(source="tofu:retain90", rows=[3200, 3600]),
            "max_length": Noted(256, "200 to 250 there"),
            "on_too_long": "truncate",
            "retain_pairing": "shuffled",
        },
        method="ULD(REINFORCE+UNIFORM(weight=5, positions=all), weight=-0.8, "
        "top_logit_filter=0.01, layers=8)",
        training=training(1e-3, 10, micro=8, warmup={"warmup_ratio": 0.1}, checkpointing=False),
        lora={**LORA, "r": 16},
        evaluation=CLASSIC,
    )
