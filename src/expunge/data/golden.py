"""Row construction checked against vectors made by the released code (`expunge verify golden`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from expunge.data.chunks import chunk_text, open_unlearning_chunks
from expunge.data.problems import short
from expunge.data.published import (
    PublishedRow,
    open_unlearning_chat_row,
    open_unlearning_text_row,
    published_row,
)
from expunge.data.rows import Message
from expunge.data.templates import PlainTemplate, plain_template


class ToyTokenizer:
    """One token per character: 3 + its place in the alphabet, unknown 0, BOS 1, EOS = padding 2.

    Args:
        alphabet: The characters that have a token.
    """

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.bos_token_id = 1
        self.eos_token_id = 2
        self.pad_token_id = 2

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Ids of the characters; BOS first if special tokens are asked for."""
        ids = [3 + self.alphabet.find(character) for character in text]
        ids = [0 if i == 2 else i for i in ids]  # find() gives -1 for an unknown character
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    def decode(self, token_ids: Sequence[int]) -> str:
        """The characters; special tokens give nothing."""
        return "".join(self.alphabet[i - 3] for i in token_ids if i > 2)


def check_data_case(case: Mapping[str, Any], header: Mapping[str, Any]) -> list[str] | None:
    """Differences between our construction and a golden case, one line for each value.

    Of `knowmem_prompt` the prompt is checked here; its ROUGE values belong to the metrics.

    Args:
        case: A case of `data_format.json`.
        header: That file's header; gives the alphabet.

    Returns:
        An empty list if all agrees, None for a group that is not about row construction.
    """
    check = _CHECKS.get(str(case.get("group")))
    if check is None:
        return None
    return check(case, ToyTokenizer(header["ALPHABET"]))


def _compare(expected: Mapping[str, Any], came: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {short(value)} instead of {short(expected[name])}"
        for name, value in came.items()
        if value != expected[name]
    ]


def _compare_row(expected: Mapping[str, Any], row: PublishedRow) -> list[str]:
    return _compare(expected, row._asdict())


def _check_tofu_row(case: Mapping[str, Any], tokenizer: ToyTokenizer) -> list[str]:
    tags = case["template"]
    row = published_row(
        tokenizer,
        case["question"],
        case["answer"],
        question_start=tags["question_start_tag"],
        question_end=tags["question_end_tag"],
        answer_tag=tags["answer_tag"],
        max_length=case["max_length"],
        mask=case.get("mask", True),
    )
    return _compare_row(case, row)


def _check_chat(case: Mapping[str, Any], tokenizer: ToyTokenizer) -> list[str] | None:
    tags = case["template"]
    if tags.get("apply_chat_template"):
        return None
    template = plain_template(
        tokenizer,
        question_start=tags["user_start_tag"],
        question_end=tags["user_end_tag"],
        answer_start=tags["asst_start_tag"],
        answer_lead="",
        turn_end=tags["asst_end_tag"],
    )
    row = open_unlearning_chat_row(
        template, case["prompts"], case["responses"], generate=case["predict_with_generate"]
    )
    return _compare_row(case, row)


def _check_completion(case: Mapping[str, Any], tokenizer: ToyTokenizer) -> list[str]:
    row = open_unlearning_text_row(
        tokenizer,
        case["text"],
        prefix=case["prefix"],
        max_length=case["max_length"],
        insert_space=case["insert_space"],
        generate=case["predict_with_generate"],
    )
    return _compare_row(case, row)


def _check_pretraining(case: Mapping[str, Any], tokenizer: ToyTokenizer) -> list[str]:
    texts, length = case["texts"], case["max_length"]
    chunks = open_unlearning_chunks(texts, tokenizer, length)
    differences = _compare(case, {"chunks": chunks})
    pieces = chunk_text(texts, tokenizer, max_length=length, form="open_unlearning")
    rows = [open_unlearning_text_row(tokenizer, chunk, max_length=length) for chunk in chunks]
    for i, (item, row, piece) in enumerate(zip(case["items"], rows, pieces, strict=True)):
        found = _compare_row(item, row) + _compare(item, {"input_ids": piece})
        differences += [f"items[{i}].{difference}" for difference in found]
    return differences


def _check_muse(case: Mapping[str, Any], tokenizer: ToyTokenizer) -> list[str]:
    pieces = chunk_text([case["text"]], tokenizer, max_length=case["max_len"], form="muse")
    return _compare(case, {"input_ids": pieces})


def _check_knowmem(case: Mapping[str, Any], tokenizer: ToyTokenizer) -> list[str]:
    turns = []
    for question, answer in case["icl"]:
        turns.append(Message(role="user", content=question))
        turns.append(Message(role="assistant", content=answer))
    turns.append(Message(role="user", content=case["question"]))
    template: PlainTemplate = plain_template(tokenizer, answer_start="Answer: ", answer_lead="")
    return _compare(case["history"][0], {"prompt": template.prompt_text(turns)})


_CHECKS: dict[str, Callable[[Mapping[str, Any], ToyTokenizer], list[str] | None]] = {
    "qa_to_tensors": _check_tofu_row,
    "chat_instance": _check_chat,
    "completion_instance": _check_completion,
    "pretraining_chunks": _check_pretraining,
    "muse_raw_chunks": _check_muse,
    "knowmem_prompt": _check_knowmem,
}
