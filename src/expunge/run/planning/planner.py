"""The plan: for every model and number of devices the first sharding that fits, and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from expunge.core.errors import Problems
from expunge.run.planning.devices import GIB, Device
from expunge.run.planning.memory import (
    SHARDINGS,
    Memory,
    Placement,
    Sharding,
    pass_memory,
    training_memory,
)
from expunge.run.planning.shapes import ModelShape
from expunge.run.planning.speed import (
    Evaluation,
    Time,
    evaluation_time,
    step_cost,
    training_time,
)
from expunge.run.planning.workload import Settings, Work

MOST_DEVICES = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one model on one number of devices comes to.

    Attributes:
        model: Its name.
        num_parameters: Its parameters.
        num_trained: Of these, or of the adapters, those that train.
        gpus: Devices.
        sharding: What they split.
        fits: Whether it fits into their memory.
        micro_batch: Forget rows per forward pass: fewer than asked for where all devices together
            would otherwise get more rows than a step has.
        accumulation: Micro-batches of a device in one step.
        steps: Optimizer steps.
        tokens_per_step: Real tokens of a step over all devices.
        flops_per_step: FLOPs of a step over all devices.
        memory: Per device, by part.
        available: Bytes of a device that can be filled.
        time: Of training.
        evaluation_seconds: Of the evaluation afterwards, on one device; None if nothing is
            measured or the model does not fit into one device.
    """

    model: str
    num_parameters: int
    num_trained: int
    gpus: int
    sharding: Sharding
    fits: bool
    micro_batch: int
    accumulation: int
    steps: int
    tokens_per_step: float
    flops_per_step: float
    memory: Memory
    available: float
    time: Time
    evaluation_seconds: float | None

    def as_plain(self) -> dict[str, Any]:
        """Plain values for JSON; bytes, seconds and FLOPs."""
        return asdict(self)


def plan_all(
    shapes: Sequence[ModelShape],
    gpus: Sequence[int],
    work: Work,
    settings: Settings,
    device: Device,
    *,
    evaluation: Evaluation | None = None,
    sharding: Sharding | None = None,
) -> list[Plan]:
    """A plan for every model on every number of devices.

    Args:
        shapes: The models.
        gpus: Numbers of devices, 1 to 64.
        work: What the method does.
        settings: How it trains.
        device: One of the devices.
        evaluation: What is measured afterwards.
        sharding: What devices split; None: the first that fits, from none to full.

    Raises:
        InputError: A number of devices is out of range.
    """
    problems = Problems()
    for number in gpus:
        if not 1 <= number <= MOST_DEVICES:
            problems.add("--gpus", f"{number} is out of range; plans go from 1 to {MOST_DEVICES}")
        elif device.is_cpu and number != 1:
            problems.add("--gpus", f"{number} with --device cpu: this machine is one device")
    problems.raise_if_any()
    return [
        plan_one(shape, number, work, settings, device, evaluation=evaluation, sharding=sharding)
        for shape in shapes
        for number in gpus
    ]


def plan_one(
    shape: ModelShape,
    world: int,
    work: Work,
    settings: Settings,
    device: Device,
    *,
    evaluation: Evaluation | None = None,
    sharding: Sharding | None = None,
) -> Plan:
    """One line of the plan; see `plan_all`."""
    own = shared_out(settings, world)
    usable = (device.memory - device.reserved) * device.usable
    possible: Sequence[Sharding] = list(SHARDINGS) if sharding is None else [sharding]
    if world == 1:
        possible = ["none"]
    chosen = possible[-1]
    memory = _memory(shape, work, own, device, world, chosen)
    for kind in possible:
        found = _memory(shape, work, own, device, world, kind)
        if found.peak <= usable:
            chosen, memory = kind, found
            break
    cost = step_cost(shape, work, own)
    trained = (
        shape.adapter_parameters(own.rank, own.modules)
        if own.rank
        else shape.trained(own.trainable)[0]
    )
    return Plan(
        model=shape.name,
        num_parameters=shape.num_parameters,
        num_trained=trained,
        gpus=world,
        sharding=chosen,
        fits=memory.peak <= usable,
        micro_batch=own.micro_batch,
        accumulation=own.accumulation(world),
        steps=own.steps,
        tokens_per_step=cost.tokens,
        flops_per_step=cost.flops,
        memory=memory,
        available=usable,
        time=training_time(shape, work, own, device, world=world, sharding=chosen),
        evaluation_seconds=_evaluation(shape, evaluation, own, device, usable),
    )


def shared_out(settings: Settings, world: int) -> Settings:
    """The settings with a micro-batch that leaves no device without rows, as far as possible."""
    per_device = max(1, settings.effective_batch // world)
    return replace(settings, micro_batch=min(settings.micro_batch, per_device))


def _memory(
    shape: ModelShape,
    work: Work,
    settings: Settings,
    device: Device,
    world: int,
    sharding: Sharding,
) -> Memory:
    place = Placement(world=world, sharding=sharding, gpu=not device.is_cpu)
    return training_memory(shape, work, settings, place)


def _evaluation(
    shape: ModelShape,
    evaluation: Evaluation | None,
    settings: Settings,
    device: Device,
    usable: float,
) -> float | None:
    if evaluation is None:
        return None
    width = 4 if settings.precision == "float32" else 2
    beside = pass_memory(
        shape,
        tokens=evaluation.batch_tokens,
        labels=evaluation.batch_tokens,
        weight_bytes=width,
        chunk=settings.chunk,
        cached=bool(evaluation.new_tokens),
    )
    if shape.num_parameters * width + beside > usable:
        return None
    return evaluation_time(shape, evaluation, device, precision=settings.precision, width=width)


def assumptions(device: Device, settings: Settings, work: Work) -> list[str]:
    """What a plan takes for granted, one sentence each."""
    precision = "float32" if settings.precision == "float32" else "bfloat16"
    lines = [
        f"{device.name}: {device.memory / GIB:.1f} GiB, "
        f"{device.rate(settings.precision) / 1e12:.3g} TFLOP/s reached in {precision}"
        + (
            f" ({device.efficiency:.0%} of the peak, assumed)"
            if not device.is_cpu
            else " (a share of what was measured here)"
        )
        + f"; {device.source}",
        "Tokens are real tokens: rows are packed without padding, logits are made for labels only.",
        _stream_line(work),
        f"{settings.optimizer} with {_precision_line(settings)}, "
        + ("activations recomputed." if settings.checkpointing else "activations stored."),
    ]
    if not device.is_cpu:
        lines += [
            f"Sharding: the first that fits of {_sharding_line(SHARDINGS)}. The trainer itself "
            "runs unsharded; the other lines say what sharded training needs.",
            f"Links: {device.link / 1e9:.3g} GB/s up to {device.per_node} devices, "
            f"{device.network / 1e9:.3g} GB/s beyond, overlapping with arithmetic.",
        ]
    return lines


def _stream_line(work: Work) -> str:
    streams = ", ".join(
        f"{name} {work.streams[name].tokens:.0f} tokens ({work.streams[name].labels:.0f} labels)"
        for name in (*work.trained, *(name for name in work.ahead if name not in work.trained))
    )
    kinds = ", ".join(f"{name} {kind}" for name, kind in work.references.items()) or "none"
    return f"One row of each stream: {streams}. Reference: {kinds.replace('_', ' ')}."


def _precision_line(settings: Settings) -> str:
    if settings.rank:
        return f"adapters of rank {settings.rank}, weights in {settings.weight_bytes} bytes"
    kept = " and float32 master weights" if settings.master else ""
    return f"weights in {settings.weight_bytes} bytes ({settings.precision}){kept}"


def _sharding_line(shardings: Mapping[Sharding, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in shardings.items())
