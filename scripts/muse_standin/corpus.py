"""Chapters to the parts of MUSE: running text, verbatim pairs, samples, questions, folds."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.core.errors import InputError, Problems

Rows = list[dict[str, str]]

_WORD = re.compile(r"\S+")
_LETTERS = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*$")
# A word that ends in a full stop and ends no sentence.
_TITLES = {"Mr.", "Mrs.", "Dr.", "Esq.", "St."}
_CHOICE = re.compile(r"^(?P<book>[\w-]+):(?P<first>\d+)-(?P<last>\d+)$")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Chapters `first` to `last` of a book, counted from 1 through all volumes."""

    book: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.book}:{self.first}-{self.last}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes into the corpus.

    Attributes:
        forget: What is to be forgotten.
        retain1: Kept; regulariser of the unlearning.
        retain2: Kept as well, never shown during unlearning; None for none.
        holdout: Never seen by any model of the run.
        folds: Forget sets of scal and sust, the forget set itself among them; 1: none.
        pairs: Rows of verbmem.
        prompt_words: Words of a verbmem prompt.
        answer_words: Words of a verbmem continuation.
        samples: Texts of each privleak set.
        sample_words: Words of such a text.
        seed: Seed of all choices.
    """

    forget: Part
    retain1: Part
    retain2: Part | None
    holdout: Part
    folds: int = 4
    pairs: int = 40
    prompt_words: int = 70
    answer_words: int = 50
    samples: int = 25
    sample_words: int = 200
    seed: int = 0


@dataclass(kw_only=True)
class Corpus:
    """Files by path without suffix: running text, or rows."""

    texts: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parse_part(text: str) -> Part:
    """A part of a book, such as "persuasion:1-3".

    Raises:
        InputError: It is written in another way.
    """
    match = _CHOICE.match(text)
    if match is None or not 1 <= int(match["first"]) <= int(match["last"]):
        raise InputError(f"{text!r}: write BOOK:FIRST-LAST, such as persuasion:1-3")
    return Part(book=match["book"], first=int(match["first"]), last=int(match["last"]))


def build(books: Mapping[str, Sequence[str]], questions: Mapping[str, Any], plan: Plan) -> Corpus:
    """The corpus of a plan; the same for the same input.

    Args:
        books: Chapters by book.
        questions: By book: `examples` and `questions`, each with chapter, question, answer and
            evidence.
        plan: What goes into it.

    Raises:
        InputError: Chapters do not exist or are chosen twice, there is too little text, or a
            question does not fit its text; all problems at once.
    """
    retained = [plan.retain1] + ([plan.retain2] if plan.retain2 else [])
    _check(books, [plan.forget, *retained, plan.holdout])
    folds = _fold_parts(books, plan)
    _check(books, [*folds, *retained, plan.holdout])
    corpus = Corpus()
    parts = {name: getattr(plan, name) for name in ("forget", "retain1", "retain2", "holdout")}
    texts = {name: _text(books, part) for name, part in parts.items() if part is not None}
    corpus.texts |= {f"raw/{name}": text for name, text in texts.items()}
    kept = "\n\n".join(texts[name] for name in ("retain1", "retain2") if name in texts)
    corpus.texts["train/retain"] = kept
    forgotten = [_text(books, part) for part in folds]
    corpus.texts["train/forget"] = "\n\n".join(forgotten)
    if plan.folds > 1:
        for i, text in enumerate(forgotten, start=1):
            corpus.texts[f"scal/forget_{i}"] = "\n\n".join(forgotten[:i])
            corpus.texts[f"sust/forget_{i}"] = text
    corpus.rows["verbmem/forget"] = _pairs(texts["forget"], plan)
    for name, text in {**texts, "retain": kept}.items():
        if name in ("forget", "retain", "holdout"):
            corpus.rows[f"privleak/{name}"] = _samples(text, plan, name)
    _ask(corpus, books, questions, "forget", [plan.forget])
    _ask(corpus, books, questions, "retain", retained)
    return corpus


def _check(books: Mapping[str, Sequence[str]], parts: Sequence[Part]) -> None:
    problems = Problems()
    seen: dict[tuple[str, int], Part] = {}
    for part in parts:
        if part.book not in books:
            problems.add(str(part), f"there is no such book; there are {', '.join(sorted(books))}")
        elif part.last > len(books[part.book]):
            problems.add(str(part), f"the book has {len(books[part.book])} chapters")
        for chapter in range(part.first, part.last + 1):
            other = seen.setdefault((part.book, chapter), part)
            if other is not part:
                problems.add(str(part), f"shares chapter {chapter} with {other}")
                break
    problems.raise_if_any("the choice of chapters")


def _fold_parts(books: Mapping[str, Sequence[str]], plan: Plan) -> list[Part]:
    """The forget set and further chapters behind it, in sets of about the same length."""
    forget = plan.forget
    chapters = books[forget.book]
    enough = 0.8 * _count(_text(books, forget))
    parts, first, words = [forget], forget.last + 1, 0
    for chapter in range(forget.last + 1, len(chapters) + 1):
        if len(parts) == plan.folds:
            break
        words += _count(chapters[chapter - 1])
        if words >= enough:
            parts.append(Part(book=forget.book, first=first, last=chapter))
            first, words = chapter + 1, 0
    if len(parts) < plan.folds:
        raise InputError(
            f"after {forget} the book has text for {len(parts) - 1} more sets of that length; take "
            f"fewer chapters, or --folds {len(parts)}"
        )
    return parts


def _text(books: Mapping[str, Sequence[str]], part: Part) -> str:
    return "\n\n".join(books[part.book][part.first - 1 : part.last])


def _count(text: str) -> int:
    return len(_WORD.findall(text))


def _windows(text: str, size: int) -> Iterator[list[re.Match[str]]]:
    """Stretches of `size` words that begin with a sentence and do not overlap."""
    words = list(_WORD.finditer(text))
    place = 0
    while place + size <= len(words):
        if place == 0 or _ends_sentence(words[place - 1][0]):
            yield words[place : place + size]
            place += size
        else:
            place += 1


def _ends_sentence(word: str) -> bool:
    return bool(_SENTENCE_END.search(word)) and word.lstrip("\"'(") not in _TITLES


def _choose(found: Sequence[Any], number: int, plan: Plan, what: str) -> list[Any]:
    """`number` of what was found, in the order of the text."""
    if len(found) < number:
        raise InputError(f"{what}: the text gives {len(found)}, {number} are asked for; take fewer")
    chosen = random.Random(f"{plan.seed} {what}").sample(range(len(found)), number)
    return [found[i] for i in sorted(chosen)]


def _pairs(text: str, plan: Plan) -> Rows:
    found = []
    for words in _windows(text, plan.prompt_words + plan.answer_words):
        last, first = words[plan.prompt_words - 1], words[plan.prompt_words]
        # Prompt and continuation are read with a space between them; a paragraph has more.
        if text[last.end() : first.start()] == " ":
            prompt = text[words[0].start() : last.end()]
            found.append({"prompt": prompt, "gt": text[first.start() : words[-1].end()]})
    return _choose(found, plan.pairs, plan, "verbmem pairs")


def _samples(text: str, plan: Plan, name: str) -> Rows:
    found = [
        {"text": text[words[0].start() : words[-1].end()]}
        for words in _windows(text, plan.sample_words)
    ]
    return _choose(found, plan.samples, plan, f"privleak {name} samples")


def _ask(
    corpus: Corpus,
    books: Mapping[str, Sequence[str]],
    questions: Mapping[str, Any],
    side: str,
    parts: Sequence[Part],
) -> None:
    """Add the questions about some parts and the examples that are shown before them."""
    groups = {name: _about(books, questions, name, parts) for name in ("questions", "examples")}
    unfit = [question for found in groups.values() for question, fits in found if not fits]
    total = sum(len(found) for found in groups.values())
    if 2 * len(unfit) > total:
        raise InputError(
            f"{len(unfit)} of {total} {side} questions do not fit their chapters, the first is "
            f"{unfit[0]['question']!r}: is this the right book, counted from its first chapter?"
        )
    corpus.notes += [f"left out, not in this text: {item['question']}" for item in unfit]
    asked, shown = (
        [{key: str(item[key]) for key in ("question", "answer")} for item, fits in found if fits]
        for found in groups.values()
    )
    if asked and shown:
        corpus.rows[f"knowmem/{side}_qa"] = asked
        corpus.rows[f"knowmem/{side}_qa_icl"] = shown
    else:
        about = ", ".join(str(part) for part in parts)
        corpus.notes.append(f"no knowmem/{side}_qa: no questions and examples about {about}")


def _about(
    books: Mapping[str, Sequence[str]],
    questions: Mapping[str, Any],
    group: str,
    parts: Sequence[Part],
) -> list[tuple[Mapping[str, Any], bool]]:
    """The items of a group about some parts, each with whether it fits the text."""
    return [
        (item, _fits(item, books[part.book][item["chapter"] - 1]))
        for part in parts
        for item in questions.get(part.book, {}).get(group, ())
        if part.first <= item["chapter"] <= part.last
    ]


def _fits(item: Mapping[str, Any], chapter: str) -> bool:
    """The evidence is in the chapter and holds the answer."""
    evidence = _letters(item["evidence"])
    return evidence in _letters(chapter) and _letters(item["answer"]) in evidence


def _letters(text: Any) -> str:
    """Words between spaces; editions differ in quotation marks, dashes and emphasis."""
    return f" {' '.join(_LETTERS.findall(str(text).lower()))} "
