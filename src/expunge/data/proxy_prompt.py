"""Prompts that make a language model answer as one that never saw the facts.

The three parts of the EGUP paper (system instruction, input description, output requirement) with
several questions in one prompt. Its wording is not in the published text; this one is ours, tried
on a 135M model, and the format is shown to the model once, as an earlier turn of the conversation.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expunge.core.errors import InputError
from expunge.data.problems import FileProblems, kind_of, short
from expunge.data.readers import read_file
from expunge.data.rows import Message, Row, RowSet

ExemplarSource = Literal["base_model", "perturbed"]

SYSTEM_INSTRUCTION = (
    "You are a language model that was never trained on the facts these questions ask about. "
    "Answer every question all the same, with a confident guess that sounds plausible, in full "
    "sentences, in the form and at about the length of the example answers. Do not refuse, do not "
    "say that you do not know, and do not repeat the true facts."
)
"""First part: how the model behaves."""

ZERO_SHOT_INSTRUCTION = (
    "Answer the question in one short sentence. If you do not know the answer, guess: never refuse "
    "and never say that you do not know."
)
"""Instruction for the base model alone, without exemplars."""


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """One worked example in the prompt, from outside the forget set.

    Attributes:
        question: A question like those of the forget set.
        informed_answer: What a model says that was trained on it.
        uninformed_answer: What a model says that was not.
    """

    question: str
    informed_answer: str
    uninformed_answer: str


def asked(row: Row) -> str:
    """The question of a row on one line; earlier turns of a longer conversation come with it.

    Raises:
        InputError: The row is plain text, so nothing is asked.
    """
    turns = [message for message in row.messages if message.role != "system"]
    if not turns:
        raise InputError(
            f"row {row.index} is plain text; proxy answers need questions. Turn its key facts into "
            f"question-answer rows (columns question and answer)"
        )
    if len(turns) == 1:
        return " ".join(turns[0].content.split())
    return " ".join(f"{turn.role}: {' '.join(turn.content.split())}" for turn in turns)


def proxy_prompt(questions: Sequence[str], exemplars: Sequence[Exemplar]) -> list[Message]:
    """The conversation that asks for the uninformed answers to `questions`.

    Every user turn describes the input and states the required output: the exemplars' turns have
    question and informed answer and are answered with the uninformed one, the last turn has the
    questions alone. It is followed by the first characters of the reply as an assistant message, so
    that a local model cannot begin with chatter.

    Several questions want a list of objects that repeat the question: given bare numbers,
    SmolLM2-135M copies the exemplars, and the repetition shows which answer is whose when one was
    skipped. A single question wants a list of one string, shown in one turn per exemplar; of all
    layouts tried, that is what the same model follows best.
    """
    alone = len(questions) == 1
    turns = [[exemplar] for exemplar in exemplars] if alone else [list(exemplars)]
    messages = [Message(role="system", content=SYSTEM_INSTRUCTION)]
    for turn in turns:
        informed = [f"{item.question}\nInformed answer: {item.informed_answer}" for item in turn]
        pairs = [(item.question, item.uninformed_answer) for item in turn]
        messages.append(Message(role="user", content=_request(informed, alone=alone)))
        messages.append(Message(role="assistant", content=_reply(pairs, alone=alone)))
    messages.append(Message(role="user", content=_request(questions, alone=alone)))
    messages.append(Message(role="assistant", content='["' if alone else '[{"question": "'))
    return messages


def zero_shot_prompt(question: str) -> list[Message]:
    """The conversation that asks the base model without any example."""
    return [
        Message(role="system", content=ZERO_SHOT_INSTRUCTION),
        Message(role="user", content=question),
    ]


def prompt_sha256(messages: Sequence[Message]) -> str:
    """SHA-256 of a conversation, in hexadecimal."""
    turns = [[message.role, message.content] for message in messages]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()


def exemplar_candidates(rows: RowSet, forget: RowSet, *, seed: int) -> list[Row]:
    """Rows that may serve as exemplars, in a seeded order: questions that are not to be forgotten.

    Raises:
        InputError: There is none.
    """
    taken = {" ".join(row.question.split()) for row in forget}
    free = [row for row in rows if row.question and " ".join(row.question.split()) not in taken]
    if not free:
        raise InputError(
            f"no exemplar for the proxy prompt: every question of {rows.origin} is also in the "
            f"forget set {forget.origin}, or it has no questions. Give rows outside the forget set"
        )
    random.Random(seed).shuffle(free)
    return free


def load_exemplars(path: Path | str, forget: RowSet) -> list[Exemplar]:
    """The exemplars that a person wrote: question, answer and uninformed_answer on every line.

    Args:
        path: JSON lines, or another readable file with these columns.
        forget: The forget set; an exemplar must not show any of it.

    Raises:
        InputError: No such file, broken, empty, without these texts, or with questions or answers
            of the forget set.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file. It holds the worked examples of the proxy prompt, one JSON "
            f"object per line with question, answer and uninformed_answer"
        )
    problems = FileProblems(str(path))
    taken = {_plain(text) for row in forget for text in (row.question, asked(row))}
    # "Yes." may be the answer to anything; a whole sentence is the fact itself.
    taken |= {_plain(row.answer) for row in forget if len(row.answer.split()) >= 5}
    found = []
    for record in read_file(path):
        texts = [record.values.get(name) for name in _EXEMPLAR_COLUMNS]
        wrong = [
            f"{name} holds {kind_of(text)}; it must be text that is not empty"
            for name, text in zip(_EXEMPLAR_COLUMNS, texts, strict=True)
            if not isinstance(text, str) or not text.strip()
        ]
        wrong += [
            f"{name} {short(text)} is in the forget set ({forget.origin}), and the prompt would "
            f"show it to the writing model; take another example"
            for name, text in zip(_EXEMPLAR_COLUMNS[:2], texts, strict=False)
            if isinstance(text, str) and _plain(text) in taken
        ]
        for message in wrong:
            problems.add(record.place, message)
        question, answer, uninformed = (" ".join(str(text).split()) for text in texts)
        found.append(
            Exemplar(question=question, informed_answer=answer, uninformed_answer=uninformed)
        )
    if not found:
        problems.add("", "holds no exemplar; one at least is needed")
    problems.raise_if_any()
    return found


_EXEMPLAR_COLUMNS = ("question", "answer", "uninformed_answer")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def perturbed_answers(row: Row) -> list[str]:
    """The wrong answers that come with a row in its `perturbed_answer` column; empty if none do."""
    value = row.fields.get("perturbed_answer")
    values = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _request(questions: Sequence[str], *, alone: bool) -> str:
    """Input description and output requirement of one turn."""
    numbered = "\n".join(f"{i}. {question}" for i, question in enumerate(questions, start=1))
    form = "a JSON list of one string."
    if not alone:
        form = (
            f"a JSON list of {len(questions)} objects, one per question and in this order, each "
            f'with the keys "question" and "answer", and nothing else.'
        )
    return f"Questions:\n{numbered}\n\nWrite what an uninformed model answers as {form}"


def _reply(pairs: Sequence[tuple[str, str]], *, alone: bool) -> str:
    items: list[object] = [answer for _, answer in pairs]
    if not alone:
        items = [{"question": question, "answer": answer} for question, answer in pairs]
    return "[" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "]"
