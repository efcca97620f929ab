"""Alternate answers: plausible answers with other facts, which AltPO prefers to the true ones.

They live in a JSON-lines file, several lines per forget question, that a person may read and edit.
A file made by hand needs no more than `question` and `alternate`. `expunge.run.alternates` writes
it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import InputError, Problems
from expunge.core.fingerprint import fingerprint
from expunge.data.answer_lines import read_answer_lines, write_answer_lines
from expunge.data.problems import FileProblems, short
from expunge.data.proxy_rules import folded, rouge_l_recall
from expunge.data.rows import Row, RowSet, row_set

MAKE_THEM = "expunge alternates, followed by the same arguments"


@dataclass(frozen=True, kw_only=True)
class AlternateSettings:
    """How alternates are generated; the numbers are those of AltPO (arXiv:2409.13474).

    Attributes:
        per_question: Alternates per question.
        temperature: Sampling temperature; above 0, or all alternates would be the same.
        max_new_tokens: Most tokens of one alternate.
        max_retries: New draws for those that are refused.
        seed: Seed of sampling; every draw has one of its own, made from this.
    """

    per_question: int = 5
    temperature: float = 1.0
    max_new_tokens: int = 200
    max_retries: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        problems = Problems()
        least = {"per_question": 1, "max_new_tokens": 1, "max_retries": 0}
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                problems.add(f"alternates.{name}", f"is {value}; it must be at least {smallest}")
        if not 0 < self.temperature <= 10:
            came = f"is {self.temperature}; it must be above 0 and at most 10"
            problems.add("alternates.temperature", came)
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class AlternateLine:
    """One line of an alternates file.

    Attributes:
        id: Hash of the forget row (conversation and answer); empty on lines made by hand.
        question: The question, the last user message of the row.
        answer: The true answer; may be empty on lines made by hand, which then hold for every row
            with the question.
        alternate: The alternate; empty where none was found.
        generator: Who wrote it: "sampled", "perturbed_answer" (a wrong answer that came with the
            data), "none", or "hand".
        rejected: Why draws for the question were refused, in order; on the first line that came of
            them.
        prompt_sha256: Hash of the prompt.
        model: Name of the writing model.
        settings: Fingerprint of model and settings.
        made: Fingerprint of the alternate as it was generated, by which an edit is recognised.
    """

    question: str
    alternate: str
    answer: str = ""
    id: str = ""
    generator: str = "hand"
    rejected: tuple[str, ...] = ()
    prompt_sha256: str = ""
    model: str = ""
    settings: str = ""
    made: str = ""

    @property
    def by_hand(self) -> bool:
        """A person wrote the alternate or changed it since it was generated."""
        return self.generator == "hand" or self.made != fingerprint(self.alternate)


_ORDER = (
    "id", "question", "answer", "alternate", "generator", "rejected", "prompt_sha256", "model",
    "settings", "made",
)  # fmt: skip


def write_alternates(path: Path | str, lines: Iterable[AlternateLine]) -> None:
    """Write an alternates file atomically."""
    write_answer_lines(path, lines, _ORDER)


def read_alternates(path: Path | str) -> list[AlternateLine]:
    """The lines of an alternates file, by hand or generated; empty ones are kept as they are.

    Raises:
        InputError: No such file, not UTF-8, not JSON, or without `question` and `alternate`.
    """
    missing = f"Write the alternate answers with: {MAKE_THEM}"
    return read_answer_lines(path, _line, answer="alternate", missing=missing)


def match_alternates(
    lines: Sequence[AlternateLine], forget: RowSet, *, source: str
) -> dict[int, list[AlternateLine]]:
    """The lines of every forget row by its index, in the order of the file.

    A line belongs to every row with its question and, if it has one, its answer: a row that stands
    in the forget set twice shares its lines.

    Raises:
        InputError: A line belongs to no forget row.
    """
    problems = FileProblems(source)
    homes: dict[str, list[Row]] = defaultdict(list)
    for row in forget:
        homes[_spaced(row.question)].append(row)
    matched: dict[int, list[AlternateLine]] = {row.index: [] for row in forget}
    for number, line in enumerate(lines, start=1):
        rows = homes.get(_spaced(line.question), [])
        answer = _spaced(line.answer)
        fitting = [row for row in rows if not answer or answer == _spaced(row.answer)]
        for row in fitting:
            matched[row.index].append(line)
        if not fitting:
            problems.add(f"alternate {number}", _misfit(line, rows, forget))
    problems.raise_if_any()
    return matched


def _misfit(line: AlternateLine, rows: Sequence[Row], forget: RowSet) -> str:
    question = short(line.question)
    if not rows:
        return (
            f"{question} is no question of the forget set ({forget.origin}); remove the line, "
            f"correct the question, or use the forget set it was made for"
        )
    return (
        f"was made for other data: the true answer to {question} is {short(line.answer)} there, "
        f"{short(rows[0].answer)} in the forget set ({forget.origin})"
    )


def load_alternates(path: Path | str, forget: RowSet) -> list[list[str]]:
    """The alternates of a file: for every forget row, in its order, a list of at least one.

    Raises:
        InputError: File missing or broken, rows without an alternate, empty alternates, questions
            that are not in the forget set.
    """
    matched = match_alternates(read_alternates(path), forget, source=str(path))
    problems = FileProblems(str(path))
    for row in forget:
        lines = matched[row.index]
        if not lines:
            problems.add(
                f"row {row.index}",
                f"{short(row.question)} has no alternate answer. Make the missing ones with: "
                f"{MAKE_THEM}; or write them into the file by hand",
            )
        elif not all(line.alternate.strip() for line in lines):
            problems.add(
                f"row {row.index}",
                f"{short(row.question)} has an empty alternate. Fill it in or remove its line",
            )
    problems.raise_if_any()
    return [[line.alternate.strip() for line in matched[row.index]] for row in forget]


class Expanded(NamedTuple):
    """The training set of AltPO: a forget set with every row as often as it has alternates.

    Attributes:
        rows: The rows, those of one question next to each other.
        alternates: One alternate per row.
    """

    rows: RowSet
    alternates: list[str]


def expand(forget: RowSet, alternates: Sequence[Sequence[str]]) -> Expanded:
    """One row for every alternate (AltPO, section 4: five times the forget set).

    Args:
        forget: The forget set.
        alternates: At least one per row, as `load_alternates` gives them.

    Raises:
        InputError: There are not as many lists as rows, or one of them is empty.
    """
    if len(alternates) != len(forget):
        raise InputError(
            f"there are alternates for {len(alternates)} rows and {len(forget)} rows to forget; "
            f"a list is needed for each"
        )
    for row, texts in zip(forget, alternates, strict=True):
        if not texts:
            raise InputError(f"row {row.index} ({short(row.question)}) has no alternate answer")
    pairs = [(row, text) for row, some in zip(forget, alternates, strict=True) for text in some]
    origin = f"{forget.origin}, {len(pairs)} alternates"
    rows = row_set([row for row, _ in pairs], name=forget.name, origin=origin)
    return Expanded(rows, [text for _, text in pairs])


@dataclass(frozen=True, kw_only=True)
class AlternateSummary:
    """What an alternates file holds and how good it is.

    Attributes:
        total: Forget questions.
        alternates: Lines with an alternate.
        per_question: How many were wanted for each.
        written: Lines generated by the call that returned this; 0 when all were there.
        generators: Lines by who wrote them, "hand" for edited ones.
        rejected: Refused draws by reason.
        short: Questions with fewer alternates than were wanted.
        other_settings: Kept lines that another model or other settings made.
        mean_rouge_l_recall: Mean ROUGE-L recall of the alternates against the true answers, 0 to 1;
            the lower, the less of the truth is in them. None without alternates.
        mean_length_ratio: Mean of words in the alternate over words in the true answer.
    """

    total: int
    alternates: int
    per_question: int
    written: int
    generators: Mapping[str, int]
    rejected: Mapping[str, int]
    short: int
    other_settings: int
    mean_rouge_l_recall: float | None
    mean_length_ratio: float | None

    @property
    def num_rejected(self) -> int:
        """Refused draws."""
        return sum(self.rejected.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for a file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "num_rejected": self.num_rejected}

    def lines(self) -> list[str]:
        """The summary as short lines for a terminal."""
        by = ", ".join(f"{count} {name}" for name, count in self.generators.items())
        out = [f"{self.alternates} alternates for {self.total} questions: {by or 'none'}"]
        out.append(f"written now {self.written}")
        if self.short:
            out.append(f"{self.short} questions have fewer than {self.per_question}")
        if self.rejected:
            reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.items())
            out.append(f"refused {self.num_rejected} draws: {reasons}")
        if self.short and 2 * self.rejected.get("repeats_another", 0) > self.num_rejected:
            out.append("most of these repeat another alternate: the model is too sure of itself "
                       "(raise alternates.temperature), or the server does not sample")  # fmt: skip
        if self.mean_rouge_l_recall is not None:
            out.append(
                f"mean ROUGE-L recall against the true answer {self.mean_rouge_l_recall:.2f}"
            )
            out.append(
                f"mean length, as a multiple of the true answer {self.mean_length_ratio:.2f}"
            )
        if self.other_settings:
            out.append(f"{self.other_settings} kept lines were made with another model or other "
                       f"settings; --force makes all anew")  # fmt: skip
        return out


def summarize_alternates(
    matched: Mapping[int, Sequence[AlternateLine]],
    forget: RowSet,
    *,
    per_question: int,
    settings: str = "",
    written: int = 0,
) -> AlternateSummary:
    """Count and measure matched lines (`match_alternates`).

    Args:
        matched: The lines of every forget row.
        forget: The forget set.
        per_question: How many are wanted for each.
        settings: Fingerprint that generated lines should carry.
        written: Number of lines generated just now.
    """
    held = [(row, line) for row in forget for line in matched[row.index] if line.alternate.strip()]
    recalls = [rouge_l_recall(row.answer, line.alternate) for row, line in held]
    ratios = [_words(line.alternate) / max(1, _words(row.answer)) for row, line in held]
    counts = Counter(row.index for row, _ in held)
    generated = [line for _, line in held if not line.by_hand]
    return AlternateSummary(
        total=len(forget),
        alternates=len(held),
        per_question=per_question,
        written=written,
        generators=dict(Counter("hand" if ln.by_hand else ln.generator for _, ln in held)),
        rejected=dict(Counter(r for ls in matched.values() for line in ls for r in line.rejected)),
        short=sum(counts[row.index] < per_question for row in forget),
        other_settings=sum(bool(settings) and line.settings != settings for line in generated),
        mean_rouge_l_recall=sum(recalls) / len(recalls) if recalls else None,
        mean_length_ratio=sum(ratios) / len(ratios) if ratios else None,
    )


def _line(values: Mapping[str, Any]) -> AlternateLine:
    """A line from its values; a field of the wrong kind, outside the texts, takes its default."""
    kinds = {"rejected": list}
    names = [field.name for field in fields(AlternateLine)]
    found = {n: values[n] for n in names if isinstance(values.get(n), kinds.get(n, str))}
    found["rejected"] = tuple(str(reason) for reason in found.get("rejected", ()))
    return AlternateLine(**found)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> int:
    return len(folded(text).split()) or len(text.split())
