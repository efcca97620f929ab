"""Greedy or drawn continuation of prompts, token by token, for many rows at once."""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.trees import TreeSupport, grow, plant, shared_beginning, tree_support, walking

if TYPE_CHECKING:
    from expunge.models.slots import Slots

# Prompts that wait join when this share of the lines is free: a pass over a few prompts costs
# nearly as much as one over many.
REFILL_SHARE = 0.25
# A cache that cannot take prompts later gives up the memory of finished rows when at least this
# share of them has finished: it is copied as a whole.
SHRINK_SHARE = 0.25
# Cached tokens, prompts and answers together, per prompt token that a batch may hold. Decoding
# wants many rows at once, so the cache may grow to this multiple of the prompts' budget.
CACHE_FACTOR = 4


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and gradients inside the block; every module's mode is restored after it.

    `no_grad` and not `inference_mode`: a model may keep tensors it makes here, such as rotary
    tables, and training would refuse them.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def forward_options(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the innermost model's forward takes."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            return frozenset(inspect.signature(inner.forward).parameters)


def first_choice(logits: Tensor) -> Tensor:
    """Token of the largest logit, the first of several, [B], from logits [B, V].

    numpy's argmax is vectorised, which that of torch on a CPU is not: ten times the speed.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    narrow = logits.dtype in (torch.float16, torch.bfloat16)
    values = (logits.float() if narrow else logits).detach()
    return torch.from_numpy(values.numpy().argmax(-1))


class Job(NamedTuple):
    """A prompt to continue.

    Attributes:
        position: Its place among all prompts.
        prompt: Token ids.
        limit: Most tokens of the answer.
    """

    position: int
    prompt: Sequence[int]
    limit: int


@dataclass(kw_only=True)
class Row:
    """One answer being written.

    Attributes:
        job: What it answers.
        uniforms: Random numbers of the prompt, one per token; None if nothing is drawn.
        tokens: Token ids so far.
        finished: The model ended it itself.
    """

    job: Job
    uniforms: Tensor | None = None
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def done(self) -> bool:
        """Nothing is added any more."""
        return self.finished or len(self.tokens) >= self.job.limit

    def note(self, token: int, stops: frozenset[int]) -> None:
        """Write a token down, unless the answer is done."""
        if self.done:
            return
        if token in stops:
            self.finished = True
        else:
            self.tokens.append(token)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Picks the next token of every row.

    Attributes:
        temperature: 0 takes the likeliest one.
        seed: Of the random numbers.
    """

    temperature: float
    seed: int

    def start(self, job: Job) -> Row:
        """A row without tokens; its random numbers depend on seed and prompt only."""
        if not self.temperature:
            return Row(job=job)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + job.position)
        uniforms = torch.rand(max(job.limit, 1), generator=generator, dtype=torch.float64)
        return Row(job=job, uniforms=uniforms)

    def pick(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """Next token of every row from logits [B, V]."""
        if not self.temperature:
            return [int(token) for token in first_choice(logits).tolist()]
        numbers = [
            draws[min(len(row.tokens), len(draws) - 1)]
            for row in rows
            if (draws := row.uniforms) is not None
        ]
        shares = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        drawn = torch.stack(numbers).to(shares)[:, None] * shares[:, -1:]
        chosen = torch.searchsorted(shares, drawn, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return [int(token) for token in chosen.tolist()]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many rows are written at once.

    Attributes:
        batch_tokens: Prompt tokens, padding included; the cache may hold four times as many, those
            of answers included.
    """

    batch_tokens: int

    def rows(self, jobs: Sequence[Job]) -> int:
        """Most rows like the largest of these jobs; at least one."""
        width = max(len(job.prompt) for job in jobs)
        tokens = width + max(job.limit for job in jobs)
        most = min(self.batch_tokens // width, CACHE_FACTOR * self.batch_tokens // tokens)
        return max(1, most)


def decode(
    model: nn.Module,
    jobs: Sequence[Job],
    *,
    stops: frozenset[int],
    sampler: Sampler,
    limits: Limits,
    pad: int,
) -> Iterator[list[Row]]:
    """Continue all prompts, longest first; rows come out as they are done.

    Args:
        model: A causal language model.
        jobs: What to continue.
        stops: Tokens that end an answer.
        sampler: Picks tokens.
        limits: How many rows are written at once.
        pad: Token id in empty places.
    """
    from expunge.models.slots import slots_for

    # The largest first, so that too little memory shows early.
    order = sorted(jobs, key=lambda job: (-len(job.prompt), -job.limit, job.position))
    nothing = [Row(job=job) for job in order if not job.limit]
    if nothing:
        yield nothing
    order = [job for job in order if job.limit]
    if not order:
        return
    slots = slots_for(model, limits.rows(order[:1]))
    if slots is not None:
        yield from _Writer(model, slots, stops, sampler, limits, pad).run(order)
        return
    while order:
        size = limits.rows(order[: limits.rows(order[:1])])
        with evaluating(model):
            rows = [sampler.start(job) for job in order[:size]]
            _decode_batch(model, rows, stops, sampler, pad)
        yield rows
        order = order[size:]


class _Writer:
    """Writes answers in step; a prompt takes the line of an answer that is done."""

    def __init__(
        self,
        model: nn.Module,
        slots: Slots,
        stops: frozenset[int],
        sampler: Sampler,
        limits: Limits,
        pad: int,
    ) -> None:
        self.model, self.slots, self.stops = model, slots, stops
        self.sampler, self.limits, self.pad = sampler, limits, pad
        self.device = next(model.parameters()).device
        self.options = forward_options(model)
        self.lines: list[Row] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[list[Row]]:
        """Rows as they are done; the jobs' prompts get no longer."""
        queue = deque(jobs)
        with evaluating(self.model):
            trees = tree_support(self.model)
        while queue or self.lines:
            with evaluating(self.model):
                fresh = self._next(queue)
                if fresh:
                    self._admit(fresh, trees)
                else:
                    self._step()
                done = self._leave(queue)
            if done:
                yield done

    def _next(self, queue: deque[Job]) -> list[Row]:
        """Prompts that join now."""
        if not queue:
            return []
        live = [row.job for row in self.lines]
        if live and len(live) > (1 - REFILL_SHARE) * self.limits.rows([*live, queue[0]]):
            return []
        fresh: list[Job] = []
        while queue:
            together = [*live, *fresh, queue[0]]
            if len(together) > 1 and len(together) > self.limits.rows(together):
                break
            fresh.append(queue.popleft())
        return [self.sampler.start(job) for job in fresh]

    def _admit(self, fresh: list[Row], trees: TreeSupport) -> None:
        prompts = [row.job.prompt for row in fresh]
        if not self.lines:
            self.slots.clear()
        lines = self.slots.admit([len(prompt) for prompt in prompts])
        if trees.fits(max(len(prompt) for prompt in prompts)):
            logits = self._read_trees(prompts, lines, trees)
        else:
            logits = self._read_padded(prompts, lines)
        self.lines += fresh
        self._note(fresh, logits)

    def _read_trees(self, prompts: list[Sequence[int]], lines: range, trees: TreeSupport) -> Tensor:
        """Fill the lines of new prompts; logits of what follows each, [B, V]."""
        trunk = shared_beginning(prompts)
        stems = [grow(prompt) for prompt in prompts]
        forest = plant(stems, trunk=trunk, device=self.device, together=trees.together)

        def keep(layer: int, keys: Tensor, values: Tensor) -> None:
            for line, start, prompt in zip(lines, forest.offsets, prompts, strict=True):
                stop = start + len(prompt) - trunk
                own = (
                    torch.cat([whole[0, :, :trunk], whole[0, :, start:stop]], dim=1)
                    for whole in (keys, values)
                )
                self.slots.write(layer, line, *own)

        forest.keep = keep
        ends = [
            start + len(prompt) - trunk - 1
            for start, prompt in zip(forest.offsets, prompts, strict=True)
        ]
        columns = torch.tensor(ends, device=self.device)
        with walking(self.model, forest) as arguments:
            if "logits_to_keep" in self.options:
                return self.model(**arguments, logits_to_keep=columns).logits[0]  # type: ignore[no-any-return]
            return self.model(**arguments).logits[0, columns]  # type: ignore[no-any-return]

    def _read_padded(self, prompts: list[Sequence[int]], lines: range) -> Tensor:
        """The same with left-padded rows."""
        from transformers import DynamicCache

        ids, mask = left_pad(prompts, self.pad, self.device)
        cache = DynamicCache(config=getattr(self.model, "config", None))
        arguments = {
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        logits = self._call(input_ids=ids, attention_mask=mask, **arguments)
        for number, layer in enumerate(cache.layers):
            for row, (line, prompt) in enumerate(zip(lines, prompts, strict=True)):
                own = (whole[row, :, -len(prompt) :] for whole in (layer.keys, layer.values))
                self.slots.write(number, line, *own)
        return logits

    def _step(self) -> None:
        """One more token for every line."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.lines], device=self.device)
        logits = self._call(
            input_ids=ids,
            attention_mask=self.slots.mask(self.device),
            position_ids=self.slots.positions(self.device),
            past_key_values=self.slots,
            use_cache=True,
            logits_to_keep=1,
        )
        self.slots.advance()
        self._note(self.lines, logits)

    def _call(self, **arguments: Any) -> Tensor:
        """Logits of the last column, [B, V]."""
        for name in ("position_ids", "logits_to_keep"):
            if name not in self.options:
                arguments.pop(name, None)
        return self.model(**arguments).logits[:, -1]  # type: ignore[no-any-return]

    def _note(self, rows: list[Row], logits: Tensor) -> None:
        for row, token in zip(rows, self.sampler.pick(logits, rows), strict=True):
            row.note(token, self.stops)

    def _leave(self, queue: deque[Job]) -> list[Row]:
        """Take out the rows that are done."""
        done = [row for row in self.lines if row.done]
        if done:
            kept = [line for line, row in enumerate(self.lines) if not row.done]
            self.lines = [self.lines[line] for line in self.slots.keep(kept)]
            if self.lines:
                self.slots.trim(len(queue[0].prompt) if queue else 0)
        return done


def _decode_batch(
    model: nn.Module, rows: list[Row], stops: frozenset[int], sampler: Sampler, pad: int
) -> None:
    """Write one batch to its end, for a model with a cache of its own kind."""
    from transformers import DynamicCache

    options = forward_options(model)
    device = next(model.parameters()).device
    ids, mask = left_pad([row.job.prompt for row in rows], pad, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=getattr(model, "config", None))
    lines = rows
    while lines:
        arguments: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        result = model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in arguments.items() if name in options},
        )
        chosen = sampler.pick(result.logits[:, -1], lines)
        for row, token in zip(lines, chosen, strict=True):
            row.note(token, stops)
        kept = [line for line, row in enumerate(lines) if not row.done]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        ids = torch.tensor(chosen, device=device)[:, None]
        if not kept:
            break
        if len(kept) <= (1.0 - SHRINK_SHARE) * len(lines):
            select = torch.tensor(kept, device=device)
            cache.batch_select_indices(select)
            ids, mask, positions = ids[select], mask[select], positions[select]
            lines = [lines[line] for line in kept]


def left_pad(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts that all end in the last column, and the mask of their real tokens, both [B, L]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[line, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
