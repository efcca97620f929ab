"""Batch arithmetic: how many samples, micro-batches and steps a training setting comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.errors import InputError, Problem
from expunge.run.environment import launched_processes

if TYPE_CHECKING:
    from expunge.run.sections import TrainingConfig
    from expunge.training.arguments import TrainingArguments


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a training comes to for a number of samples and processes.

    Attributes:
        num_samples: Samples of one epoch.
        effective_batch_size: Samples of one optimizer step.
        micro_batch_size: Samples of one forward pass of one process.
        world_size: Processes.
        accumulation: Micro-batches of one process in one step.
        steps_per_epoch: Optimizer steps of one epoch; the last may hold fewer samples.
        total_steps: Optimizer steps of the whole training.
        warmup_steps: Of these, steps with a rising learning rate.
    """

    num_samples: int
    effective_batch_size: int
    micro_batch_size: int
    world_size: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    def __str__(self) -> str:
        """The arithmetic in one line."""
        processes = f" x {self.world_size} processes" if self.world_size > 1 else ""
        accumulated = f" x {self.accumulation} accumulated" if self.accumulation > 1 else ""
        return (
            f"{self.num_samples} samples / batch {self.effective_batch_size} "
            f"(micro-batch {self.micro_batch_size}{accumulated}{processes}) = "
            f"{self.steps_per_epoch} steps per epoch; {self.total_steps} steps in all, "
            f"{self.warmup_steps} of them warm-up"
        )


def plan_batches(
    training: TrainingConfig, num_samples: int, *, world_size: int | None = None
) -> BatchPlan:
    """The batch arithmetic of a training.

    Args:
        training: The setting.
        num_samples: Samples of one epoch: the forget set, or everything a model is fine-tuned on.
        world_size: Processes; None: as many as the launcher says.

    Raises:
        InputError: The effective batch cannot be split evenly into micro-batches.
    """
    world = launched_processes() if world_size is None else world_size
    effective, micro = training.effective_batch_size, training.micro_batch_size
    if effective % (micro * world):
        raise InputError(_uneven(effective, micro, world))
    per_epoch = math.ceil(num_samples / effective)
    arguments = training_arguments(training)
    total = arguments.num_steps(per_epoch)
    return BatchPlan(
        num_samples=num_samples,
        effective_batch_size=effective,
        micro_batch_size=micro,
        world_size=world,
        accumulation=effective // (micro * world),
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=min(total, arguments.num_warmup_steps(per_epoch)),
    )


def training_arguments(training: TrainingConfig, *, seed: int = 0) -> TrainingArguments:
    """The section in the trainer's terms, where 0 or -1 stands for what is null here."""
    from expunge.training.arguments import TrainingArguments

    return TrainingArguments(
        learning_rate=training.learning_rate,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps or -1,
        effective_batch_size=training.effective_batch_size,
        micro_batch_size=training.micro_batch_size,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps or 0,
        warmup_epochs=training.warmup_epochs or 0.0,
        warmup_ratio=training.warmup_ratio or 0.0,
        max_grad_norm=training.max_grad_norm or 0.0,
        save_steps=-1 if training.save_steps is None else training.save_steps,
        save_total_limit=training.save_total_limit,
        logging_steps=training.logging_steps,
        gradient_checkpointing=training.gradient_checkpointing,
        optimizer=training.optimizer,
        master_weights=training.master_weights,
        mixed_precision="bf16" if training.precision == "mixed" else "no",
        packing=training.packing,
        torch_compile=training.torch_compile,
        pad_to=training.pad_to or 0,
        stop_at=training.stop_at,
        stop_every=training.stop_every,
        max_seconds=training.max_seconds or 0.0,
        seed=seed,
    )


def _uneven(effective: int, micro: int, world: int) -> Problem:
    unit = micro * world
    processes = f" x {world} processes" if world > 1 else ""
    near = [size for size in (effective // unit * unit, -(-effective // unit) * unit) if size]
    message = (
        f"{effective} is no multiple of micro_batch_size {micro}{processes}; "
        f"take {' or '.join(map(str, near))}"
    )
    fitting = [
        size for size in range(min(micro, effective), 0, -1) if not effective % (size * world)
    ]
    if fitting:
        message += f", or micro_batch_size {fitting[0]}"
    return Problem(where="effective_batch_size", message=message)
