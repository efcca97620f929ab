"""The prompt that makes a language model answer with other facts (AltPO, arXiv:2409.13474)."""

from __future__ import annotations

import re

from expunge.data.proxy_parse import clean_answer, whole_sentences
from expunge.data.proxy_prompt import asked
from expunge.data.rows import Message, Row

INSTRUCTION = (
    "Now write another answer to the question, one that changes the facts in the answer above to "
    "others which are just as plausible. Keep what the question says, and keep the form and the "
    "length of the answer. Write the new answer only."
)
"""What is asked for; the wording is ours."""

STOP = "Question:"
"""Where an alternate ends at the latest: a model that goes on with a question of its own."""

_LABEL = re.compile(
    r"^\W*(?:(?:the|an|another|new) )*(?:alternat(?:e|ive)|new|changed|another)"
    r"(?: plausible)? answer\W*?:[\s*_]*",
    re.IGNORECASE,
)
_START = "Alternate answer:"


def alternate_prompt(row: Row) -> list[Message]:
    """The conversation that asks for another answer to the question of a row.

    It ends with the beginning of the reply as an assistant message, as in the paper.

    Raises:
        InputError: The row is plain text, so nothing is asked.
    """
    answer = " ".join(row.answer.split())
    text = f"{STOP} {asked(row)}\nAnswer: {answer}\n{INSTRUCTION}"
    return [Message(role="user", content=text), Message(role="assistant", content=_START)]


def read_alternate(text: str) -> str:
    """The alternate in a reply: up to a new question, without a label or an unfinished sentence."""
    text = text.strip().removeprefix(_START)
    text = _LABEL.sub("", text.partition(STOP)[0].strip())
    return clean_answer(whole_sentences(text) or text)
