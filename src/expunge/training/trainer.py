"""The training loop: next batch, one forward over all streams, objective, backward, step.

Every term is divided by its count over the whole optimizer step, all micro-batches and processes,
so the parameters after a step do not depend on how the batch was split.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from expunge.core.errors import RunError
from expunge.data.streams import StreamPlan, Streams
from expunge.models.forward import Precision
from expunge.models.outputs import TokenOutputs
from expunge.models.packing import find_layout, packable
from expunge.models.peft import is_peft
from expunge.objectives import Objective
from expunge.objectives.updates import SharpnessOptions
from expunge.training.arguments import TrainingArguments
from expunge.training.budget import Budget
from expunge.training.callbacks import Callback, StepRecord
from expunge.training.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    load_parameters,
    optimizer_tensors,
    random_state,
    save_checkpoint,
    set_random_state,
    trainable_parameters,
)
from expunge.training.compiling import compile_regions, release_regions
from expunge.training.entanglement import EntanglementKeeper
from expunge.training.optimizers import make_optimizer, set_learning_rate
from expunge.training.passes import Passes, gather_objects, make_accelerator
from expunge.training.reference import Reference, reference_sources
from expunge.training.step import StepRunner, extras, global_terms
from expunge.training.stopping import StopCheck, StopRule
from expunge.training.tables import TableCache


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run did.

    Attributes:
        steps: Optimizer steps of the whole run; fewer than planned if a stop rule ended it.
        checks: What the stop rule measured, in order; the last one says why it ended the run.
        resumed_from: Steps that an earlier process had done.
        seconds: Wall-clock time of this process.
        last: The last step's record, None if there was nothing left to do.
        num_parameters: Parameters of the model, those of an adapter included.
        num_trainable: Parameters that train.
    """

    steps: int
    checks: tuple[StopCheck, ...] = ()
    resumed_from: int
    seconds: float
    last: StepRecord | None
    num_parameters: int
    num_trainable: int


class Trainer:
    """Minimises an objective.

    Args:
        model: A causal language model, possibly with an adapter; moved to the right device.
        objective: What to minimise.
        streams: The tokenised rows of every stream the objective needs.
        plan: Which rows meet in which step.
        arguments: How the parameters move.
        pad_token_id: Filling of short rows.
        reference: Model that reference values come from, or a function that loads it, which holds
            it no longer than it is needed; the model itself, as it is now, if None.
        tables: Where reference values of former runs are stored; computed anew if None.
        update: Options of a sharpness-aware update; plain gradients without.
        budget: Utility budget, for `arguments.stop_at`.
        callbacks: Hooks; see `Callback`.
        checkpoint_root: Folder of checkpoints; none are written without it.
        key: Fingerprint of everything that determines the run; a checkpoint with another one is
            refused.
        accelerator: Processes and devices; a new one by default.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        streams: Streams,
        plan: StreamPlan,
        arguments: TrainingArguments,
        *,
        pad_token_id: int,
        reference: nn.Module | Callable[[], nn.Module] | None = None,
        tables: TableCache | None = None,
        update: SharpnessOptions | None = None,
        budget: Budget | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoint_root: Path | None = None,
        key: str = "",
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or make_accelerator()
        self.objective = objective
        self.streams = streams
        self.plan = plan
        self.arguments = arguments
        self.pad_token_id = pad_token_id
        self.callbacks = list(callbacks) if self.accelerator.is_main_process else []
        self.checkpoint_root = checkpoint_root
        self.key = key
        self.model = model.to(self.accelerator.device)
        options = objective.entanglement
        self.update = update
        self.budget = budget
        self.passes = Passes(
            model=self.model,
            streams=streams,
            accelerator=self.accelerator,
            pad_token_id=pad_token_id,
            precision=Precision(autocast=arguments.mixed_precision == "bf16"),
            hidden_layer=-1 if options is None else options.embed_layer,
            block=objective.block or 0,
            layout=find_layout(self.model, packing=arguments.packing),
        )
        self.state = objective.new_state(
            plan.num_forget, hidden_size=hidden_size(model), seed=arguments.seed
        )
        self.entanglement = None
        if options is not None and self.state.entanglement is not None:
            self.entanglement = EntanglementKeeper(
                options, self.state.entanglement, plan, self.passes
            )
        self.reference = Reference(
            sources=reference_sources(objective, peft=is_peft(model) and reference is None),
            other=reference,
            cache=tables,
        )
        self.runner = StepRunner(
            objective=objective,
            state=self.state,
            streams=streams,
            passes=self.passes,
            reference=self.reference,
            arguments=arguments,
            keeper=self.entanglement,
        )
        self.stop_rule: StopRule | None = None

    def train(self) -> TrainResult:
        """Run, or resume from the last checkpoint, to the end.

        Raises:
            RunError: The loss is no longer a finite number, or the checkpoint is of another run.
        """
        compiled = self.arguments.torch_compile
        with contextlib.ExitStack() as stack:
            if self.passes.layout.packed:
                stack.enter_context(packable(self.model, compiled=compiled))
            if compiled:
                compile_regions(self.model)
                stack.callback(release_regions, self.model)
            return self._train()

    def _train(self) -> TrainResult:
        started = time.monotonic()
        torch.manual_seed(self.arguments.seed + self.accelerator.process_index)
        self._prepare_objective()
        optimizer = self._optimizer()
        if self.arguments.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()  # type: ignore[operator]
        if self.objective.block is not None and self.accelerator.num_processes > 1:
            # The blocks behind the one that is looked at never get a gradient, and the processes
            # would wait for it.
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=True
            )
        wrapped, optimizer = self.accelerator.prepare(self.model, optimizer)
        first = self._resume(optimizer)
        total = self.arguments.num_steps(self.plan.steps_per_epoch)
        last = None
        for callback in self.callbacks:
            callback.on_start(total, first)
        if self.stop_rule is not None:
            self.stop_rule.begin()
        try:
            wrapped.train()
            for step in range(first, total):
                last = self._step(step, wrapped, optimizer)
                for callback in self.callbacks:
                    callback.on_step(last)
                if self._stops(step + 1):
                    break
                late = self._is_late(time.monotonic() - started) and step + 1 < total
                if late or self._should_save(step + 1, total):
                    self._save(step + 1, optimizer)
                if late:
                    raise RunError(
                        f"stopped after max_seconds={self.arguments.max_seconds:g} at step "
                        f"{step + 1} of {total}; the same command goes on from there"
                    )
        finally:
            for callback in self.callbacks:
                callback.on_end()
        self.model.eval()
        checks = () if self.stop_rule is None else tuple(self.stop_rule.checks)
        return TrainResult(
            steps=total if last is None else last.step,
            checks=checks,
            resumed_from=first,
            seconds=time.monotonic() - started,
            last=last,
            num_parameters=sum(p.numel() for p in self.model.parameters()),
            num_trainable=sum(p.numel() for p in trainable_parameters(self.model).values()),
        )

    # Preparation ---------------------------------------------------------------------------------

    def _prepare_objective(self) -> None:
        """Everything taken from the start model: reference, past embeddings, proxy boundary."""
        self.model.eval()
        num_steps = self.arguments.num_steps(self.plan.steps_per_epoch)
        self.reference.prepare(self.objective, self.plan, num_steps, self.passes)
        if self.entanglement is not None:
            self.entanglement.start()
        proxy = self.objective.proxy
        if proxy is not None and proxy.proxy_loss == "initial":
            values = self.passes.over(
                "proxy",
                lambda out: list(self._proxy_values(out)),
                reads=self.objective.reads("proxy") - {"ref_logps", "ref_logits"},
                positions=self.objective.positions("proxy"),
            )
            self.runner.initial_proxies = torch.stack(values)
        if self.arguments.stop_at:
            self.stop_rule = StopRule(self.arguments.stop_at, self.passes, self.model, self.budget)

    def _proxy_values(self, out: TokenOutputs) -> Tensor:
        """Values of proxy rows under the start model, which is its own reference, [B]."""
        out = replace(out, ref_logps=out.logps, ref_logits=out.logits)
        return self.objective.proxy_scale({"proxy": out}, "proxy")

    def _optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(list(trainable_parameters(self.model).values()), self.arguments)

    # One step ------------------------------------------------------------------------------------

    def _step(self, step: int, wrapped: nn.Module, optimizer: Any) -> StepRecord:
        started = time.monotonic()
        rate = self.arguments.learning_rate_at(step, self.plan.steps_per_epoch)
        set_learning_rate(optimizer, rate)
        if self.entanglement is not None:
            self.entanglement.refresh(step)
        micros, results = self.runner.gradients(self.plan.step(step), wrapped, self.update)
        values = global_terms(self.runner, results)
        self._assert_finite(step, values)
        limit = self.arguments.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(
            list(trainable_parameters(self.model).values()), limit
        )
        if self.entanglement is not None:
            # Before the update: what is remembered belongs to the parameters of this step.
            self.entanglement.remember(step, [micro["forget"] for micro in micros], results)
        optimizer.step()
        optimizer.zero_grad()
        epoch = (step + 1) / self.plan.steps_per_epoch
        extra = extras(self.runner, results)
        self.objective.update(self.state, {**values, **extra}, epoch=epoch)
        self._update_by_epoch(step)
        terms = results[0].sums
        return StepRecord(
            step=step + 1,
            epoch=epoch,
            total=sum(term.weight * (values[term.name] + term.offset) for term in terms),
            terms=values,
            learning_rate=rate,
            grad_norm=float(norm),
            seconds=time.monotonic() - started,
            extra=extra,
        )

    def _update_by_epoch(self, step: int) -> None:
        """Move a multiplier that follows the whole retain set, once per epoch."""
        dual, retain = self.state.retain_weight, self.objective.retain
        due = (step + 1) % self.plan.steps_per_epoch == 0
        if dual is None or retain is None or dual.options.every != "epoch" or not due:
            return

        def sums_and_counts(out: TokenOutputs) -> list[Tensor]:
            sums, counts = retain.rows({"retain": out})
            return list(torch.stack([sums, counts.to(sums)], dim=-1))

        rows = self.passes.over(
            "retain", sums_and_counts, reads=retain.reads, positions=retain.averaged_over
        )
        total = torch.stack(rows).double().sum(0)
        epoch = (step + 1) / self.plan.steps_per_epoch
        dual.update(float(total[0] / total[1].clamp(min=1)), epoch=epoch)

    # Records and checkpoints ---------------------------------------------------------------------

    def _assert_finite(self, step: int, values: Mapping[str, float]) -> None:
        broken = [name for name, value in values.items() if not np.isfinite(value)]
        if broken:
            raise RunError(
                f"{', '.join(broken)} is no longer a finite number at step {step + 1}. Lower "
                f"training.learning_rate, or bound the forget loss (NPO instead of GA)"
            )

    def _stops(self, done: int) -> bool:
        every = self.arguments.stop_every or self.plan.steps_per_epoch
        if self.stop_rule is None or done % every:
            return False
        return bool(self.stop_rule.check(done).reason)

    def _is_late(self, seconds: float) -> bool:
        """Whether the time is up, by the clock of the main process."""
        limit = self.arguments.max_seconds
        if not limit or self.checkpoint_root is None:
            return False
        late = {"late": float(seconds > limit and self.accelerator.is_main_process)}
        return self.runner.sum_over_processes(late)["late"] > 0

    def _should_save(self, done: int, total: int) -> bool:
        if self.checkpoint_root is None or self.arguments.save_steps < 0:
            return False
        every = self.arguments.save_steps or self.plan.steps_per_epoch
        return done % every == 0 or done == total

    def _save(self, step: int, optimizer: Any) -> None:
        index = self.accelerator.process_index
        states = gather_objects(self.accelerator, [(index, random_state(self.accelerator.device))])
        if self.accelerator.is_main_process:
            assert self.checkpoint_root is not None, "checked before"
            checkpoint = Checkpoint(
                step=step,
                key=self.key,
                parameters=trainable_parameters(self.model),
                optimizer=optimizer_tensors(optimizer),
                objective=self.state.state_dict(),
                random={str(i): value for i, value in states},
            )
            save_checkpoint(self.checkpoint_root, checkpoint, keep=self.arguments.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _resume(self, optimizer: Any) -> int:
        """Load the last checkpoint, if there is one, and return the steps it had done."""
        found = [] if self.checkpoint_root is None else checkpoints(self.checkpoint_root)
        if not found:
            return 0
        checkpoint = load_checkpoint(found[-1], key=self.key)
        load_parameters(self.model, checkpoint.parameters)
        load_optimizer_tensors(optimizer, checkpoint.optimizer)
        self.state.load_state_dict(dict(checkpoint.objective))
        own = checkpoint.random.get(str(self.accelerator.process_index))
        if own is not None:
            set_random_state(own, self.accelerator.device)
        return checkpoint.step


def hidden_size(model: nn.Module) -> int:
    """Width of the hidden states, 0 where the model does not say."""
    config = getattr(model, "config", None)
    return int(getattr(config, "hidden_size", 0) or 0)
