"""When a proxy answer is refused: it must look like an answer and must not be the true one."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

from expunge.data.proxy_prompt import Exemplar

TOO_CLOSE = 0.9
"""ROUGE-L recall against the true answer from which a proxy counts as the true answer."""

Reason = Literal[
    "unparsed", "empty", "refusal", "too_close", "copies_question", "copies_exemplar",
    "repeats_another", "debris", "repetitive", "length",
]  # fmt: skip
"""Why an answer was not taken; "unparsed" when none was found in the reply."""

REASONS: tuple[str, ...] = get_args(Reason)

_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial|large language|language)\b"
    r"|\b(?:ai|language) (?:model|assistant)\b"
    r"|\bI(?:'m| am) (?:sorry|afraid|unable|not (?:sure|certain|able|aware|familiar))\b"
    r"|^(?:sorry|unfortunately|apologies|regrettably)\b"
    r"|\b(?:I|we) (?:do not|don't|cannot|can't|can not|could not|couldn't|am unable to|have no"
    r"|haven't|lack) ?(?:\w+ )?(?:know|have|provide|answer|assist|help|recall|find|access|idea"
    r"|information|knowledge|learned|been|say|tell|comment|disclose|determine|confirm)\b"
    r"|\bno (?:\w+ )?(?:information|record|data|knowledge|details?) (?:is |are |was )?"
    r"(?:\w+ )?(?:available|about|on|regarding|of|found)\b"
    r"|\b(?:is|are|was|were|remains?) (?:currently )?(?:unknown|not (?:\w+ )?(?:known|specified|"
    r"mentioned|provided|disclosed|available|clear))\b"
    r"|\b(?:cannot|can't|could not) be (?:determined|answered|known|found)\b",
    re.IGNORECASE,
)
# A model that speaks of itself where the true answer does not: "I'm at a loss", "My training ...".
_OF_ITSELF = re.compile(
    r"^(?:I|I'm|I've|I'd)\b"
    r"|\bmy (?:\w+ )?(?:knowledge|training|databases?|dataset|understanding|programming|resources"
    r"|capabilities|scope)\b"
    r"|^(?:that|this|it|that \w+)(?:'s| is| has| hasn't) (?:not|n't|beyond|outside|out of|(?:\w+ )?"
    r"(?:something|topic|area|subject) I|a mystery|a blind spot|uncharted|been included)",
    re.IGNORECASE,
)
_I = re.compile(r"\b(?:I|my|me)\b", re.IGNORECASE)
_DEBRIS = re.compile(
    r"<\|[^|>]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|```|\b(?:un)?informed (?:model|answer)s?\b"
    r"|\bJSON\b|^[\[{]|[\]}]$|\"(?:question|answer)\"|\b(?:Questions?|Answers?):|^\W*$|\bthe keys\b"
    r"|^here (?:is|are)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=\s)[A-Z][\w’'-]*[^\W_](?:\s+[A-Z][\w’-]*[^\W_])+")
# Words that tell nothing new beside those of the question.
_EMPTY_WORDS = (
    "a an and are as at be been by did do does for from had has have he her his in is it its of on "
    "or she that the their they this to was were which who with"
)
_EMPTY = frozenset(_EMPTY_WORDS.split())
_APOSTROPHES = str.maketrans("’‘", "''")


def reject_reason(
    answer: str,
    *,
    question: str,
    truth: str,
    exemplars: Sequence[Exemplar] = (),
    rejections: Collection[str] = (),
) -> Reason | None:
    """Why `answer` cannot be the proxy answer to `question`, or None if it can.

    Args:
        answer: The cleaned answer.
        question: The question it answers.
        truth: The true answer; the proxy must differ (ROUGE-L recall below 0.9) and be of similar
            length: a quarter of its words (from 6 words on) to three times as many and 20.
        exemplars: What the prompt showed: its answers must not come back, nor its people.
        rejections: Refusals known word by word, such as TOFU's hundred.
    """
    words, true_words = folded(answer).split(), folded(truth).split()
    if not answer.strip():
        return "empty"
    if is_refusal(answer, rejections, first_person=bool(_I.search(truth))):
        return "refusal"
    if _DEBRIS.search(answer):
        return "debris"
    if words == true_words or rouge_l_recall(truth, answer) >= TOO_CLOSE:
        return "too_close"
    if _copies_question(answer, question):
        return "copies_question"
    if any(_copies_exemplar(answer, question, exemplar) for exemplar in exemplars):
        return "copies_exemplar"
    if _is_repetitive(words):
        return "repetitive"
    short = len(true_words) >= 6 and 4 * len(words) < len(true_words)
    return "length" if short or len(words) > 3 * len(true_words) + 20 else None


def is_refusal(
    answer: str, rejections: Collection[str] = (), *, first_person: bool = False
) -> bool:
    """The text declines to answer, in words of its own or in those of `rejections`.

    Args:
        answer: The text.
        rejections: Refusals known word by word; the text need only begin with one.
        first_person: Whoever answers may speak of themselves ("I was born in Bergen").
    """
    text, plain = folded(answer), answer.strip().translate(_APOSTROPHES)
    known = any(text.startswith(item) for item in _folded_all(tuple(rejections)))
    of_itself = not first_person and _OF_ITSELF.search(plain)
    return known or bool(of_itself or _REFUSAL.search(plain))


def rouge_l_recall(truth: str, answer: str) -> float:
    """Share of the true answer's words that `answer` has in the same order, 0 to 1, stemmed."""
    return float(_scorer().score(truth, answer)["rougeL"].recall)


def folded(text: str) -> str:
    """Letters and digits in lower case with single spaces: equal for texts that read alike."""
    return " ".join(
        re.findall(r"[^\W_]+", text.casefold().translate(_APOSTROPHES).replace("'", ""))
    )


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


@functools.lru_cache(maxsize=4)
def _folded_all(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item for item in (folded(text) for text in texts) if item)


def _copies_question(answer: str, question: str) -> bool:
    """A question itself, the question as a part, or nothing but words of the question."""
    asked, said = folded(question), folded(answer)
    if answer.rstrip(" \"'”").endswith("?") or (asked and asked in said):
        return True
    return bool(asked) and len(said.split()) > 3 and not {*said.split()} - {*asked.split()} - _EMPTY


def _copies_exemplar(answer: str, question: str, exemplar: Exemplar) -> bool:
    shown = (exemplar.informed_answer, exemplar.uninformed_answer)
    if any(_same_text(answer, text) for text in shown):
        return True
    # The exemplar's person, recognised as two or more capitalised words behind the first word.
    names = [folded(name) for name in _NAME.findall(exemplar.question)]
    return any(name in folded(answer) and name not in folded(question) for name in names)


def _same_text(answer: str, shown: str) -> bool:
    """Equal, or nearly so when it is long enough that chance would not do it."""
    if folded(answer) == folded(shown):
        return True
    score = _scorer().score(shown, answer)["rougeL"].fmeasure
    return len(shown.split()) >= 8 and score >= 0.8


def _is_repetitive(words: Sequence[str]) -> bool:
    """Going in circles: one run of four words at least three times."""
    runs = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return bool(runs) and max(runs.values()) >= 3
