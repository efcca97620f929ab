"""Token ids of text, without anything a tokenizer adds unasked, and across a prompt's border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from expunge.core.errors import InputError

VERSION = 1  # of the token layout; part of every template's fingerprint


class Tokenizer(Protocol):
    """What plain encoding needs of a tokenizer; every transformers tokenizer has it."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        """A mapping with `input_ids`, one list of ids."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids."""


class Encoded(NamedTuple):
    """Token ids of a prompt and of the answer that follows it.

    Attributes:
        prompt: What the model is given, in training and for generation alike.
        answer: What it is to say, ending with the end-of-turn token; empty without an answer.
    """

    prompt: list[int]
    answer: list[int]


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of the text alone: no beginning- or end-of-sequence token is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def leading_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text when left to itself: [BOS], or nothing."""
    bare = text_ids(tokenizer, "a")
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return full[:1] if full and full[0] == tokenizer.bos_token_id else []


def ids_after(
    tokenizer: Tokenizer, before: str, text: str, *, before_ids: Sequence[int]
) -> list[int]:
    """Ids of `text` where it follows `before`, such that the ids of `before` stay what they are.

    The two are tokenised together as long as that leaves `before` alone, since a tokenizer may
    treat the start of a string in its own way (SentencePiece puts a space there). If a token would
    cross the border, `text` is tokenised by itself: the prompt seen in training and the prompt
    given for generation must be the same tokens.

    Args:
        tokenizer: The tokenizer.
        before: Text in front.
        text: The text whose ids are asked for.
        before_ids: Ids of `before` alone.
    """
    if not text:
        return []
    joint = text_ids(tokenizer, before + text)
    if joint[: len(before_ids)] == list(before_ids):
        return joint[len(before_ids) :]
    # A line break in front keeps SentencePiece from adding a space; then it is taken off again.
    anchor = text_ids(tokenizer, "\n")
    anchored = text_ids(tokenizer, "\n" + text)
    if anchor and anchored[: len(anchor)] == anchor:
        return anchored[len(anchor) :]
    return text_ids(tokenizer, text)


def encode_text_row(tokenizer: Tokenizer, text: str | None) -> Encoded:
    """Plain text: BOS is the prompt if the tokenizer adds one, and all else is labelled."""
    return Encoded(leading_ids(tokenizer), [] if text is None else text_ids(tokenizer, text))


def end_id(tokenizer: Tokenizer) -> int:
    """Id of the end-of-sequence token.

    Raises:
        InputError: The tokenizer has none.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError(
            "the tokenizer has no end-of-sequence token, so an answer has no end; set its eos_token"
        )
    return end
