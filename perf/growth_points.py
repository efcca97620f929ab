"""The points of `growth.py`: what grows on every axis, and the work of one point in its process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common import GIB, peak_bytes, reset_peak, resident_bytes

if TYPE_CHECKING:
    from torch import nn

    from expunge.data.encode import Example
    from expunge.data.plan import Pick

STREAM_METHODS = {
    1: "GA",
    2: "GA+GD",
    3: "LLMU(num_mismatch=1)+GD",
    5: "LLMU(num_mismatch=3)+GD",
}
"""A method for each number of streams; every term is a likelihood of labels."""

NUM_PROMPT = 16


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training step, by its sizes.

    Attributes:
        x: Place on the axis.
        rows: Rows per stream, all in one micro-batch.
        answer: Labelled tokens per row; the question has `NUM_PROMPT` more.
        vocabulary: Entries of the vocabulary.
        hidden: Width of the model.
        layers: Decoder layers.
        method: What is minimised.
        repeats: Steps that count; one more comes first.
    """

    x: float
    rows: int = 8
    answer: int = 112
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 4
    method: str = "GA+GD"
    repeats: int = 3


def axes(repeats: int) -> dict[str, list[Point]]:
    """The points of every axis, smallest first.

    Args:
        repeats: Steps of each point that count.
    """
    # Narrow: what the optimiser holds for a moment is as large as the embedding, not the logits.
    tiny: dict[str, Any] = {"hidden": 32, "layers": 2, "rows": 8, "repeats": repeats}
    return {
        "rows": [Point(x=n, rows=n, repeats=repeats) for n in (4, 8, 16, 32)],
        "answer_length": [
            Point(x=n, answer=n, rows=4, repeats=repeats) for n in (64, 128, 256, 512)
        ],
        # 49k: SmolLM2, 128k: Llama 3, 256k: Gemma.
        "vocabulary": [
            Point(x=v, vocabulary=v, answer=128, **tiny) for v in (49_152, 128_256, 256_000)
        ],
        "vocabulary_times_length": [
            Point(x=128_256 * n * 16, vocabulary=128_256, answer=n, **tiny) for n in (64, 128, 256)
        ],
        "model_size": [
            Point(x=0, hidden=hidden, layers=layers, rows=4, repeats=repeats)
            for hidden, layers in ((128, 4), (256, 6), (384, 8), (576, 10))
        ],
        "streams": [
            Point(x=n, method=method, rows=4, repeats=repeats)
            for n, method in STREAM_METHODS.items()
        ],
    }


class TokenRows:
    """Streams of synthetic tokens, with what the trainer asks `expunge.data.Streams` for.

    Args:
        num_rows: Rows of every stream.
        num_prompt: Tokens of a question.
        num_answer: Tokens of an answer.
        vocabulary: Token ids are below.
    """

    rejections = ()
    fixed_names = frozenset({"forget", "retain"})

    def __init__(self, num_rows: int, num_prompt: int, num_answer: int, vocabulary: int) -> None:
        import numpy as np

        from expunge.data.encode import Example

        drawn = np.random.default_rng(0).integers(
            vocabulary, size=(3, num_rows, num_prompt + num_answer)
        )
        self._rows: dict[str, list[Example]] = {
            name: [
                Example(index=i, input_ids=tuple(ids.tolist()), num_prompt=num_prompt)
                for i, ids in enumerate(block)
            ]
            for name, block in zip(("forget", "retain", "mismatch"), drawn, strict=True)
        }

    def fixed(self, stream: str) -> list[Example]:
        """All rows of a stream."""
        return self._rows[stream]

    def examples(self, stream: str, picks: Sequence[Pick]) -> list[Example]:
        """One row for each pick; further mismatches are those of the first, moved on."""
        name, _, number = stream.partition("_")
        stored = self._rows[name]
        shift = int(number) if number else 0
        places = [pick.retain if name == "retain" else pick.forget for pick in picks]
        return [stored[(place + shift) % len(stored)] for place in places]


@dataclass(kw_only=True)
class Watch:
    """Takes time and memory of every step but the first, after which all state exists."""

    seconds: list[float] = field(default_factory=list)
    before: int = 0

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Nothing to do."""

    def on_step(self, record: Any) -> None:
        """Look at the clock and, after the first step, at the memory that stays."""
        if record.step == 1:
            reset_peak()
            self.before = resident_bytes()
        else:
            self.seconds.append(record.seconds)

    def on_end(self) -> None:
        """Nothing to do."""


def measure(point: Point) -> dict[str, Any]:
    """Steps of one point, in this process.

    Returns:
        `x`, `tokens` of a step, `parameters` and those of them in the `body`; `seconds` (median),
        `peak_gib` (largest resident size), `above_state_gib` (what comes on top of libraries,
        weights, gradients and optimiser state) and `logits_gib` (what all logits of a step would
        take in float32).
    """
    from expunge.data.plan import StreamPlan
    from expunge.methods import parse
    from expunge.training import Trainer, TrainingArguments

    model = build_model(point)
    method = parse(point.method)
    rows: Any = TokenRows(4 * point.rows, NUM_PROMPT, point.answer, point.vocabulary)
    watch: Any = Watch()
    steps = point.repeats + 1
    arguments = TrainingArguments(
        max_steps=steps,
        effective_batch_size=point.rows,
        micro_batch_size=point.rows,
        lr_scheduler_type="constant",
        save_steps=-1,
    )
    plan = StreamPlan(
        num_forget=4 * point.rows, num_retain=4 * point.rows, batch_size=point.rows, seed=0
    )
    Trainer(
        model, method.objective, rows, plan, arguments, pad_token_id=0, callbacks=[watch]
    ).train()
    peak = peak_bytes()
    parameters = sum(p.numel() for p in model.parameters())
    body = parameters - point.vocabulary * point.hidden
    labels = len(method.streams) * point.rows * point.answer
    # What stays between steps has weights and moments in it already; gradients come and go.
    above = peak - watch.before - sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "x": point.x or body,
        "tokens": len(method.streams) * point.rows * (point.answer + NUM_PROMPT),
        "parameters": parameters,
        "body": body,
        "seconds": statistics.median(watch.seconds),
        "peak_gib": round(peak / GIB, 4),
        "above_state_gib": round(max(0, above) / GIB, 4),
        "logits_gib": round(labels * point.vocabulary * 4 / GIB, 4),
        "n": len(watch.seconds),
    }


def build_model(point: Point) -> nn.Module:
    """A Llama with random weights and tied embeddings, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=point.vocabulary,
        hidden_size=point.hidden,
        intermediate_size=8 * point.hidden // 3 // 32 * 32,
        num_hidden_layers=point.layers,
        num_attention_heads=max(1, point.hidden // 64),
        num_key_value_heads=max(1, point.hidden // 64),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model
