"""Memory of a training on one device, part by part.

The bytes per token in `_STORED` are what autograd keeps of one block of transformers' Llama: every
distinct storage that `saved_tensors_hooks` of torch.autograd.graph sees. Tokens are real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from expunge.run.planning.shapes import ModelShape
from expunge.run.planning.workload import OPTIMIZER_BYTES, Settings, Work

Sharding = Literal["none", "optimizer", "full"]
SHARDINGS: dict[Sharding, str] = {
    "none": "every device holds everything; gradients are averaged",
    "optimizer": "gradients and optimizer state are split over the devices (ZeRO-2)",
    "full": "weights as well are split and gathered block by block (FSDP full shard, ZeRO-3)",
}


class Stored(NamedTuple):
    """Bytes that one token leaves in one block for the backward pass, per unit of width.

    `hidden`, `query`, `kv`, `inner` and `rank` are multiplied by these widths (`rank` once for
    every adapter), `score` by heads times the length of the row, `fixed` by 1.
    """

    hidden: float
    query: float
    kv: float
    inner: float
    rank: float
    score: float
    fixed: float = 8.0  # the two norms' inverse deviations, float32


# By precision, then: all weights train; adapters with dropout; adapters without. Attention that
# stores its scores. In mixed precision every linear layer keeps its own bfloat16 copy of its input.
_STORED: dict[str, tuple[Stored, Stored, Stored]] = {
    "float32": (
        Stored(24, 16, 0, 16, 0, 4),
        Stored(48, 20, 0, 20, 4, 4),
        Stored(16, 16, 0, 16, 4, 4),
    ),
    "mixed": (
        Stored(26, 8, 0, 8, 0, 6),
        Stored(38, 12, 0, 12, 2, 6),
        Stored(18, 8, 0, 8, 2, 6),
    ),
    "bfloat16": (
        Stored(16, 8, 0, 8, 0, 6),
        Stored(48, 14, 0, 14, 4, 6),
        Stored(28, 10, 0, 10, 4, 6),
    ),
}
# Without scores: bytes per unit of query width (in the order above) and of key width. A fused
# kernel keeps queries, keys, values and output as they are, and one float32 per head; row by row on
# a CPU the rows' outputs are joined in one more copy, and bfloat16 weights give float32 copies, but
# autocast makes bfloat16 of them again.
_WITHOUT_SCORES: dict[str, dict[str, tuple[tuple[float, float, float], float]]] = {
    "fused": {
        "float32": ((8, 16, 8), 8),
        "mixed": ((4, 10, 6), 4),
        "bfloat16": ((4, 12, 8), 4),
    },
    "rows": {
        "float32": ((12, 16, 12), 8),
        "mixed": ((10, 14, 10), 8),
        "bfloat16": ((10, 16, 12), 8),
    },
}

# Constants to calibrate; see perf/memory_check.py.
HEAD_COPIES = 3.0
"""Matrices of the size of a chunk of logits that exist at once: logits, exponentials, gradient."""
BLOCK_BUFFERS = 3.0
"""Buffers of the width of the feed-forward part that a pass through a block needs for itself."""
WHOLE_COPIES = 4.0
"""float32 matrices of logits where whole distributions are compared: logits, log-softmax, both of
the reference and the gradient, of which some are gone before others come."""
STEP_BUFFERS = 16.0 * 2**20
"""Bytes of temporaries of an optimizer step: it is fused, or goes piece by piece."""
SLACK = 1.05
"""What allocators lose between the pieces of activations and buffers."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: The model, with frozen models beside it.
        cast: Weights in bfloat16 for products in mixed precision.
        gradients: Gradients of what trains.
        optimizer: Moments, and float32 copies of weights if there are any.
        activations: What the forward pass stores for the backward pass.
        logits: The chunk of logits that exists at a time, with its temporaries.
        buffers: Temporaries of blocks, or of the optimizer.
        table: Reference values of all rows.
        base: What the process takes before any of this.
        peak: The most that exists at once: parts that never meet are not added up.
        moment: When that is: forward, backward or step.
    """

    weights: float
    cast: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    table: float
    base: float
    peak: float
    moment: str

    def parts(self) -> dict[str, float]:
        """The parts by name."""
        names = ("base", "weights", "cast", "gradients", "optimizer", "activations", "logits")
        return {name: getattr(self, name) for name in (*names, "buffers", "table")}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a training runs.

    Attributes:
        world: Devices.
        sharding: What they split; see `SHARDINGS`.
        gpu: On GPUs; tables of reference values are then in the host's memory, not theirs.
        base: Bytes that a process takes before it loads a model.
    """

    world: int = 1
    sharding: Sharding = "none"
    gpu: bool = True
    base: float = field(default=0.0)


def stored_per_token(shape: ModelShape, settings: Settings, length: float) -> float:
    """Bytes that one token of a row of `length` tokens leaves in one block."""
    which = 0 if not settings.rank else 1 if settings.dropout else 2
    kept = _STORED[settings.precision][which]
    query, kv, score, fixed = kept.query, kept.kv, kept.score, kept.fixed
    if settings.attention != "scores":
        queries, kv = _WITHOUT_SCORES[settings.attention][settings.precision]
        query, score, fixed = queries[which], 0.0, fixed + 4 * shape.heads
    active = max(1, shape.experts_per_token)
    adapters = sum(
        "all-linear" in settings.modules or name.rpartition(".")[2] in settings.modules
        for name, _, _ in shape.matrices
    )
    return (
        kept.hidden * shape.hidden
        + query * shape.query
        + kv * shape.kv
        + kept.inner * shape.inner * active * (1.0 if shape.gated else 0.5)
        + kept.rank * settings.rank * adapters
        + score * shape.heads * length
        + fixed
    )


def activations(
    shape: ModelShape, settings: Settings, tokens: float, length: float, blocks: int
) -> float:
    """Bytes that a forward pass over `tokens` tokens stores in `blocks` blocks.

    With checkpointing every block stores its input only, and one block at a time is recomputed.
    """
    per_token = stored_per_token(shape, settings, length)
    width = 2 if settings.precision == "bfloat16" and not settings.rank else 4
    stream = width * shape.hidden
    if settings.checkpointing:
        return tokens * (blocks * stream + (per_token if blocks else 0.0) + stream)
    # Behind the last block: the final norm's input and scaled output.
    return tokens * (blocks * per_token + 2 * stream)


def training_memory(shape: ModelShape, work: Work, settings: Settings, place: Placement) -> Memory:
    """Bytes on each device while a model trains, in the largest micro-batch that is to be expected.

    Args:
        shape: The model.
        work: What runs through it.
        settings: How it trains.
        place: On how many devices, and what they split.
    """
    split_state = place.world if place.sharding != "none" else 1
    split_weights = place.world if place.sharding == "full" else 1
    trained, first = _trained(shape, settings)
    total = shape.num_parameters
    own = total * settings.weight_bytes
    adapters = trained * 4 if settings.rank else 0
    # One block is gathered whole and the next is on its way; embedding and head stay for the pass.
    ends = shape.head * (1 if shape.tied else 2)
    whole = (2 * (total - ends) / shape.layers + ends) * settings.weight_bytes
    gathered = whole if place.sharding == "full" and place.world > 1 else 0.0
    head_kept = bool(set(work.whole) & set(work.states)) and not settings.rank
    head_copy = shape.head * settings.weight_bytes if head_kept else 0
    weights = ((1 + work.copies) * own + head_copy + adapters) / split_weights + gathered
    state = OPTIMIZER_BYTES[settings.optimizer]
    if settings.master and settings.trained_bytes == 2:
        state += 4
    moments = trained * state / split_state
    gradients = trained * settings.trained_bytes / split_state
    tokens, length, labels = _micro_batch(work, settings, place)
    stored = SLACK * activations(shape, settings, tokens, length, shape.layers - first)
    cast = _cast(shape, settings, trained) / split_weights
    logits = _logits(shape, work, settings, labels)
    table = 0.0 if place.gpu else _tables(shape, work, settings)  # tables stay with the host
    width = 2 if settings.precision != "float32" else 4
    active = max(1, shape.experts_per_token)
    inside = BLOCK_BUFFERS * tokens * shape.inner * active * width
    stepping = STEP_BUFFERS
    # A tied embedding, or one that trains beside its head, gets a dense gradient of its own last.
    embedding = 0.0
    if not settings.rank and first == 0:
        embedding = float(shape.head * settings.trained_bytes)
    accumulated = gradients if settings.accumulation(place.world) > 1 else 0.0
    head = 0.0 if settings.rank else embedding
    moments_of = {
        "forward": accumulated + stored + cast + max(logits, inside),
        # The head's gradient is there before anything that the blocks stored is gone.
        "backward": max(
            max(accumulated, head) + stored + cast + max(logits, inside) * (2 / 3),
            gradients + embedding + stored / max(1, shape.layers) + inside,
        ),
        "step": gradients + stepping,
    }
    moment = max(moments_of, key=lambda name: moments_of[name])
    fixed = place.base + weights + moments + table
    return Memory(
        weights=weights,
        cast=cast,
        gradients=gradients,
        optimizer=moments,
        activations=stored,
        logits=logits,
        buffers=stepping if moment == "step" else inside,
        table=table,
        base=place.base,
        peak=fixed + moments_of[moment],
        moment=moment,
    )


def pass_memory(
    shape: ModelShape, *, tokens: float, labels: float, weight_bytes: int, chunk: int, cached: bool
) -> float:
    """Bytes beside the weights of a pass without gradient: evaluation or a reference table.

    Args:
        shape: The model.
        tokens: Tokens at once.
        labels: Of these, tokens whose logits are made.
        weight_bytes: Bytes per number.
        chunk: Bytes of float32 logits at a time.
        cached: Keys and values of all blocks stay, as in generation.
    """
    cache = 2 * shape.layers * shape.kv * tokens * weight_bytes if cached else 0.0
    active = max(1, shape.experts_per_token)
    buffers = tokens * (6 * shape.hidden + BLOCK_BUFFERS * shape.inner * active) * weight_bytes
    return cache + max(buffers, HEAD_COPIES * min(chunk, 4.0 * labels * shape.vocab))


def _trained(shape: ModelShape, settings: Settings) -> tuple[int, int]:
    """Numbers that train, and the first block among them."""
    if settings.rank:
        return shape.adapter_parameters(settings.rank, settings.modules), 0
    return shape.trained(settings.trainable)


def _tables(shape: ModelShape, work: Work, settings: Settings) -> float:
    """Bytes of reference values of all rows: a log-probability per label, or a hidden state."""
    width = 4 if settings.precision == "float32" else 2
    total = 0.0
    for name, kind in work.references.items():
        if kind == "table":
            each = width * shape.hidden if name in work.states else 4
            total += work.streams[name].rows * work.streams[name].labels * each
    return total


def _micro_batch(work: Work, settings: Settings, place: Placement) -> tuple[float, float, float]:
    """Tokens, length that a token's row has on average, and labels of the largest micro-batch."""
    per_step = settings.accumulation(place.world) * place.world
    rows = min(settings.micro_batch, settings.effective_batch)
    mean = rows * work.tokens(work.trained)
    if settings.packed:
        tokens = work.largest(work.trained, rows, per_step * settings.steps)
    else:
        tokens = work.padded(work.trained, rows)
    length = work.squares(work.trained) / max(1.0, work.tokens(work.trained))
    labels = rows * work.labels(work.trained) * tokens / max(1.0, mean)
    return tokens, length, labels


def _cast(shape: ModelShape, settings: Settings, trained: int) -> float:
    """Bytes of weights in bfloat16 that live from forward to backward pass."""
    if settings.precision != "mixed":
        return 0.0
    own = 0 if settings.weight_bytes == 2 else 2 * shape.block_matrices
    if settings.rank and settings.checkpointing:
        own = 0  # frozen weights are cast again in every block and not kept
    return own + (2 * trained if settings.rank else 0)


def _logits(shape: ModelShape, work: Work, settings: Settings, labels: float) -> float:
    chunk = HEAD_COPIES * min(settings.chunk, 4.0 * labels * shape.vocab)
    share = work.labels([name for name in work.whole if name in work.trained])
    if not share:
        return chunk
    whole = labels * share / work.labels(work.trained)
    return chunk + WHOLE_COPIES * 4.0 * whole * shape.vocab
