"""Language models that write proxy answers: what they must do, and a local one that does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from expunge.core.errors import InputError
from expunge.data.rows import Message


class Generator(Protocol):
    """A language model that continues conversations."""

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """One reply per conversation, in order.

        Where a conversation ends with an assistant message, that is the beginning of the reply; the
        returned text begins with it or continues it, as the model behind it can.

        Args:
            prompts: The conversations.
            max_new_tokens: Most tokens of each reply.
            temperature: 0 is greedy; above, replies are sampled with `seed`.
            seed: Seed of sampling; equal calls give equal replies.
        """


class LocalGenerator:
    """A transformers model as a `Generator`.

    Args:
        model: The writing model, not trained on the forget set.
        tokenizer: Its tokenizer.
        template: How conversations are written; the tokenizer's own if None.
        batch_tokens: Prompt tokens per batch, padding included. Decoding is faster with many rows
            at once; the default holds about 30 prompts.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, template: Any = None, batch_tokens: int = 16384
    ) -> None:
        from expunge.data.templates import make_template

        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.template = template if template is not None else make_template(tokenizer, "auto")

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Replies that begin with what the conversation already has of them."""
        from expunge.models.generate import generate_texts

        starts = [_start(prompt) for prompt in prompts]
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        generations = generate_texts(
            self.model,
            ids,
            tokenizer=self.tokenizer,
            max_new_tokens=max_new_tokens,
            batch_tokens=self.batch_tokens,
            stop_ids=self.template.stop_ids,
            temperature=temperature,
            seed=seed,
        )
        return [start + made.text for start, made in zip(starts, generations, strict=True)]

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the model goes on."""
        start = _start(prompt)
        messages = list(prompt[:-1] if start else prompt)
        try:
            ids = self.template.encode(messages, None)[0]
        except InputError:
            # Some chat templates have no system role: its text opens the first question instead.
            if messages[0].role != "system":
                raise
            system, first, *rest = messages
            opened = Message(role=first.role, content=f"{system.content}\n\n{first.content}")
            ids = self.template.encode([opened, *rest], None)[0]
        if start:
            ids = ids + self.tokenizer.encode(start, add_special_tokens=False)
        return list(ids)


def _start(prompt: Sequence[Message]) -> str:
    """What a conversation already has of the reply."""
    return prompt[-1].content if prompt[-1].role == "assistant" else ""
