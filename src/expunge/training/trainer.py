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
from torch import Tensor, nn

from expunge.core.errors import RunError
from expunge.data.collate import Batch, collate
from expunge.data.streams import Pick, StreamPlan, Streams
from expunge.models.forward import Precision, StreamRequest, mask_outputs
from expunge.models.outputs import TokenOutputs
from expunge.models.peft import is_peft
from expunge.objectives import Objective, ObjectiveSums
from expunge.training.arguments import TrainingArguments
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
from expunge.training.entanglement import EntanglementKeeper
from expunge.training.passes import Passes, gather_objects, inference, make_accelerator
from expunge.training.reference import Reference, reference_sources

MicroBatch = dict[str, Batch]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run did.

    Attributes:
        steps: Optimizer steps of the whole run.
        resumed_from: Steps that an earlier process had done.
        seconds: Wall-clock time of this process.
        last: The last step's record, None if there was nothing left to do.
        num_parameters: Parameters of the model, those of an adapter included.
        num_trainable: Parameters that train.
    """

    steps: int
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
        self.passes = Passes(
            model=self.model,
            streams=streams,
            accelerator=self.accelerator,
            pad_token_id=pad_token_id,
            precision=Precision(autocast=arguments.mixed_precision == "bf16"),
            hidden_layer=-1 if options is None else options.embed_layer,
        )
        self.entanglement = (
            None if options is None else EntanglementKeeper(objective, options, plan, self.passes)
        )
        self.reference = Reference(
            sources=reference_sources(
                objective, peft=is_peft(model), fixed=frozenset({"forget", "retain", "proxy"})
            )
        )
        self.initial_proxies: Tensor | None = None

    def train(self) -> TrainResult:
        """Run, or resume from the last checkpoint, to the end.

        Raises:
            RunError: The loss is no longer a finite number, or the checkpoint is of another run.
        """
        started = time.monotonic()
        torch.manual_seed(self.arguments.seed + self.accelerator.process_index)
        self._prepare_objective()
        optimizer = self._optimizer()
        if self.arguments.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()  # type: ignore[operator]
        wrapped, optimizer = self.accelerator.prepare(self.model, optimizer)
        first = self._resume(optimizer)
        total = self.arguments.num_steps(self.plan.steps_per_epoch)
        last = None
        for callback in self.callbacks:
            callback.on_start(total, first)
        try:
            wrapped.train()
            for step in range(first, total):
                last = self._step(step, wrapped, optimizer)
                for callback in self.callbacks:
                    callback.on_step(last)
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
        return TrainResult(
            steps=total,
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
        self.reference.freeze(self.model)
        for stream, source in self.reference.sources.items():
            if source == "table":
                self.reference.tables[stream] = self.passes.over(stream, _labelled_logps)
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
            self.initial_proxies = torch.stack(values)

    def _proxy_values(self, out: TokenOutputs) -> Tensor:
        """Values of proxy rows under the start model, which is its own reference, [B]."""
        out = replace(out, ref_logps=out.logps, ref_logits=out.logits)
        return self.objective.proxy_scale({"proxy": out}, "proxy")

    def _optimizer(self) -> torch.optim.Optimizer:
        decay: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter in trainable_parameters(self.model).values():
            # Norm scales and biases are vectors; decaying them only shrinks the activations.
            (decay if parameter.ndim >= 2 else plain).append(parameter)
        groups = [
            {"params": decay, "weight_decay": self.arguments.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.arguments.learning_rate,
            betas=(self.arguments.adam_beta1, self.arguments.adam_beta2),
            eps=self.arguments.adam_epsilon,
        )

    # One step ------------------------------------------------------------------------------------

    def _step(self, step: int, wrapped: nn.Module, optimizer: Any) -> StepRecord:
        started = time.monotonic()
        rate = self.arguments.learning_rate_at(step, self.plan.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        micros = self._micro_batches(self.plan.step(step))
        counts = self._counts(micros)
        normaliser = None
        if self.entanglement is not None:
            self.entanglement.refresh(step)
            normaliser = self.entanglement.normaliser([micro["forget"] for micro in micros])
        results = []
        for number, micro in enumerate(micros):
            last = number == len(micros) - 1
            waits = contextlib.nullcontext() if last else self.accelerator.no_sync(wrapped)
            with waits:
                sums = self._forward(micro, wrapped, normaliser)
                # Processes average their gradients; the counts are already those of all of them.
                loss = sums.total(counts) * self.accelerator.num_processes
                self.accelerator.backward(loss)
            results.append(sums)
        values = self._global_terms(results, counts)
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
        weights = {term.name: term.weight for term in results[0].sums}
        return StepRecord(
            step=step + 1,
            epoch=(step + 1) / self.plan.steps_per_epoch,
            total=sum(weights[name] * value for name, value in values.items()),
            terms=values,
            learning_rate=rate,
            grad_norm=float(norm),
            seconds=time.monotonic() - started,
            extra=self._extra(results),
        )

    def _micro_batches(self, picks: Sequence[Pick]) -> list[MicroBatch]:
        """This process's share of a step, in equal parts for every process and micro-batch."""
        world = self.accelerator.num_processes
        parts = -(-len(picks) // (self.arguments.micro_batch_size * world))
        split = np.array_split(np.arange(len(picks)), parts * world)
        mine = split[self.accelerator.process_index :: world]
        return [self._micro_batch([picks[i] for i in part]) for part in mine]

    def _micro_batch(self, picks: Sequence[Pick]) -> MicroBatch:
        """Rows of every stream; a process without rows gets one that does not count.

        It still has to take part in the exchange of gradients.
        """
        return {
            stream: collate(
                self.streams.examples(stream, picks),
                pad_token_id=self.pad_token_id,
                pad_to=self.arguments.pad_to or None,
                num_rows=max(1, len(picks)),
            ).to(self.accelerator.device)
            for stream in self.objective.all_streams()
        }

    def _requests(self, micro: MicroBatch, streams: Sequence[str]) -> dict[str, StreamRequest]:
        return {
            name: StreamRequest(
                rows=micro[name],
                reads=self.objective.reads(name),
                positions=self.objective.positions(name),
            )
            for name in streams
        }

    def _outputs(
        self, micro: MicroBatch, streams: Sequence[str], model: nn.Module
    ) -> dict[str, TokenOutputs]:
        requests = self._requests(micro, streams)
        outputs = self.passes.forward(model, requests)
        return self.reference.complete(outputs, requests, self.passes)

    def _forward(
        self, micro: MicroBatch, wrapped: nn.Module, normaliser: Callable[[Tensor], Tensor] | None
    ) -> ObjectiveSums:
        boundary, initial = None, None
        if self.initial_proxies is not None:
            initial = self.initial_proxies[micro["forget"].index.cpu()].to(self.accelerator.device)
        elif self.objective.boundary_streams():
            with inference(self.model):
                boundary = self._outputs(micro, self.objective.boundary_streams(), self.model)
        outputs = self._outputs(micro, self.objective.streams(), wrapped)
        state = None if self.entanglement is None else self.entanglement.state
        sums = self.objective(
            outputs,
            boundary=boundary,
            entanglement=state,
            log_normaliser=normaliser,
            initial_proxy=initial,
        )
        if self.entanglement is not None:
            sums.retain_embeddings = self.entanglement.retain_embeddings(outputs)
        return sums

    def _counts(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """Every term's denominator over the whole step."""
        totals: dict[str, float] = {}
        for micro in micros:
            outputs = {name: mask_outputs(rows) for name, rows in micro.items()}
            for name, count in self.objective.counts(outputs).items():
                totals[name] = totals.get(name, 0.0) + float(count)
        return self._sum_over_processes(totals)

    def _sum_over_processes(self, values: Mapping[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return dict(values)
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        reduced = self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")
        return dict(zip(values, reduced.tolist(), strict=True))

    # Records and checkpoints ---------------------------------------------------------------------

    def _global_terms(
        self, results: Sequence[ObjectiveSums], counts: Mapping[str, float]
    ) -> dict[str, float]:
        totals: dict[str, float] = {}
        keys: dict[str, str] = {}
        for sums in results:
            for term in sums.sums:
                totals[term.name] = totals.get(term.name, 0.0) + float(term.total.detach())
                keys[term.name] = term.count_key
        reduced = self._sum_over_processes(totals)
        return {
            name: total / max(counts.get(keys[name], 1.0), 1.0) for name, total in reduced.items()
        }

    def _extra(self, results: Sequence[ObjectiveSums]) -> dict[str, float]:
        """Ranges over this process's rows and the number of proxy penalties over all."""
        extra: dict[str, float] = {}
        for sums in results:
            for name, (low, high) in sums.ranges.items():
                extra[f"{name}_min"] = min(low, extra.get(f"{name}_min", low))
                extra[f"{name}_max"] = max(high, extra.get(f"{name}_max", high))
        if self.objective.proxy is not None:
            active = {"active": float(sum(sums.active for sums in results))}
            extra["penalty_active"] = self._sum_over_processes(active)["active"]
        return extra

    def _assert_finite(self, step: int, values: Mapping[str, float]) -> None:
        broken = [name for name, value in values.items() if not np.isfinite(value)]
        if broken:
            raise RunError(
                f"{', '.join(broken)} is no longer a finite number at step {step + 1}. Lower "
                f"training.learning_rate, or bound the forget loss (NPO instead of GA)"
            )

    def _is_late(self, seconds: float) -> bool:
        """Whether the time is up, by the clock of the main process."""
        limit = self.arguments.max_seconds
        if not limit or self.checkpoint_root is None:
            return False
        late = {"late": float(seconds > limit and self.accelerator.is_main_process)}
        return self._sum_over_processes(late)["late"] > 0

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
            keeper = self.entanglement
            state = {} if keeper is None else keeper.state.state_dict()
            checkpoint = Checkpoint(
                step=step,
                key=self.key,
                parameters=trainable_parameters(self.model),
                optimizer=optimizer_tensors(optimizer),
                objective=state,
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
        if self.entanglement is not None:
            self.entanglement.state.load_state_dict(dict(checkpoint.objective))
        own = checkpoint.random.get(str(self.accelerator.process_index))
        if own is not None:
            set_random_state(own, self.accelerator.device)
        return checkpoint.step


def _labelled_logps(out: TokenOutputs) -> list[Tensor]:
    """Log-probabilities of the labelled tokens of every row, in order."""
    return [row[mask] for row, mask in zip(out.logps, out.mask, strict=True)]
