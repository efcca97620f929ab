"""Write an alternates file: sample from a model, check, draw again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from expunge.core.errors import InputError, Problem
from expunge.core.fingerprint import fingerprint
from expunge.data.alternate_prompt import alternate_prompt, read_alternate
from expunge.data.alternates import (
    AlternateLine,
    AlternateSettings,
    AlternateSummary,
    match_alternates,
    read_alternates,
    summarize_alternates,
    write_alternates,
)
from expunge.data.proxies import row_id
from expunge.data.proxy_prompt import perturbed_answers, prompt_sha256
from expunge.data.proxy_rules import folded, reject_reason
from expunge.data.rows import Row, RowSet
from expunge.run.proxy_generator import Generator

VERSION = 1  # of prompt and rules together; a change makes earlier lines "other settings"
QUESTIONS_PER_CALL = 8  # the file is written after every group, so a kill loses at most one

Progress = Callable[[int, int, str], None]
"""Called with the questions that are ready, all questions, and what is being done."""


def make_alternates(
    forget: RowSet,
    generator: Generator,
    path: Path | str,
    *,
    model_name: str,
    settings: AlternateSettings | None = None,
    rejections: Sequence[str] | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> AlternateSummary:
    """Fill the alternates file of a forget set; lines that are there are kept, edited ones as well.

    Every question is answered several times by sampling, with a seed for every draw. What is empty,
    a refusal, the true answer, like another alternate of the question, or otherwise no answer is
    drawn again. A question that ends up with none gets the wrong answers of the data, if it has
    any. The file is written as the work goes on: a killed run goes on where it was, to the same
    file.

    Args:
        forget: Rows with questions.
        generator: The writing model; AltPO takes the model that unlearning starts from.
        path: The alternates file.
        model_name: What the file calls the model.
        settings: The defaults if None.
        rejections: Texts that count as refusals; TOFU's hundred if None.
        force: Make every line anew, edited ones as well.
        on_progress: Told after every group of questions.

    Raises:
        InputError: Rows without questions, a broken file or one of another forget set, or questions
            left without an alternate after everything (they are in the file, to be filled in).
    """
    if not len(forget):
        raise InputError(f"the forget set {forget.origin} is empty: there is nothing to answer")
    if rejections is None:
        from expunge.data.tofu import load_rejections

        rejections = load_rejections()
    path, settings = Path(path), settings or AlternateSettings()
    matched: dict[int, list[AlternateLine]] = {row.index: [] for row in forget}
    if path.is_file() and not force:
        matched = match_alternates(read_alternates(path), forget, source=str(path))
    writer = _Writer(
        forget=forget,
        generator=generator,
        path=path,
        model_name=model_name,
        settings=settings,
        key=fingerprint([VERSION, model_name, asdict(settings)]),
        rejections=tuple(rejections),
        report=on_progress or (lambda done, total, label: None),
        matched=matched,
    )
    if writer.pending:
        writer.run()
        writer.close()
    return summarize_alternates(
        writer.matched,
        forget,
        per_question=settings.per_question,
        settings=writer.key,
        written=writer.written,
    )


@dataclass(kw_only=True)
class _Work:
    """One question while its alternates are drawn."""

    row: Row
    kept: list[AlternateLine]
    texts: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def missing(self, wanted: int) -> int:
        return max(0, wanted - len(self.kept) - len(self.texts))


@dataclass(kw_only=True)
class _Writer:
    """The alternates file while it is being filled; see `make_alternates` for the fields."""

    forget: RowSet
    generator: Generator
    path: Path
    model_name: str
    settings: AlternateSettings
    key: str
    rejections: tuple[str, ...]
    report: Progress
    matched: dict[int, list[AlternateLine]]
    written: int = 0

    def __post_init__(self) -> None:
        # A row that stands in the forget set twice has its lines once.
        first: dict[str, int] = {}
        self.home = {row.index: first.setdefault(row_id(row), row.index) for row in self.forget}

    @property
    def pending(self) -> list[int]:
        """Rows that have too few alternates and have not been asked with these settings."""
        return [index for index in dict.fromkeys(self.home.values()) if not self._done(index)]

    def _done(self, index: int) -> bool:
        held = [line for line in self.matched[index] if line.alternate.strip()]
        # Fewer of the present settings: no more were to be had, or a person removed the others.
        asked = any(line.settings == self.key for line in held)
        return asked or len(held) >= self.settings.per_question

    def run(self) -> None:
        """Draw for all pending questions, group by group."""
        groups = list(dict.fromkeys(self.home.values()))
        self._tell("drawing")
        for start in range(0, len(groups), QUESTIONS_PER_CALL):
            # Groups depend on nothing but the forget set, so a resumed run draws what it would
            # have drawn.
            some = [i for i in groups[start : start + QUESTIONS_PER_CALL] if not self._done(i)]
            if some:
                self._draw(some)
                self._save()

    def _draw(self, indices: Sequence[int]) -> None:
        """All rounds of one group, until every question has enough or nothing helps."""
        held = {i: [line for line in self.matched[i] if line.alternate.strip()] for i in indices}
        works = [_Work(row=self.forget[i], kept=held[i]) for i in indices]
        for attempt in range(self.settings.max_retries + 1):
            draws = [
                work for work in works for _ in range(work.missing(self.settings.per_question))
            ]
            if not draws:
                break
            if attempt:
                self._tell(f"retry {attempt} of {self.settings.max_retries}")
            replies = self.generator(
                [alternate_prompt(work.row) for work in draws],
                max_new_tokens=[self.settings.max_new_tokens] * len(draws),
                temperature=self.settings.temperature,
                seed=self._seed(indices, attempt),
            )
            for work, text in zip(draws, replies, strict=True):
                self._judge(work, read_alternate(text))
        for work in works:
            self._keep(work)

    def _seed(self, indices: Sequence[int], attempt: int) -> int:
        """A seed of its own for every call; the generator tells the draws of one call apart."""
        ids = [row_id(self.forget[i]) for i in indices]
        return int(fingerprint([self.settings.seed, attempt, ids])[:8], 16)

    def _judge(self, work: _Work, text: str) -> None:
        row = work.row
        reason: str | None = reject_reason(
            text, question=row.question, truth=row.answer, rejections=self.rejections
        )
        seen = {folded(other) for other in (*work.texts, *(line.alternate for line in work.kept))}
        if reason is None and folded(text) in seen:
            reason = "repeats_another"
        if reason is None:
            work.texts.append(text)
        else:
            work.refused.append(reason)

    def _keep(self, work: _Work) -> None:
        """The lines of a question, those that were there first."""
        generator = "sampled"
        if not work.kept and not work.texts:
            # These keep the words of the truth, all but the fact: no further rules.
            wrong = [t for t in perturbed_answers(work.row) if folded(t) != folded(work.row.answer)]
            count = min(self.settings.per_question, len(wrong))
            work.texts = random.Random(f"{self.settings.seed} {row_id(work.row)}").sample(
                wrong, count
            )
            generator = "perturbed_answer"
        made = [self._line(work.row, text, generator) for text in work.texts]
        self.written += len(made)
        if not work.kept and not made:
            made = [self._line(work.row, "", "none")]
        if made:
            made[0] = replace(made[0], rejected=tuple(work.refused))
        self.matched[work.row.index] = [*work.kept, *made]

    def _line(self, row: Row, text: str, generator: str) -> AlternateLine:
        sampled = generator == "sampled"
        return AlternateLine(
            id=row_id(row),
            question=row.question,
            answer=row.answer,
            alternate=text,
            generator=generator,
            prompt_sha256=prompt_sha256(alternate_prompt(row)) if sampled else "",
            model=self.model_name if sampled else "",
            settings=self.key,
            made=fingerprint(text),
        )

    def close(self) -> None:
        """Give twins their lines, and say what is still missing.

        Raises:
            InputError: Something is.
        """
        for index, home in self.home.items():
            self.matched[index] = self.matched[home]
        lost = [
            self.forget[index]
            for index in dict.fromkeys(self.home.values())
            if not any(line.alternate.strip() for line in self.matched[index])
        ]
        if not lost:
            return
        reasons = {
            row.index: [reason for line in self.matched[row.index] for reason in line.rejected]
            for row in lost
        }
        advice = (
            f"{len(lost)} of {len(self.home)} questions have no alternate answer; they are in the "
            f"file with an empty alternate. Write them by hand, or run again with a larger "
            f"alternates.max_retries or another alternates.model or endpoint"
        )
        left = [
            Problem(
                where=f"row {row.index}",
                message=f"{row.question!r} (answers refused: "
                f"{', '.join(dict.fromkeys(reasons[row.index])) or 'none came'})",
            )
            for row in lost[:5]
        ]
        raise InputError([Problem(where="alternate", message=advice), *left], source=str(self.path))

    def _save(self) -> None:
        homes = dict.fromkeys(self.home.values())
        lines: dict[int, AlternateLine] = {}
        for index in homes:
            # By identity: a line without an answer may serve several rows and is written once.
            lines |= {id(line): line for line in self.matched[index]}
        write_alternates(self.path, lines.values())
        self._tell("drawing")

    def _tell(self, label: str) -> None:
        total = len(set(self.home.values()))
        self.report(total - len(self.pending), total, label)
