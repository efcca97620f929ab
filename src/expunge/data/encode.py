"""Rows to token ids, with the number of prompt tokens that decides which of them carry labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from expunge.core.errors import InputError, did_you_mean
from expunge.data.rows import Row
from expunge.data.templates import Template

OnTooLong = Literal["error", "truncate", "drop"]
"""What to do with rows longer than `max_length`: refuse all, keep the beginning, leave them out."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row as tokens.

    Attributes:
        index: Position of the row in its set; of the piece, for plain text that was cut.
        input_ids: Prompt and answer.
        num_prompt: Tokens of the prompt. All behind them carry labels, so no mask is ever guessed.
    """

    index: int
    input_ids: tuple[int, ...]
    num_prompt: int

    @property
    def num_labels(self) -> int:
        """Labels that a model can predict; nothing predicts the very first token."""
        return max(0, len(self.input_ids) - max(self.num_prompt, 1))


def encode_rows(
    rows: Sequence[Row],
    template: Template,
    *,
    max_length: int,
    on_too_long: OnTooLong = "error",
) -> list[Example]:
    """One example for each row, with the row's own answer; see `encode_answers`."""
    answers = [row.answer for row in rows]
    return encode_answers(rows, answers, template, max_length=max_length, on_too_long=on_too_long)


def encode_answers(
    rows: Sequence[Row],
    answers: Sequence[str],
    template: Template,
    *,
    max_length: int,
    on_too_long: OnTooLong = "error",
) -> list[Example]:
    """The conversations of `rows` with other answers: rejections, proxies, paraphrases.

    Args:
        rows: Give the prompts and the indices.
        answers: One for each row.
        template: Writes them.
        max_length: Tokens of an example at most.
        on_too_long: What to do with longer rows. Truncation keeps the beginning, so the end of the
            answer and its end token are lost; a row whose prompt alone fills `max_length` has no
            label left and is dropped. Dropped rows are counted in a logged warning.

    Returns:
        Examples in the order of the rows; `index` is that of the row.

    Raises:
        InputError: Rows are too long (for "error"), an answer gives no label, or nothing is left.
    """
    if on_too_long not in get_args(OnTooLong):
        possible = did_you_mean(str(on_too_long), get_args(OnTooLong))
        raise InputError(f"on_too_long is {on_too_long!r}. {possible}")
    tally = _Tally(max_length=max_length, num_rows=len(rows))
    examples = []
    for row, answer in zip(rows, answers, strict=True):
        prompt, said = template.encode(row.messages, answer)
        ids = (*prompt, *said)
        if len(ids) > max_length:
            tally.too_long[row.index] = len(ids)
            if on_too_long != "truncate":
                continue
        example = Example(index=row.index, input_ids=ids[:max_length], num_prompt=len(prompt))
        if example.num_labels:
            examples.append(example)
        else:
            tally.unlabelled.append(row.index)
    tally.settle(on_too_long, is_text=any(row.is_text for row in rows), kept=len(examples))
    return examples


@dataclass(kw_only=True)
class _Tally:
    """Rows that could not be encoded as they are.

    Attributes:
        max_length: The limit.
        num_rows: All rows.
        too_long: Length of each row over the limit, by index.
        unlabelled: Rows without a label, after truncation if there was any.
    """

    max_length: int
    num_rows: int
    too_long: dict[int, int] = field(default_factory=dict)
    unlabelled: list[int] = field(default_factory=list)

    def settle(self, on_too_long: OnTooLong, *, is_text: bool, kept: int) -> None:
        """Raise for what must not pass, log what was left out."""
        if self.too_long and on_too_long == "error":
            raise InputError(self._too_long_message(is_text=is_text))
        hopeless = [index for index in self.unlabelled if index not in self.too_long]
        if hopeless:
            raise InputError(
                f"{len(hopeless)} of {self.num_rows} rows have no token to learn in their answer; "
                f"the first is row {hopeless[0]}. Remove or complete them"
            )
        dropped = self.num_rows - kept
        if self.num_rows and not kept:
            raise InputError(
                f"none of {self.num_rows} rows fits into max_length={self.max_length} tokens; "
                f"the shortest has {min(self.too_long.values())}. Raise max_length"
            )
        if dropped:
            why = "their prompt leaves no room for an answer" if self.unlabelled else "too long"
            _log.warning(
                "%d of %d rows are left out: %s with max_length=%d",
                *(dropped, self.num_rows, why, self.max_length),
            )

    def _too_long_message(self, *, is_text: bool) -> str:
        worst, longest = max(self.too_long.items(), key=lambda item: item[1])
        advice = "" if not is_text else ", cut plain text into pieces with text_form"
        return (
            f"{len(self.too_long)} of {self.num_rows} rows are longer than "
            f"max_length={self.max_length} tokens; the longest, row {worst}, has {longest}. Raise "
            f"max_length to {longest} if the model's context allows it{advice}, or set on_too_long "
            f"to truncate (keeps the beginning) or drop"
        )
