"""Arithmetic and time of a training: useful FLOPs, what the devices can do, what the links carry.

A multiplication and an addition count as two operations. Only matrix products are counted: norms,
activations and the softmax are less than one percent and bound by memory; the efficiency that is
assumed for a device holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

from expunge.run.planning.devices import Device
from expunge.run.planning.memory import Sharding
from expunge.run.planning.shapes import ModelShape
from expunge.run.planning.workload import OPTIMIZER_BYTES, Lengths, Settings, Work

EVALUATED_PER_STEP = 1.0
"""Reads of all weights per decoding step and batch: one, with cached keys and values."""


def forward_flops(shape: ModelShape, *, tokens: float, squares: float, labels: float) -> float:
    """FLOPs of a forward pass.

    Args:
        shape: The model.
        tokens: Real tokens.
        squares: Sum of the squared lengths of the rows: attention looks at whole rows.
        labels: Tokens whose logits are made.
    """
    blocks, attention, head = _forward_parts(shape, tokens, squares, labels)
    return blocks + attention + head


def _forward_parts(
    shape: ModelShape, tokens: float, squares: float, labels: float
) -> tuple[float, float, float]:
    return (
        2.0 * shape.active_matrices * tokens,
        # Queries times keys, and weights times values.
        4.0 * shape.layers * shape.query * squares,
        2.0 * shape.head * labels,
    )


def gradient_flops(
    shape: ModelShape, settings: Settings, *, tokens: float, squares: float, labels: float
) -> float:
    """FLOPs of a forward and a backward pass.

    The backward pass takes one product for the gradient of the inputs and one for that of the
    weights, each as large as the forward one. Frozen weights need the first only, and nothing is
    done below the first block that trains. Checkpointing repeats the forward pass of the blocks.
    """
    blocks, attention, head = _forward_parts(shape, tokens, squares, labels)
    trained, first = shape.num_parameters, 0
    if settings.rank:
        share = 0.0
    else:
        trained, first = shape.trained(settings.trainable)
        share = min(1.0, trained / shape.num_parameters)
    behind = (shape.layers - first) / shape.layers
    adapters = 0.0
    if settings.rank:
        numbers = shape.adapter_parameters(settings.rank, settings.modules)
        adapters = 6.0 * numbers * tokens
    again = behind if settings.checkpointing else 0.0
    return (
        blocks * (1 + behind + share + again)
        + attention * (1 + 2 * behind + again)
        + head * (2 + share)
        + adapters
    )


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one optimizer step takes, over all devices.

    Attributes:
        tokens: Real tokens that train.
        flops: FLOPs, passes without gradient included.
        start: FLOPs once per run: the reference table.
    """

    tokens: float
    flops: float
    start: float


def step_cost(shape: ModelShape, work: Work, settings: Settings) -> StepCost:
    """Tokens and FLOPs of an optimizer step of a method."""
    rows = settings.effective_batch

    def forward(names: tuple[str, ...]) -> float:
        return rows * forward_flops(
            shape,
            tokens=work.tokens(names),
            squares=work.squares(names),
            labels=work.labels(names),
        )

    flops = (
        work.uphill
        * rows
        * gradient_flops(
            shape,
            settings,
            tokens=work.tokens(work.trained),
            squares=work.squares(work.trained),
            labels=work.labels(work.trained),
        )
    )
    flops += work.uphill * forward(work.ahead)
    if settings.accumulation(1) > 1:
        flops += work.uphill * forward(work.statistics)
    passed = tuple(name for name, kind in work.references.items() if kind != "table")
    flops += work.uphill * forward(passed)
    start = sum(
        work.streams[name].rows
        * forward_flops(
            shape,
            tokens=work.streams[name].tokens,
            squares=work.streams[name].square,
            labels=work.streams[name].labels,
        )
        for name, kind in work.references.items()
        if kind == "table"
    )
    return StepCost(tokens=rows * work.tokens(work.trained), flops=flops, start=start)


@dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds of an optimizer step and of a run.

    Attributes:
        compute: Matrix products of a step.
        network: What the links carry in a step; it overlaps with the products.
        optimizer: The update, bound by memory.
        step: All of it.
        start: The reference table, once.
        run: Training from start to end, without loading and saving.
        bound: What a step waits for: arithmetic or network.
    """

    compute: float
    network: float
    optimizer: float
    step: float
    start: float
    run: float
    bound: str


def training_time(
    shape: ModelShape,
    work: Work,
    settings: Settings,
    device: Device,
    *,
    world: int,
    sharding: Sharding,
) -> Time:
    """Predicted time on `world` devices.

    A device that gets no row of a step waits: the rows of a step are the most that can be shared.
    Communication overlaps with arithmetic, and the longer of both counts.
    """
    cost = step_cost(shape, work, settings)
    # Rows are shared in whole micro-batches; the device with the most of them is waited for.
    rows = settings.accumulation(world) * min(settings.micro_batch, settings.effective_batch)
    share = min(1.0, rows / settings.effective_batch) if world > 1 else 1.0
    rate = device.rate(settings.precision)
    compute = cost.flops * share / rate
    network = _network_bytes(shape, settings, world, sharding) / (device.between(world) or 1.0)
    trained = (
        shape.adapter_parameters(settings.rank, settings.modules)
        if settings.rank
        else shape.trained(settings.trainable)[0]
    )
    split = world if sharding != "none" else 1
    # Weights, gradients and moments are read, weights and moments written; the gradient's norm
    # reads the gradients once more.
    moved = trained * (3 * settings.trained_bytes + 2 * OPTIMIZER_BYTES[settings.optimizer])
    moved += trained * settings.trained_bytes
    optimizer = moved / split / device.bandwidth
    step = max(compute, network) + optimizer
    start = cost.start / (rate * world)
    return Time(
        compute=compute,
        network=network,
        optimizer=optimizer,
        step=step,
        start=start,
        run=start + settings.steps * step,
        bound="network" if network > compute else "arithmetic",
    )


def _network_bytes(shape: ModelShape, settings: Settings, world: int, sharding: Sharding) -> float:
    """Bytes that one device sends per step, by the usual ring algorithms."""
    if world == 1:
        return 0.0
    part = (world - 1) / world
    if settings.rank:
        trained = shape.adapter_parameters(settings.rank, settings.modules)
    else:
        trained = shape.trained(settings.trainable)[0]
    gradients = trained * settings.trained_bytes
    reduced = 2 * part * gradients  # reduce, then tell everyone; or reduce, then gather weights
    if sharding != "full":
        return reduced
    # Weights are gathered for the forward and again for the backward pass of every micro-batch.
    # They travel in bfloat16 wherever products are computed in it.
    width = 4 if settings.precision == "float32" else 2
    passes = 3 if settings.checkpointing else 2
    gathered = passes * part * shape.num_parameters * width
    return settings.accumulation(world) * gathered + part * gradients


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured after the run.

    Attributes:
        rows: Rows of all probes together.
        lengths: Tokens and labels of a row with its own answer.
        answers: Answers of a row whose probability is measured, its own included.
        new_tokens: Tokens generated per row; 0: none.
        batch_tokens: Tokens of a batch.
        models: Models that are measured.
    """

    rows: int
    lengths: Lengths
    answers: float = 1.0
    new_tokens: float = 0.0
    batch_tokens: int = 4096
    models: int = 1


def evaluation_time(
    shape: ModelShape, evaluation: Evaluation, device: Device, *, precision: str, width: int
) -> float:
    """Predicted seconds of the evaluation on one device.

    One pass with shared questions over all answers, and greedy decoding in batches: bound by
    arithmetic or by reading the weights once per token, whichever takes longer.

    Args:
        shape: The model.
        evaluation: What is measured.
        device: Where.
        precision: Of the passes.
        width: Bytes per weight.
    """
    lengths = evaluation.lengths
    prompt = lengths.tokens - lengths.labels
    tokens = prompt + evaluation.answers * lengths.labels
    scored = evaluation.rows * forward_flops(
        shape,
        tokens=tokens,
        squares=lengths.square * evaluation.answers,
        labels=evaluation.answers * lengths.labels,
    )
    seconds = scored / device.rate(precision)
    if evaluation.new_tokens:
        whole = prompt + evaluation.new_tokens
        rows_at_once = max(1.0, evaluation.batch_tokens / whole)
        batches = max(1.0, evaluation.rows / rows_at_once)
        read = batches * evaluation.new_tokens * shape.num_parameters * width
        made = evaluation.rows * forward_flops(
            shape, tokens=whole, squares=whole**2, labels=evaluation.new_tokens
        )
        seconds += max(EVALUATED_PER_STEP * read / device.bandwidth, made / device.rate(precision))
    return evaluation.models * seconds
