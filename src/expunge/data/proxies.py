"""Proxy answers: what a model that never saw the forget set would plausibly say (for EGUP).

They live in a JSON-lines file, one line per forget question, that a person may read and edit. A
file made by hand needs no more than `question` and `proxy_answer`. `expunge.run.proxies` writes it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from expunge.core.errors import Problems
from expunge.core.fingerprint import fingerprint
from expunge.data.answer_lines import read_answer_lines, write_answer_lines
from expunge.data.problems import FileProblems, short
from expunge.data.proxy_prompt import ExemplarSource
from expunge.data.proxy_rules import folded, rouge_l_recall
from expunge.data.rows import Row, RowSet

MAKE_THEM = "expunge proxies, followed by the same arguments"


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """How proxy answers are generated (EGUP, section 5.2; the numbers are ours).

    Attributes:
        exemplars: Worked examples in every prompt, from outside the forget set.
        questions_per_prompt: Forget questions asked in one prompt of the first round. Very small
            models do better with 1: SmolLM2-135M gave 10 usable answers to 40 questions with 4, and
            28 and 35 with 1 (other exemplars).
        max_retries: Further attempts for a question without an acceptable answer, each with a
            prompt of its own: greedy at first, then sampled.
        max_new_tokens: Most tokens of one answer. What is really allowed follows the length of the
            true answer and is often less.
        temperature: Sampling temperature once a question was asked alone; 0 means 1 there, since
            greedy decoding would only repeat itself.
        seed: Seed of the choice of exemplars and of sampling.
        exemplar_source: Where the uninformed answers of the exemplars come from: "base_model", the
            writing model answering without examples, or "perturbed", the `perturbed_answer` of
            the rows.
    """

    exemplars: int = 3
    questions_per_prompt: int = 4
    max_retries: int = 3
    max_new_tokens: int = 96
    temperature: float = 0.7
    seed: int = 0
    exemplar_source: ExemplarSource = "base_model"

    def __post_init__(self) -> None:
        problems = Problems()
        least = {"exemplars": 1, "questions_per_prompt": 1, "max_retries": 0, "max_new_tokens": 1}
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                problems.add(f"proxies.{name}", f"is {value}; it must be at least {smallest}")
        if not 0 <= self.temperature <= 10:
            problems.add("proxies.temperature", f"is {self.temperature}; it must be from 0 to 10")
        if self.exemplar_source not in (sources := get_args(ExemplarSource)):
            came = f"is {self.exemplar_source!r}; possible: {', '.join(sources)}"
            problems.add("proxies.exemplar_source", came)
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class ProxyLine:
    """One line of a proxy file.

    Attributes:
        id: Hash of the forget row (conversation and answer); empty on lines made by hand.
        question: The question, the last user message of the row.
        answer: The true answer; empty on lines made by hand.
        proxy_answer: The proxy; empty when none was found.
        generator: Who wrote it: "in_context", "zero_shot", "perturbed_answer" (a wrong answer that
            came with the data), "none", or "hand".
        status: "accepted" (the first answer), "retried" (an answer to a later prompt), "fallback"
            (without exemplars) or "missing".
        attempts: Answers looked at, the accepted one included.
        rejected: Why earlier answers were refused, in order (`proxy_rules.REASONS`).
        prompt_sha256: Hash of the prompt that led to the proxy.
        model: Name of the writing model.
        settings: Fingerprint of model, settings and exemplars.
        made: Fingerprint of the proxy as it was generated, by which an edit is recognised.
    """

    question: str
    proxy_answer: str
    answer: str = ""
    id: str = ""
    generator: str = "hand"
    status: str = "accepted"
    attempts: int = 0
    rejected: tuple[str, ...] = ()
    prompt_sha256: str = ""
    model: str = ""
    settings: str = ""
    made: str = ""

    @property
    def by_hand(self) -> bool:
        """A person wrote the proxy or changed it since it was generated."""
        return self.generator == "hand" or self.made != fingerprint(self.proxy_answer)


_ORDER = (
    "id", "question", "answer", "proxy_answer", "generator", "status", "attempts", "rejected",
    "prompt_sha256", "model", "settings", "made",
)  # fmt: skip


def has_proxy(line: ProxyLine | None) -> bool:
    """There is a line and its proxy is not empty."""
    return line is not None and bool(line.proxy_answer.strip())


def row_id(row: Row) -> str:
    """Hash of a row's conversation and answer: the same row has it in any file."""
    turns = [[message.role, message.content] for message in row.messages]
    return fingerprint([turns, row.answer])


def texts_key(texts: Iterable[str]) -> str:
    """Fingerprint of the texts of a file, in any order: an edit of one of them changes it."""
    return fingerprint(sorted(stripped for text in texts if (stripped := text.strip())))


def write_proxies(path: Path | str, lines: Iterable[ProxyLine]) -> None:
    """Write a proxy file atomically."""
    write_answer_lines(path, lines, _ORDER)


def read_proxies(path: Path | str) -> list[ProxyLine]:
    """The lines of a proxy file, by hand or generated; empty proxies are kept as they are.

    Raises:
        InputError: No such file, not UTF-8, not JSON, or without `question` and `proxy_answer`.
    """
    missing = f"Write the proxy answers with: {MAKE_THEM}"
    return read_answer_lines(path, _line, answer="proxy_answer", missing=missing)


def match_lines(
    lines: Sequence[ProxyLine], forget: RowSet, *, source: str
) -> dict[int, ProxyLine | None]:
    """The line of every forget row by its index, None where there is none.

    Lines are found by question; where questions repeat in the forget set, by question and answer.

    Raises:
        InputError: A line belongs to no forget row, or two lines to the same one.
    """
    problems = FileProblems(source)
    homes: dict[str, list[Row]] = defaultdict(list)
    for row in forget:
        homes[_spaced(row.question)].append(row)
    matched: dict[int, ProxyLine | None] = {row.index: None for row in forget}
    for number, line in enumerate(lines, start=1):
        rows = homes.get(_spaced(line.question), [])
        fitting = [row for row in rows if _same_answer(line.answer, row)]
        free = [row for row in fitting if matched[row.index] is None]
        if free:
            # One line serves a question that stands in the forget set twice, until another comes.
            matched[free[0].index] = line
        else:
            problems.add(f"proxy {number}", _misfit(line, rows, fitting, forget))
    for row in forget:
        if matched[row.index] is None:
            twins = [other for other in homes[_spaced(row.question)] if matched[other.index]]
            found = [matched[twin.index] for twin in twins]
            matched[row.index] = next((t for t in found if t and _same_answer(t.answer, row)), None)
    problems.raise_if_any()
    return matched


def _same_answer(answer: str, row: Row) -> bool:
    return not answer or _spaced(answer) == _spaced(row.answer)


def _misfit(line: ProxyLine, rows: list[Row], fitting: list[Row], forget: RowSet) -> str:
    """Why a line fits no row of the forget set that has none yet."""
    question = short(line.question)
    if not rows:
        return (
            f"{question} is no question of the forget set ({forget.origin}); remove the line, "
            f"correct the question, or use the forget set it was made for"
        )
    if fitting:
        return f"is the second proxy answer to {question}; keep one"
    return (
        f"was made for other data: the true answer to {question} is {short(line.answer)} there, "
        f"{short(rows[0].answer)} in the forget set ({forget.origin})"
    )


def load_proxies(path: Path | str, forget: RowSet) -> list[str]:
    """The proxy answers of a file, one per forget row and in its order.

    Raises:
        InputError: File missing or broken, rows without a proxy, empty proxies, questions that are
            not in the forget set, two proxies for one question.
    """
    matched = match_lines(read_proxies(path), forget, source=str(path))
    problems = FileProblems(str(path))
    for row in forget:
        line = matched[row.index]
        if not has_proxy(line):
            what = "has no proxy answer" if line is None else "has an empty proxy answer"
            problems.add(f"row {row.index}", f"{short(row.question)} {what}. Make the missing ones "
                         f"with: {MAKE_THEM}; or write them into the file by hand")  # fmt: skip
    problems.raise_if_any()
    return [line.proxy_answer.strip() for line in matched.values() if line is not None]


@dataclass(frozen=True, kw_only=True)
class ProxySummary:
    """What a proxy file holds and how good it is.

    Attributes:
        total: Forget questions.
        written: Lines generated by the call that returned this; 0 when all were there.
        generators: Lines by who wrote them, "hand" for edited ones.
        retried: Lines whose proxy came from a later prompt of the in-context kind.
        rejected: Refused answers by reason, over all attempts.
        other_settings: Kept lines that another model or other settings made.
        mean_rouge_l_recall: Mean ROUGE-L recall of the proxies against the true answers, 0 to 1;
            the lower, the less of the truth is in them. None without proxies.
        mean_length_ratio: Mean of words in the proxy over words in the true answer; 1 is best.
        attempts: Answers looked at, over all generated lines.
        mean_nll_proxies: Mean negative log-likelihood per token of the proxies under a model that
            does not know the facts, in nats; the mean over questions of the mean over tokens. None
            without such a model.
        mean_nll_truths: The same of the true answers. The closer the two, the more plausible are
            the proxies to a model that does not know the facts.
        nll_model: The model of these two figures.
        missing: Questions without a proxy.
    """

    total: int
    written: int
    generators: Mapping[str, int]
    retried: int
    rejected: Mapping[str, int]
    other_settings: int
    mean_rouge_l_recall: float | None
    mean_length_ratio: float | None
    attempts: int = 0
    mean_nll_proxies: float | None = None
    mean_nll_truths: float | None = None
    nll_model: str = ""
    missing: tuple[str, ...] = ()

    @property
    def in_context_share(self) -> float:
        """Share of the questions whose proxy comes from in-context learning, 0 to 1."""
        return self.generators.get("in_context", 0) / self.total if self.total else 0.0

    @property
    def num_rejected(self) -> int:
        """Refused answers, those that could not be read included."""
        return sum(self.rejected.values())

    @property
    def parse_failures(self) -> int:
        """Answers that could not be found in the reply to their prompt."""
        return self.rejected.get("unparsed", 0)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for a manifest."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "num_rejected": self.num_rejected, "parse_failures": self.parse_failures}

    def lines(self) -> list[str]:
        """The summary as short lines for a terminal."""
        made = self.total - len(self.missing)
        by = ", ".join(f"{count} {name}" for name, count in self.generators.items())
        out = [f"{made} of {self.total} questions have a proxy answer: {by or 'none'}"]
        out.append(f"written now {self.written}, found in a later prompt {self.retried}")
        if self.rejected:
            reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.items())
            out.append(f"refused {self.num_rejected} of {self.attempts} answers: {reasons}")
        if self.mean_rouge_l_recall is not None:
            out.append(
                f"mean ROUGE-L recall against the true answer {self.mean_rouge_l_recall:.2f}"
            )
            out.append(
                f"mean length, as a multiple of the true answer {self.mean_length_ratio:.2f}"
            )
        if self.mean_nll_proxies is not None and self.mean_nll_truths is not None:
            out.append(
                f"mean negative log-likelihood per token under {self.nll_model}: proxies "
                f"{self.mean_nll_proxies:.2f}, true answers {self.mean_nll_truths:.2f}"
            )
        if self.other_settings:
            out.append(f"{self.other_settings} kept lines were made with another model or other "
                       f"settings; --force makes all anew")  # fmt: skip
        return out


def summarize(
    lines: Mapping[int, ProxyLine | None], forget: RowSet, *, settings: str = "", written: int = 0
) -> ProxySummary:
    """Count and measure matched lines (`match_lines`).

    Args:
        lines: The line of every forget row.
        forget: The forget set.
        settings: Fingerprint that generated lines should carry.
        written: Number of lines generated just now.
    """
    held = [(row, line) for row in forget if has_proxy(line := lines[row.index]) and line]
    recalls = [rouge_l_recall(row.answer, line.proxy_answer) for row, line in held]
    ratios = [_words(line.proxy_answer) / max(1, _words(row.answer)) for row, line in held]
    known = [line for line in lines.values() if line is not None]
    generated = [line for _, line in held if not line.by_hand]
    return ProxySummary(
        total=len(forget),
        written=written,
        generators=dict(Counter("hand" if ln.by_hand else ln.generator for _, ln in held)),
        retried=sum(line.status == "retried" for line in generated),
        rejected=dict(Counter(reason for line in known for reason in line.rejected)),
        other_settings=sum(bool(settings) and line.settings != settings for line in generated),
        mean_rouge_l_recall=sum(recalls) / len(recalls) if recalls else None,
        mean_length_ratio=sum(ratios) / len(ratios) if ratios else None,
        attempts=sum(line.attempts for line in known),
        missing=tuple(row.question for row in forget if not has_proxy(lines[row.index])),
    )


def _line(values: Mapping[str, Any]) -> ProxyLine:
    """A line from its values; a field of the wrong kind, outside the texts, takes its default."""
    kinds = {"attempts": int, "rejected": list}
    names = [field.name for field in fields(ProxyLine)]
    found = {n: values[n] for n in names if isinstance(values.get(n), kinds.get(n, str))}
    found["rejected"] = tuple(str(reason) for reason in found.get("rejected", ()))
    return ProxyLine(**found)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> int:
    return len(folded(text).split()) or len(text.split())
