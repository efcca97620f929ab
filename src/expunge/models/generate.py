"""Answers of a model to many prompts at once; a prompt that waits takes a finished one's place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from expunge.core.errors import InputError
from expunge.models.decoding import (
    Job,
    Limits,
    Sampler,
    decode,
    evaluating,
    forward_options,
    left_pad,
)

__all__ = [
    "Generation",
    "Indexed",
    "context_length",
    "default_stop_ids",
    "evaluating",
    "forward_options",
    "generate_batches",
    "generate_texts",
    "left_pad",
    "plan_jobs",
]


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
        batch_tokens: Prompt tokens at once, padding included. The cache may hold about 4 times as
            many tokens, answers included.
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
    """The same as answers are done, longest prompts first, for callers that save as they go."""
    jobs = plan_jobs(model, prompts, max_new_tokens)
    stops = frozenset(stop_ids) if stop_ids is not None else default_stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    for rows in decode(
        model,
        jobs,
        stops=stops,
        sampler=Sampler(temperature=temperature, seed=seed),
        limits=Limits(batch_tokens=batch_tokens),
        pad=pad if isinstance(pad, int) else 0,
    ):
        yield [
            Indexed(
                row.job.position,
                Generation(
                    text=str(tokenizer.decode(row.tokens, skip_special_tokens=True)),
                    token_ids=tuple(row.tokens),
                    finished=row.finished,
                ),
            )
            for row in rows
        ]


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


def plan_jobs(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]
) -> list[Job]:
    """What there is to do; limits never go beyond the model's context.

    Raises:
        InputError: A prompt is empty or fills the model's context.
    """
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
        jobs.append(Job(index, prompt, max(room, 0)))
    return jobs
