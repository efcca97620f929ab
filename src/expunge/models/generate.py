"""Answers of a model to many prompts: left-padded batches that shrink as rows finish."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.core.errors import InputError

# A batch gives up the memory of finished rows when at least this share of it has finished: copying
# the cache for every single row would cost more than it saves.
SHRINK_SHARE = 0.25
# Cached tokens, prompts and answers together, per prompt token that a batch may hold. Decoding
# wants many rows at once, so the cache may grow to this multiple of the prompts' budget.
CACHE_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model said to one prompt.

    Attributes:
        text: The tokens as text, special tokens left out.
        token_ids: The generated tokens, without the one that ended the answer.
        finished: The model ended the answer itself; False if it was cut at the token limit.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool


class Indexed(NamedTuple):
    """A generation and the position of its prompt in the input."""

    position: int
    generation: Generation


def generate_texts(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    max_new_tokens: int | Sequence[int],
    batch_tokens: int = 4096,
    stop_ids: Collection[int] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue every prompt; results in the order of the prompts.

    Args:
        model: A decoder-only transformer with a key-value cache.
        prompts: Token ids; none of them empty.
        tokenizer: Turns tokens into text.
        max_new_tokens: Limit for all prompts, or one for each. Never more than the model's context
            leaves room for.
        batch_tokens: Prompt tokens per batch, padding included. A batch's cache may hold up to 4
            times as many tokens, answers included.
        stop_ids: Tokens that end an answer; those of the model's generation config and the
            tokenizer's end-of-sequence token if None.
        temperature: 0 is greedy: the same tokens as `model.generate(do_sample=False)`. Above 0,
            tokens are drawn, each prompt with random numbers of its own, so that batching does not
            change the draw.
        seed: Seed of these random numbers.
        on_progress: Called with the number of finished prompts and of all prompts.

    Raises:
        InputError: A prompt is empty or fills the model's context.
    """
    found: list[Generation | None] = [None] * len(prompts)
    done = 0
    for batch in generate_batches(
        model,
        prompts,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        stop_ids=stop_ids,
        temperature=temperature,
        seed=seed,
    ):
        for position, generation in batch:
            found[position] = generation
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(prompts))
    return [generation for generation in found if generation is not None]


def generate_batches(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    max_new_tokens: int | Sequence[int],
    batch_tokens: int = 4096,
    stop_ids: Collection[int] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[list[Indexed]]:
    """The same batch by batch, longest prompts first, for callers that save as they go."""
    jobs = _jobs(model, prompts, max_new_tokens)
    stops = frozenset(stop_ids) if stop_ids is not None else default_stop_ids(model, tokenizer)
    sampler = _Sampler(temperature=temperature, seed=seed)
    pad = tokenizer.pad_token_id
    for batch in _batches(jobs, batch_tokens):
        with evaluating(model):
            rows = _decode(model, batch, stops, sampler, pad if isinstance(pad, int) else 0)
        yield [
            Indexed(
                job.position,
                Generation(
                    text=str(tokenizer.decode(row.tokens, skip_special_tokens=True)),
                    token_ids=tuple(row.tokens),
                    finished=row.finished,
                ),
            )
            for job, row in zip(batch, rows, strict=True)
        ]


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


def default_stop_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """End tokens of the model's generation config and the tokenizer's end-of-sequence token."""
    config = getattr(model, "generation_config", None)
    found: list[Any] = [tokenizer.eos_token_id]
    own = getattr(config, "eos_token_id", None)
    found += own if isinstance(own, list | tuple) else [own]
    return frozenset(token for token in found if isinstance(token, int))


def context_length(model: nn.Module) -> int | None:
    """Most tokens the model can look at, if its config says so."""
    config = getattr(model, "config", None)
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


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


class _Job(NamedTuple):
    position: int
    prompt: Sequence[int]
    limit: int


@dataclass(kw_only=True)
class _Row:
    """One row being decoded."""

    tokens: list[int]
    limit: int
    finished: bool = False

    @property
    def done(self) -> bool:
        return self.finished or len(self.tokens) >= self.limit


@dataclass(frozen=True, kw_only=True)
class _Sampler:
    """Picks the next token of every row."""

    temperature: float
    seed: int

    def uniforms(self, job: _Job) -> Tensor | None:
        """The random numbers of a prompt, one per token; they depend on seed and prompt only."""
        if not self.temperature:
            return None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + job.position)
        return torch.rand(max(job.limit, 1), generator=generator, dtype=torch.float64)

    def pick(self, logits: Tensor, uniforms: list[Tensor]) -> Tensor:
        """Next tokens, [B], from logits [B, V] and one random number per row."""
        if not self.temperature:
            return logits.argmax(-1)
        shares = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        draws = torch.stack(uniforms).to(shares)[:, None] * shares[:, -1:]
        return torch.searchsorted(shares, draws, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _jobs(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]
) -> list[_Job]:
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    context = context_length(model)
    jobs = []
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not len(prompt):
            raise InputError(f"prompt {index} is empty; a model needs at least one token to go on")
        if context is not None and len(prompt) > context:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens and the model sees only {context}; "
                "shorten it or use a model with a longer context"
            )
        room = limit if context is None else min(limit, context - len(prompt))
        jobs.append(_Job(index, prompt, max(room, 0)))
    return jobs


def _batches(jobs: list[_Job], batch_tokens: int) -> Iterator[list[_Job]]:
    """Jobs of similar length together; the largest first, so that too little memory shows early."""
    order = sorted(jobs, key=lambda job: (-len(job.prompt), -job.limit, job.position))
    start = 0
    while start < len(order):
        width = len(order[start].prompt)
        size = max(1, batch_tokens // width)
        tokens = width + max(job.limit for job in order[start : start + size])
        size = max(1, min(size, CACHE_FACTOR * batch_tokens // tokens))
        yield order[start : start + size]
        start += size


def _decode(
    model: nn.Module, batch: list[_Job], stops: frozenset[int], sampler: _Sampler, pad: int
) -> list[_Row]:
    """Generate for one batch until every row is done."""
    from transformers import DynamicCache

    rows = [_Row(tokens=[], limit=job.limit) for job in batch]
    uniforms = [sampler.uniforms(job) for job in batch]
    options = forward_options(model)
    device = next(model.parameters()).device
    ids, mask = left_pad([job.prompt for job in batch], pad, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=getattr(model, "config", None))
    lines = list(range(len(batch)))  # which row each line of the batch belongs to
    while not all(rows[row].done for row in lines):
        arguments: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        result = model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in arguments.items() if name in options},
        )
        numbers = [
            draws[min(len(rows[row].tokens), len(draws) - 1)]
            for row in lines
            if (draws := uniforms[row]) is not None
        ]
        chosen = sampler.pick(result.logits[:, -1], numbers)
        _note(rows, lines, chosen.tolist(), stops)
        kept = [line for line, row in enumerate(lines) if not rows[row].done]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        ids = chosen[:, None]
        if kept and len(kept) <= (1.0 - SHRINK_SHARE) * len(lines):
            select = torch.tensor(kept, device=device)
            cache.batch_select_indices(select)
            ids, mask, positions = ids[select], mask[select], positions[select]
            lines = [lines[line] for line in kept]
    return rows


def _note(rows: list[_Row], lines: list[int], chosen: Sequence[int], stops: frozenset[int]) -> None:
    """Write the chosen tokens down for the rows that are not done."""
    for row, token in zip((rows[line] for line in lines), chosen, strict=True):
        if row.done:
            continue
        if token in stops:
            row.finished = True
        else:
            row.tokens.append(token)


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
