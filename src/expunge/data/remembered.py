"""A template that remembers what it has written, so that no row is tokenised twice."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from expunge.data.rows import Message
from expunge.data.templates import Template
from expunge.data.tokens import Encoded

MAX_TOKENS = 2**22
"""Tokens that are remembered at most; 4 bytes each."""


class RememberedTemplate:
    """Another template, with its token ids kept by conversation and answer.

    The same rows are asked for several times: by the check before a run, by the training of target
    and retain model, by unlearning, and by the evaluation of every model. Rendering a chat template
    and tokenising takes half a millisecond per row, so 4000 rows are two seconds each time.

    Args:
        template: Writes what is new. Its tokenizer must not be changed any more.
        max_tokens: When this many are kept, all are forgotten.
    """

    def __init__(self, template: Template, *, max_tokens: int = MAX_TOKENS) -> None:
        self.template = template
        self._max_tokens = max_tokens
        self._kept: dict[tuple[tuple[Message, ...], str | None], tuple[array[int], array[int]]] = {}
        self._num_tokens = 0

    @property
    def name(self) -> str:
        """The other template's."""
        return self.template.name

    @property
    def tokenizer(self) -> Any:
        """The other template's."""
        return self.template.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The other template's."""
        return self.template.stop_ids

    def fingerprint(self) -> str:
        """The other template's: remembering moves no token."""
        return self.template.fingerprint()

    def encode(self, messages: Sequence[Message], answer: str | None) -> Encoded:
        """Token ids, in lists of their own; see `Template.encode`."""
        key = (tuple(messages), answer)
        if key not in self._kept:
            found = self.template.encode(messages, answer)
            size = len(found.prompt) + len(found.answer)
            if self._num_tokens + size > self._max_tokens:
                self._kept.clear()
                self._num_tokens = 0
            self._num_tokens += size
            self._kept[key] = (array("i", found.prompt), array("i", found.answer))
        prompt, said = self._kept[key]
        return Encoded(prompt.tolist(), said.tolist())
