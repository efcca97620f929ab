"""Settings of a training run, with the field names of `transformers.TrainingArguments`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

Scheduler = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "adamw_8bit"]
MasterWeights = Literal["auto", "float32", "stochastic_rounding", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """How the parameters move.

    Attributes:
        learning_rate: Peak learning rate of AdamW.
        num_train_epochs: Passes over the forget set.
        max_steps: Optimizer steps; overrides the epochs when above 0.
        effective_batch_size: Forget rows per optimizer step, over all processes.
        micro_batch_size: Forget rows per forward pass of one process; retain and other rows come on
            top, one each.
        weight_decay: Decoupled weight decay; norms and biases are exempt.
        adam_beta1: Decay of the first moment.
        adam_beta2: Decay of the second moment.
        adam_epsilon: Added to the root of the second moment.
        optimizer: `adamw`; or `adamw_8bit`, whose moments take a quarter of the memory and which
            needs bitsandbytes or torchao.
        master_weights: How weights that train in bfloat16 take up updates below a unit in their
            last place: `float32` keeps a copy in float32 that the update goes to;
            `stochastic_rounding` rounds up or down with the odds that make the mean right; `none`
            rounds to the nearest, which loses them; `auto` is `stochastic_rounding`. Weights in
            float32 are their own masters.
        lr_scheduler_type: Course of the learning rate after warm-up, down to 0 unless constant.
        warmup_steps: Steps of linear warm-up; overrides the epochs and the ratio when above 0.
        warmup_epochs: Epochs of linear warm-up; overrides the ratio when above 0.
        warmup_ratio: Share of all steps spent warming up.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them alone.
        save_steps: Steps between checkpoints; 0 saves at the end of every epoch, -1 never.
        save_total_limit: Checkpoints kept.
        logging_steps: Steps between lines of the log.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        mixed_precision: `bf16` computes matrix products in bfloat16 whatever the weights are stored
            in; `no` computes in the type of the weights.
        packing: `auto` puts the rows of a batch one after the other without padding where the model
            and the hardware support it; `off` pads them to the longest.
        torch_compile: Compile the decoder layers, which takes time at the first steps.
        pad_to: Pad every row to this many tokens, 0 for the longest of the batch; only the
            `positions=all` variants can tell the difference.
        shuffle: Visit the forget rows in a new seeded order in every epoch.
        stop_at: What ends a run early: `proxy`, the forget answers are less likely than their
            proxies on average; `budget`, the utility budget is spent.
        stop_every: Steps between checks of `stop_at`; 0 checks at the end of every epoch.
        max_seconds: Stop with a checkpoint after this time, 0 for no limit.
        seed: Seed of order, pairing, dropout and adapters.
    """

    learning_rate: Annotated[float, Gt(0)] = 1e-5
    num_train_epochs: Annotated[float, Gt(0)] = 5.0
    max_steps: int = -1
    effective_batch_size: Annotated[int, Gt(0)] = 32
    micro_batch_size: Annotated[int, Gt(0)] = 4
    weight_decay: Annotated[float, Ge(0)] = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    optimizer: OptimizerName = "adamw"
    master_weights: MasterWeights = "auto"
    lr_scheduler_type: Scheduler = "linear"
    warmup_steps: Annotated[int, Ge(0)] = 0
    warmup_epochs: Annotated[float, Ge(0)] = 0.0
    warmup_ratio: Annotated[float, Ge(0)] = 0.0
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    save_steps: int = 0
    save_total_limit: Annotated[int, Gt(0)] = 1
    logging_steps: Annotated[int, Gt(0)] = 1
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    packing: Literal["auto", "off"] = "auto"
    torch_compile: bool = False
    pad_to: Annotated[int, Ge(0)] = 0
    shuffle: bool = True
    stop_at: tuple[Literal["proxy", "budget"], ...] = ()
    stop_every: Annotated[int, Ge(0)] = 0
    max_seconds: Annotated[float, Ge(0)] = 0.0
    seed: int = 0

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        if self.max_steps > 0:
            return self.max_steps
        return max(1, math.ceil(self.num_train_epochs * steps_per_epoch))

    def num_warmup_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the warm-up; 0 where an epoch is a single step (TOFU family)."""
        if self.warmup_steps:
            return self.warmup_steps
        if self.warmup_epochs:
            return 0 if steps_per_epoch == 1 else round(self.warmup_epochs * steps_per_epoch)
        return math.ceil(self.warmup_ratio * self.num_steps(steps_per_epoch))

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate used in optimizer step `step`, counted from 0, as transformers has it."""
        warmup = self.num_warmup_steps(steps_per_epoch)
        total = self.num_steps(steps_per_epoch)
        if step < warmup:
            return self.learning_rate * step / max(1, warmup)
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        progress = (step - warmup) / max(1, total - warmup)
        if self.lr_scheduler_type == "cosine":
            return self.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
        return self.learning_rate * max(0.0, 1 - progress)
