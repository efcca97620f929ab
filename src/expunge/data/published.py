"""Training rows exactly as released code builds them, for comparison with published runs.

Our own rows (`encode.py`) carry the same labels wherever a token does not cross the border between
prompt and answer; these functions keep the released code's ways there, and its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from expunge.data.rows import Message
from expunge.data.templates import PlainTemplate
from expunge.data.tokens import Tokenizer

IGNORE = -100


class PublishedRow(NamedTuple):
    """One row; labels are -100 where a token does not count."""

    input_ids: list[int]
    labels: list[int]
    attention_mask: list[int]


def published_row(
    tokenizer: Tokenizer,
    question: str,
    answer: str,
    *,
    question_start: str,
    question_end: str,
    answer_tag: str,
    max_length: int,
    mask: bool = True,
) -> PublishedRow:
    """A row of TOFU, NPO and closer-look: truncated and padded with EOS to `max_length`.

    The first padding token keeps a label and is not attended; a row that is exactly full has no EOS
    label. The answer tag counts as answer.

    Args:
        tokenizer: Adds its beginning-of-sequence token.
        question: The question.
        answer: The answer.
        question_start: Text before the question.
        question_end: Text after the question.
        answer_tag: Text before the answer.
        max_length: Tokens of the row, padding included: 500 in training (300 for closer-look's
            real-world data), 200 in evaluation.
        mask: False is closer-look's option for ME+GD: every position is labelled, the prompt and
            the padding too.
    """
    prompt = question_start + question + question_end
    ids = _ids(tokenizer, prompt + answer_tag + answer)[:max_length]
    missing = max_length - len(ids)
    end = tokenizer.eos_token_id
    assert end is not None
    padded = ids + [end] * missing
    attention_mask = [1] * len(ids) + [0] * missing
    if not mask:
        return PublishedRow(padded, list(padded), attention_mask)
    labels = (ids + [end] + [IGNORE] * (missing - 1))[:max_length]
    num_prompt = min(len(_ids(tokenizer, prompt)), max_length)
    labels[:num_prompt] = [IGNORE] * num_prompt
    return PublishedRow(padded, labels, attention_mask)


def open_unlearning_chat_row(
    template: PlainTemplate,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    generate: bool = False,
) -> PublishedRow:
    """A row of open-unlearning's `preprocess_chat_instance` with tags instead of a chat template.

    Args:
        template: Gives tags and tokenizer.
        prompts: Questions; all but the last are examples.
        responses: Answers to all of them.
        generate: The form for generation: the prompt as input, the unmasked conversation as labels.
    """
    turns: list[Message] = []
    for question, answer in zip(prompts, responses, strict=True):
        turns.append(Message(role="user", content=question))
        turns.append(Message(role="assistant", content=answer))
    text = template.prompt_text(turns[:-1])
    prompt = _ids(template.tokenizer, text)
    full = _ids(template.tokenizer, text + responses[-1])
    end = template.tokenizer.eos_token_id
    if end is not None and full[-1] != end:
        full.append(end)
    if generate:
        return PublishedRow(prompt, full, [1] * len(prompt))
    labels = [IGNORE] * len(prompt) + full[len(prompt) :]
    return PublishedRow(full, labels, [1] * len(full))


def open_unlearning_text_row(
    tokenizer: Tokenizer,
    text: str,
    *,
    prefix: str = "",
    max_length: int,
    insert_space: bool = False,
    generate: bool = False,
) -> PublishedRow:
    """A row of open-unlearning's `preprocess_pretraining_instance`.

    Args:
        tokenizer: Adds its beginning-of-sequence token, which is masked with the prefix.
        text: The labelled text.
        prefix: Text before it, masked.
        max_length: Tokens after the prefix at most.
        insert_space: A space stands between prefix and text.
        generate: The form for generation: the prefix alone as input, labels as they are.
    """
    start = _ids(tokenizer, prefix)
    full = _ids(tokenizer, prefix + (" " if insert_space else "") + text)
    full = full[: len(start) + max_length]
    labels = [IGNORE] * len(start) + full[len(start) :]
    ids = start if generate else full
    return PublishedRow(ids, labels, [1] * len(ids))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])
