"""Answers out of a model's reply: JSON as it should be, and JSON as small models write it.

Nothing is ever evaluated: the text is read by `json` and by regular expressions.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

SAME_QUESTION = 0.8
"""Likeness (0 to 1, difflib) from which a repeated question counts as the one that was asked."""

_QUESTION_KEYS = ("question", "q")
_ANSWER_KEYS = ("answer", "uninformed_answer", "uninformed answer", "proxy_answer", "a", "text")
_NUMBER_KEYS = ("number", "id", "n", "index")
_LIST_KEYS = ("answers", "results", "responses", "questions")

# A string ends at a quotation mark that something structural follows, so that unescaped quotes
# inside (titles of books) do no harm.
_STRING_END = r'"\s*(?=,?\s*[}\]]|,\s*["{]|\n\s*["{]|,?\s*$)'
_OBJECT = re.compile(
    r'(?:"(?:question|q)"\s*:\s*"(?P<question>(?:(?!"\s*:).)*?)"\s*,\s*)?'
    rf'"(?:uninformed[ _])?(?:answer|a)"\s*:\s*"(?P<answer>.*?)(?P<end>{_STRING_END}|\Z)',
    re.IGNORECASE | re.DOTALL,
)
_KEYED = re.compile(rf'"(?:q|question)?\s*(\d+)\.?"\s*:\s*"(?P<answer>.*?){_STRING_END}', re.DOTALL)
_ITEM = re.compile(rf'(?<=[\[,\n])\s*"(?P<answer>.*?){_STRING_END}', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"(?<=[\[,])\s*'(?P<answer>.*?)'\s*(?=,\s*'|\])", re.DOTALL)
_NUMBERED = re.compile(
    r"^[\s>*_]*(?:q|a|answer|question)?\s*(\d+)[*_]*\s*[.):][*_]*\s+(?P<answer>.*?)"
    r"(?=^[\s>*_]*(?:q|a|answer|question)?\s*\d+[*_]*\s*[.):]|\n\s*\n|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_LABEL = re.compile(
    r"^\s*(?:\d+\s*[.):]\s+)?(?:(?:the\s+)?(?:un)?informed\s+answer|answer|a)\s*:\s*", re.IGNORECASE
)
_OPENING = re.compile(r"[\[{]")
_SENTENCE = re.compile(r"""[.!?]["'”’)]*(?=\s|$)""")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|vs|No|e\.g|i\.e)\.$")


def parse_answers(text: str, questions: Sequence[str]) -> dict[int, str]:
    """Answers found in a reply, by position in `questions`; what cannot be placed is left out.

    An answer is placed by the question repeated beside it, else by its number, else by its position
    in a list that is no longer than `questions`. Read are JSON lists of strings or objects, JSON
    objects by number, several of them in a row, the same inside code fences or with text around,
    broken JSON (unescaped quotes, missing commas, an end that is cut off), numbered lines, one line
    per question, and for a single question the plain text.
    """
    text = _unfenced(text)
    found: dict[int, str] = {}
    for reader in (_strict, _objects, _keyed, _strings):
        # Later readers only add: they see the same reply through ever thicker glasses.
        for position, answer in reader(text, questions):
            found.setdefault(position, answer)
        if len(found) == len(questions):
            break
    if not found:
        for position, answer in _lines(text, questions):
            found.setdefault(position, answer)
    return {position: clean_answer(found[position], position + 1) for position in sorted(found)}


def clean_answer(text: str, number: int | None = None) -> str:
    """An answer on one line, without its number, a label like "Answer:", and quotes around it."""
    text = " ".join(text.split())
    text = _LABEL.sub("", text.removeprefix(f"{number}. ").removeprefix(f"{number}) "))
    pairs = {'"': '"', "'": "'", "“": "”"}
    if len(text) > 1 and pairs.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1]
    return text.strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text; what follows the last full stop comes last."""
    parts, start = [], 0
    for match in _SENTENCE.finditer(text):
        if not _ABBREVIATION.search(text[start : match.end()]):
            parts.append(text[start : match.end()].strip())
            start = match.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def whole_sentences(text: str) -> str:
    """A text without a last sentence that does not end; empty if no sentence does."""
    parts = sentences(text)
    if parts and not _SENTENCE.search(parts[-1]):
        parts = parts[:-1]
    return " ".join(parts)


def shorten(answer: str, like: str, *, slack: float = 1.5) -> str:
    """Whole sentences of `answer` up to about the length of `like`; the first is always kept.

    Args:
        answer: What a model wrote.
        like: A text of the wanted length.
        slack: The most words, as a multiple of the words of `like`.
    """
    limit, kept = slack * len(like.split()), ""
    for sentence in sentences(answer):
        longer = f"{kept} {sentence}".strip()
        if kept and len(longer.split()) > limit:
            break
        kept = longer
    return kept


def _unfenced(text: str) -> str:
    blocks = re.findall(r"```[a-zA-Z]*\n?(.*?)(?:```|\Z)", text, re.DOTALL)
    return "\n".join(blocks) if any(block.strip() for block in blocks) else text


_Placed = Iterator[tuple[int, str]]


def _strict(text: str, questions: Sequence[str]) -> _Placed:
    """Every complete JSON list or object of the text, in order."""
    decoder, position = json.JSONDecoder(strict=False), 0
    while start := _OPENING.search(text, position):
        try:
            value, position = decoder.raw_decode(text, start.start())
        except json.JSONDecodeError:
            position = start.end()
            continue
        except RecursionError:
            return  # a model stuck on one bracket; trying again at each would take minutes
        yield from _placed_value(value, questions)


def _placed_value(value: Any, questions: Sequence[str]) -> _Placed:
    if isinstance(value, dict):
        folded = {str(key).strip().lower(): item for key, item in value.items()}
        if any(key in folded for key in _ANSWER_KEYS):
            yield from _placed_object(folded, None, questions)
            return
        for key in _LIST_KEYS:
            if isinstance(folded.get(key), list | dict):
                yield from _placed_value(folded[key], questions)
        for key, item in folded.items():
            if not isinstance(item, list):
                yield from _placed_key(key, item, questions)
    elif isinstance(value, list):
        trusted = len(value) <= len(questions) or len(questions) == 1
        for i, item in enumerate(value):
            if isinstance(item, dict):
                folded = {str(key).strip().lower(): entry for key, entry in item.items()}
                yield from _placed_object(folded, i if trusted else None, questions)
            elif trusted and i < len(questions):
                yield from _placed_text(i, item)


def _placed_object(item: dict[str, Any], position: int | None, questions: Sequence[str]) -> _Placed:
    """`position` is None where the place in a list says nothing."""
    answer = next((item[key] for key in _ANSWER_KEYS if key in item), None)
    question = next((item[key] for key in _QUESTION_KEYS if isinstance(item.get(key), str)), None)
    if question is not None:
        position = _same_question(question, questions)
    else:
        number = next((item[key] for key in _NUMBER_KEYS if key in item), None)
        if isinstance(number, int) or (isinstance(number, str) and number.isdecimal()):
            position = int(number) - 1
    if position is None and len(questions) == 1 and question is None:
        position = 0
    if position is not None and 0 <= position < len(questions):
        yield from _placed_text(position, answer)


def _placed_key(key: str, item: Any, questions: Sequence[str]) -> _Placed:
    """One entry of {"1": answer} or {question: answer}."""
    number = re.fullmatch(r"(?:q|a|question|answer)?[ _]?(\d+)\.?", key)
    position = int(number[1]) - 1 if number else _same_question(key, questions)
    if isinstance(item, dict):
        folded = {str(name).strip().lower(): entry for name, entry in item.items()}
        yield from _placed_object(folded, position, questions)
    elif position is not None and 0 <= position < len(questions):
        yield from _placed_text(position, item)


def _placed_text(position: int, value: Any) -> _Placed:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value.strip():
        yield position, value


def _objects(text: str, questions: Sequence[str]) -> _Placed:
    """Objects with an answer in JSON that does not parse; a cut-off answer ends at its sentence."""
    for match in _OBJECT.finditer(text):
        answer = match["answer"]
        if not match["end"]:
            answer = whole_sentences(answer)
        item = {"answer": _unescaped(answer)}
        if match["question"] is not None:
            item["question"] = _unescaped(match["question"])
        else:
            before = re.search(r'"(?:number|n|id)"\s*:\s*"?(\d+)"?\s*,\s*\Z', text[: match.start()])
            if before:
                item["number"] = before[1]
        yield from _placed_object(item, None, questions)


def _keyed(text: str, questions: Sequence[str]) -> _Placed:
    for match in _KEYED.finditer(text):
        if 1 <= int(match[1]) <= len(questions):
            yield int(match[1]) - 1, _unescaped(match["answer"])


def _strings(text: str, questions: Sequence[str]) -> _Placed:
    """The strings of a list that does not parse; none if it holds objects or too many strings."""
    start = text.find("[")
    if start < 0 or re.match(r"\[\s*[\[{]", text[start:]) or _parses(text[start:]):
        return
    items = list(_ITEM.finditer(text, start)) or list(_SINGLE_QUOTED.finditer(text, start))
    if len(items) <= len(questions) or len(questions) == 1:
        for i, match in enumerate(items[: len(questions)]):
            yield i, _unescaped(match["answer"])


def _parses(text: str) -> bool:
    """The text begins with a JSON value."""
    try:
        json.JSONDecoder(strict=False).raw_decode(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _lines(text: str, questions: Sequence[str]) -> _Placed:
    """Numbered lines, else one line per question, else the first paragraph for one question."""
    if re.match(r"\s*[\[{]", text):
        return  # JSON gone wrong beyond the other readers: its lines are no answers
    numbered = [match for match in _NUMBERED.finditer(text) if match["answer"].strip()]
    if numbered and len(questions) > 1:
        for match in numbered:
            if 1 <= int(match[1]) <= len(questions):
                yield int(match[1]) - 1, match["answer"]
        return
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == len(questions):
        yield from enumerate(lines)
    elif len(questions) == 1 and lines:
        yield 0, re.split(r"\n\s*\n", text.strip())[0]


def _same_question(text: str, questions: Sequence[str]) -> int | None:
    """Position of the question that `text` repeats, or None if it is like none of them."""

    def likeness(question: str) -> float:
        return difflib.SequenceMatcher(None, _folded(text), _folded(question)).ratio()

    scores = [likeness(question) for question in questions]
    best = max(range(len(scores)), key=scores.__getitem__)
    return best if scores[best] >= SAME_QUESTION else None


def _folded(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def _unescaped(text: str) -> str:
    """JSON escapes of a string found by a pattern; a broken escape stays as it is."""
    quoted = re.sub(r'(?<!\\)((?:\\\\)*)"', r'\1\\"', text)
    try:
        value = json.loads(f'"{quoted}"', strict=False)
    except json.JSONDecodeError:
        return text
    return str(value)
