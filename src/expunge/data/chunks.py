"""Plain text cut into pieces of equal length, in the published ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from expunge.core.errors import InputError, did_you_mean
from expunge.data.encode import Example
from expunge.data.rows import Row
from expunge.data.tokens import Tokenizer, leading_ids, text_ids

TextForm = Literal["muse", "short_last", "separate", "open_unlearning"]
"""How plain text is cut into pieces; see `chunk_text`."""

_BETWEEN = "\n\n"  # open-unlearning joins texts by a blank line; MUSE has a single file


def encode_text(
    rows: Sequence[Row], tokenizer: Tokenizer, *, max_length: int, form: TextForm = "muse"
) -> list[Example]:
    """The text of all rows as pieces; an example's index is that of the piece, not of a row.

    Args:
        rows: Plain-text rows.
        tokenizer: The tokenizer.
        max_length: Tokens of a piece.
        form: See `chunk_text`.

    Raises:
        InputError: Unknown form, rows that are no plain text, or too little text to learn from.
    """
    spoken = [row.index for row in rows if not row.is_text]
    if spoken:
        raise InputError(f"row {spoken[0]} is a conversation; only plain text is cut into pieces")
    pieces = chunk_text([row.answer for row in rows], tokenizer, max_length=max_length, form=form)
    # open-unlearning masks the beginning-of-sequence token; no token predicts it either way, but
    # it counts where labels are counted before the shift.
    num_prompt = len(leading_ids(tokenizer)) if form == "open_unlearning" else 0
    examples = [
        Example(index=i, input_ids=tuple(piece), num_prompt=num_prompt)
        for i, piece in enumerate(pieces)
    ]
    if not any(example.num_labels for example in examples):
        raise InputError("the text is too short to learn from: it has a single token")
    return examples


def chunk_text(
    texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int, form: TextForm = "muse"
) -> list[list[int]]:
    """Token ids of the pieces of a text.

    Args:
        texts: One text or several; joined by blank lines, except in form "separate".
        tokenizer: Its beginning-of-sequence token is put before every piece, if it adds one.
        max_length: Tokens of a piece.
        form: `muse` (MUSE, muse_bench 54719c5): pieces of `max_length` tokens with the beginning
            token, the last one filled up with the beginning of the first (a single piece stays
            short). `short_last`: the same, the last piece stays short. `separate`: each text by
            itself, last pieces stay short. `open_unlearning` (d3d7cf9): pieces of `max_length`
            tokens are decoded and tokenised again behind the beginning token, so they hold one
            token more; the last stays short.

    Raises:
        InputError: Unknown form, or `max_length` has no room for text.
    """
    if form not in get_args(TextForm):
        raise InputError(f"unknown text form {form!r}. {did_you_mean(form, get_args(TextForm))}")
    lead = leading_ids(tokenizer)
    if max_length < len(lead) + 1:
        raise InputError(f"max_length={max_length} leaves no room for text; raise it")
    if form == "open_unlearning":
        return _open_unlearning(_BETWEEN.join(texts), tokenizer, max_length)
    if form == "separate":
        return [piece for text in texts for piece in _cut(text, tokenizer, lead, max_length)]
    pieces = _cut(_BETWEEN.join(texts), tokenizer, lead, max_length)
    if form == "muse" and len(pieces) > 1:
        pieces[-1] = (pieces[-1] + pieces[0])[:max_length]
    return pieces


def open_unlearning_chunks(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int
) -> list[str]:
    """Pieces of `max_length` tokens as open-unlearning decodes them."""
    ids = text_ids(tokenizer, _BETWEEN.join(texts))
    return [tokenizer.decode(ids[i : i + max_length]) for i in range(0, len(ids), max_length)]


def _cut(text: str, tokenizer: Tokenizer, lead: list[int], max_length: int) -> list[list[int]]:
    ids = text_ids(tokenizer, text)
    step = max_length - len(lead)
    return [lead + ids[i : i + step] for i in range(0, len(ids), step)]


def _open_unlearning(text: str, tokenizer: Tokenizer, max_length: int) -> list[list[int]]:
    lead = leading_ids(tokenizer)
    chunks = open_unlearning_chunks([text], tokenizer, max_length)
    # Tokenised again, a piece can have more tokens than it was cut to.
    return [lead + text_ids(tokenizer, chunk)[:max_length] for chunk in chunks]
