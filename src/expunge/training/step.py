"""The gradient of one optimizer step: micro-batches, counts, forward passes, backward passes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.collate import Batch, collate
from expunge.data.streams import Pick, Streams
from expunge.models.forward import StreamRequest, mask_outputs
from expunge.models.outputs import TokenOutputs
from expunge.objectives import Objective, ObjectiveState, ObjectiveSums, OwnRows, Statistics
from expunge.objectives.updates import SharpnessOptions
from expunge.training.arguments import TrainingArguments
from expunge.training.checkpoint import trainable_parameters
from expunge.training.entanglement import EntanglementKeeper
from expunge.training.passes import Passes, inference
from expunge.training.reference import Reference
from expunge.training.statistics import AcrossProcesses, Collector

MicroBatch = dict[str, Batch]


@dataclass(kw_only=True)
class StepRunner:
    """Computes gradients of an objective; the parameters stay where they are.

    Attributes:
        objective: What to minimise.
        state: What it keeps between steps.
        streams: The tokenised rows.
        passes: How forward passes are run.
        reference: The reference model.
        arguments: Micro-batch size and padding.
        keeper: Embeddings of EGU, if the objective has them.
        initial_proxies: NLL of every proxy under the start model, if the boundary is fixed.
    """

    objective: Objective
    state: ObjectiveState
    streams: Streams
    passes: Passes
    reference: Reference
    arguments: TrainingArguments
    keeper: EntanglementKeeper | None = None
    initial_proxies: Tensor | None = None
    counts: dict[str, float] = field(default_factory=dict)

    def gradients(
        self, picks: Sequence[Pick], wrapped: nn.Module, update: SharpnessOptions | None
    ) -> tuple[list[MicroBatch], list[ObjectiveSums]]:
        """Leave the gradient of a step in the parameters.

        Args:
            picks: The rows of the step.
            wrapped: The model as prepared for its processes.
            update: Options of a sharpness-aware update.

        Returns:
            This process's micro-batches and what the objective gave for each, at the parameters
            as they are.
        """
        micros = self.micro_batches(picks)
        self.counts = self._count(micros)
        statistics = self._statistics(micros)
        if update is None:
            return micros, self._accumulate(micros, wrapped, statistics)
        return micros, self._sharpness_aware(micros, wrapped, statistics, update)

    def micro_batches(self, picks: Sequence[Pick]) -> list[MicroBatch]:
        """This process's share of a step, in equal parts for every process and micro-batch."""
        accelerator = self.passes.accelerator
        world = accelerator.num_processes
        parts = -(-len(picks) // (self.arguments.micro_batch_size * world))
        split = np.array_split(np.arange(len(picks)), parts * world)
        mine = split[accelerator.process_index :: world]
        return [self._micro_batch([picks[i] for i in part]) for part in mine]

    def sum_over_processes(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values of all processes, added."""
        accelerator = self.passes.accelerator
        if accelerator.num_processes == 1:
            return dict(values)
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        reduced = accelerator.reduce(tensor.to(accelerator.device), reduction="sum")
        return dict(zip(values, reduced.tolist(), strict=True))

    def _micro_batch(self, picks: Sequence[Pick]) -> MicroBatch:
        """Rows of every stream; a process without rows gets one that does not count.

        It still has to take part in the exchange of gradients.
        """
        return {
            stream: collate(
                self.streams.examples(stream, picks),
                pad_token_id=self.passes.pad_token_id,
                pad_to=self.arguments.pad_to or None,
                num_rows=max(1, len(picks)),
            ).to(self.passes.accelerator.device)
            for stream in self.objective.all_streams()
        }

    def _count(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """Every term's denominator over the whole step."""
        totals: dict[str, float] = {}
        for micro in micros:
            outputs = {name: mask_outputs(rows) for name, rows in micro.items()}
            for name, count in self.objective.counts(outputs).items():
                totals[name] = totals.get(name, 0.0) + float(count)
        return self.sum_over_processes(totals)

    def _statistics(self, micros: Sequence[MicroBatch]) -> Statistics:
        """What runs over the whole step; a pass ahead only if it has several micro-batches."""
        streams = self.objective.statistic_streams()
        accelerator = self.passes.accelerator
        if not streams or (len(micros) == 1 and accelerator.num_processes == 1):
            return OwnRows()
        if len(micros) == 1:
            return AcrossProcesses(accelerator)
        collector = Collector()
        with inference(self.passes.model):
            for micro in micros:
                outputs = self._outputs(micro, streams, self.passes.model)
                self.objective.collect(outputs, self.state, collector)
        return collector.reduced(accelerator)

    def _accumulate(
        self,
        micros: Sequence[MicroBatch],
        wrapped: nn.Module,
        statistics: Statistics,
        part: str = "",
    ) -> list[ObjectiveSums]:
        """Add the gradient of all micro-batches to what is in the parameters."""
        accelerator = self.passes.accelerator
        results = []
        for number, micro in enumerate(micros):
            last = number == len(micros) - 1
            waits = contextlib.nullcontext() if last else accelerator.no_sync(wrapped)
            with waits:
                sums = self._forward(micro, wrapped, statistics)
                # Processes average their gradients; the counts are already those of all of them.
                loss = sums.total(self.counts, part=part) * accelerator.num_processes
                accelerator.backward(loss)
            results.append(sums)
        return results

    def _sharpness_aware(
        self,
        micros: Sequence[MicroBatch],
        wrapped: nn.Module,
        statistics: Statistics,
        options: SharpnessOptions,
    ) -> list[ObjectiveSums]:
        """SAM: the gradient of the chosen part is taken `rho` uphill of the parameters."""
        parameters = list(trainable_parameters(self.passes.model).values())
        part = "forget" if options.on == "forget" and self.objective.retain is not None else ""
        results = self._accumulate(micros, wrapped, statistics, part)
        uphill = [None if p.grad is None else p.grad.clone() for p in parameters]
        norm = torch.stack([g.float().norm() for g in uphill if g is not None]).norm()
        for parameter in parameters:
            parameter.grad = None
        if part:
            self._accumulate(micros, wrapped, statistics, "retain")
        saved = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, direction in zip(parameters, uphill, strict=True):
                if direction is not None and norm > 0:
                    parameter.add_(direction * (options.rho / norm).to(direction))
        # What runs over the whole step is taken uphill too, however the step is split.
        self._accumulate(micros, wrapped, self._statistics(micros), part)
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
        return results

    def _outputs(
        self, micro: MicroBatch, streams: Sequence[str], model: nn.Module
    ) -> dict[str, TokenOutputs]:
        requests = {
            name: StreamRequest(
                rows=micro[name],
                reads=self.objective.reads(name),
                positions=self.objective.positions(name),
            )
            for name in streams
        }
        outputs = self.passes.forward(model, requests)
        return self.reference.complete(outputs, requests, self.passes)

    def _forward(
        self, micro: MicroBatch, wrapped: nn.Module, statistics: Statistics
    ) -> ObjectiveSums:
        boundary, initial = None, None
        if self.initial_proxies is not None:
            index = micro["forget"].index.cpu()
            initial = self.initial_proxies[index].to(self.passes.accelerator.device)
        elif self.objective.boundary_streams():
            with inference(self.passes.model):
                boundary = self._outputs(
                    micro, self.objective.boundary_streams(), self.passes.model
                )
        outputs = self._outputs(micro, self.objective.streams(), wrapped)
        sums = self.objective(
            outputs,
            boundary=boundary,
            state=self.state,
            statistics=statistics,
            initial_proxy=initial,
        )
        if self.keeper is not None:
            sums.retain_embeddings = self.keeper.retain_embeddings(outputs)
        return sums


def global_terms(runner: StepRunner, results: Sequence[ObjectiveSums]) -> dict[str, float]:
    """Every term's mean over the step and all processes, without its weight."""
    totals: dict[str, float] = {}
    keys: dict[str, str] = {}
    for sums in results:
        for term in sums.sums:
            totals[term.name] = totals.get(term.name, 0.0) + float(term.total.detach())
            keys[term.name] = term.count_key
    reduced = runner.sum_over_processes(totals)
    return {
        name: total / max(runner.counts.get(keys[name], 1.0), 1.0)
        for name, total in reduced.items()
    }


def extras(runner: StepRunner, results: Sequence[ObjectiveSums]) -> dict[str, Any]:
    """Ranges over this process's rows, and what the proxy constraint did over all."""
    extra: dict[str, float] = {}
    for sums in results:
        for name, (low, high) in sums.ranges.items():
            extra[f"{name}_min"] = min(low, extra.get(f"{name}_min", low))
            extra[f"{name}_max"] = max(high, extra.get(f"{name}_max", high))
    if runner.objective.proxy is not None:
        own = {
            "penalty_active": float(sum(sums.active for sums in results)),
            "gaps": sum(sums.gaps for sums in results),
        }
        found = runner.sum_over_processes(own)
        extra["penalty_active"] = found["penalty_active"]
        extra["proxy_gap"] = found["gaps"] / max(runner.counts["rows"], 1.0)
    if runner.state.proxy_weight is not None:
        extra["mu"] = runner.state.proxy_weight.value
    if runner.state.retain_weight is not None:
        extra["retain_weight"] = runner.state.retain_weight.value
    return extra
