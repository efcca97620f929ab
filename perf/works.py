"""What is measured: the works, the precisions and what every worker is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from naive import Loss

Precision = Literal["fp32", "bf16", "mixed"]
"""Same on both sides. `fp32`: weights, gradients and moments in float32. `bf16`: all of them in
bfloat16, as public code loads its models. `mixed`: float32 with bfloat16 matrix products."""

Side = Literal["naive", "ours"]

LEARNING_RATE = 1e-6
"""Small on purpose. The comparator's float32 cross-entropy is off by 7e-6 nats at a vocabulary of
49k: torch's log-softmax on CPUs sums up so that its probabilities add up to 1 + 7e-6, where
logsumexp is off by 2e-7. AdamW's first updates hardly know small gradients from large ones, so at a
rate of 1e-5 that alone moves the second loss by 2e-5."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One line of the comparison.

    Attributes:
        name: Its name on the command line.
        title: Its name in tables.
        loss: What the comparator minimises.
        method: What Expunge is asked for.
        lora: Expunge trains an adapter; the comparator all weights.
        rows_factor: Rows per stream and step, as a multiple of `--rows`.
        paired: Both sides take turns. Otherwise one runs after the other, for memory.
        target: Least speed-up by precision.
        memory_target: Largest share of the comparator's memory by precision.
    """

    name: str
    title: str
    loss: Loss
    method: str
    lora: bool = False
    rows_factor: int = 1
    paired: bool = True
    target: Mapping[str, float] = field(default_factory=dict)
    memory_target: Mapping[str, float] = field(default_factory=dict)

    @property
    def twin(self) -> str:
        """The work with the comparator's own loss, whose trajectories have to agree."""
        return self.loss


WORKS = {
    work.name: work
    for work in (
        Work(
            name="graddiff",
            title="GradDiff step",
            loss="graddiff",
            method="GA+GD",
            target={"fp32": 1.5, "bf16": 1.3},
        ),
        Work(
            name="npo_gd",
            title="NPO+GD step",
            loss="npo_gd",
            method="NPO+GD",
            target={"fp32": 1.6, "bf16": 1.6},
        ),
        Work(
            name="egup",
            title="EGUP(NPO+GD) step, against plain NPO+GD",
            loss="npo_gd",
            method="EGUP(NPO+GD)",
            target={"fp32": 1.3, "bf16": 1.25},
        ),
        Work(
            name="lora",
            title="NPO+GD step with LoRA (r=8), against all weights",
            loss="npo_gd",
            method="NPO+GD",
            lora=True,
            target={"fp32": 2.0, "bf16": 2.0},
        ),
        Work(
            name="memory",
            title="NPO+GD, peak memory",
            loss="npo_gd",
            method="NPO+GD",
            rows_factor=2,
            paired=False,
            memory_target={"fp32": 0.4, "bf16": 0.4},
        ),
    )
}
"""The works by name; the targets are this project's own floors."""

SHARE_TARGETS = {("graddiff", "fp32"): 0.75, ("graddiff", "bf16"): 0.5}
"""Least share of the ceiling, by work and precision."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one worker does.

    Attributes:
        side: Comparator or Expunge.
        work: The work.
        precision: Types of weights and products.
        rows: Rows per stream and step.
        steps: Optimizer steps.
        model: Model folder or name.
        attention: Attention of `transformers`, for the model as it is loaded.
        doubled: See `NaiveSettings`.
        options: Further training arguments of Expunge.
        learning_rate: Constant learning rate of both sides.
        seed: Seed of order and pairing.
        threads: Threads of torch; its own choice if None.
    """

    side: Side
    work: Work
    precision: Precision
    rows: int
    steps: int
    model: str
    attention: str
    doubled: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = LEARNING_RATE
    seed: int = 0
    threads: int | None = None
