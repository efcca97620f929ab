"""Write a proxy file: drive a model through the in-context prompt, check, retry, fall back."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from expunge.core.errors import InputError, Problem
from expunge.core.fingerprint import fingerprint
from expunge.data.proxies import (
    ProxyLine,
    ProxySettings,
    ProxySummary,
    has_proxy,
    match_lines,
    read_proxies,
    row_id,
    summarize,
    write_proxies,
)
from expunge.data.proxy_parse import clean_answer, parse_answers, shorten, whole_sentences
from expunge.data.proxy_prompt import (
    Exemplar,
    asked,
    perturbed_answers,
    prompt_sha256,
    proxy_prompt,
    zero_shot_prompt,
)
from expunge.data.proxy_rules import Reason, folded, reject_reason
from expunge.data.rows import Message, RowSet
from expunge.run.proxy_exemplars import exemplar_file, keep_exemplars, make_exemplars
from expunge.run.proxy_generator import Generator

VERSION = 1  # of prompts and rules together; a change makes earlier lines "other settings"
PROMPTS_PER_CALL = 40  # the file is written after every call, so a killed run loses at most these
TRIAL_PROMPTS = 4  # prompts with several questions that must go well before there are more

Progress = Callable[[int, int, str], None]
"""Called with the questions that have a proxy, all questions, and what is being done."""


def make_proxies(
    forget: RowSet,
    exemplar_rows: RowSet | None,
    generator: Generator,
    path: Path | str,
    *,
    model_name: str,
    settings: ProxySettings | None = None,
    exemplars: Sequence[Exemplar] | None = None,
    rejections: Sequence[str] | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> ProxySummary:
    """Fill the proxy file of a forget set; lines that are there are kept, edited ones as well.

    Questions are asked several to a prompt (if the first such prompts bring more than half of their
    answers), then one by one, then with sampling. What no prompt brings gets the model's answer
    without exemplars, then a wrong answer from the data.
    The file is written as the work goes on: a killed run goes on where it was.

    Args:
        forget: Rows with questions.
        exemplar_rows: Rows for the exemplars, such as the retain set; questions that are also in
            the forget set are left out. Not needed where `exemplars` are given.
        generator: The writing model. It must not have learned the forget set.
        path: The proxy file; the exemplars are kept beside it, in `NAME.exemplars.json`.
        model_name: What the file calls the model.
        settings: The defaults if None.
        exemplars: Exemplars to use as they are (`load_exemplars`); None: made from
            `exemplar_rows` as the settings say.
        rejections: Texts that count as refusals; TOFU's hundred if None.
        force: Make every line anew, edited ones as well; the exemplars stay.
        on_progress: Told after every change.

    Raises:
        InputError: Rows without questions, no usable exemplars, a broken file or one of another
            forget set, or questions left without a proxy after everything (they are in the file,
            to be filled in by hand).
    """
    if not len(forget):
        raise InputError(f"the forget set {forget.origin} is empty: there is nothing to answer")
    questions = [asked(row) for row in forget]
    if rejections is None:
        from expunge.data.tofu import load_rejections

        rejections = load_rejections()
    path, settings = Path(path), settings or ProxySettings()
    lines: dict[int, ProxyLine | None] = {row.index: None for row in forget}
    if path.is_file() and not force:
        lines = match_lines(read_proxies(path), forget, source=str(path))
    writer = _Writer(
        forget=forget,
        questions=questions,
        generator=generator,
        path=path,
        model_name=model_name,
        settings=settings,
        key=_settings_key(model_name, settings, exemplar_rows, exemplars),
        rejections=tuple(rejections),
        report=on_progress or (lambda done, total, label: None),
        lines=lines,
    )
    if writer.pending:
        writer.tell("exemplars")
        if exemplars is not None:
            keep_exemplars(exemplars, exemplar_file(path))
        else:
            assert exemplar_rows is not None, "checked with the key"
            exemplars = make_exemplars(
                exemplar_rows,
                forget,
                generator,
                exemplar_file(path),
                model_name=model_name,
                settings=settings,
                rejections=rejections,
            )
        writer.in_context(exemplars)
        writer.zero_shot()
        writer.perturbed()
        writer.close()
    return summarize(writer.lines, forget, settings=writer.key, written=writer.written)


def _settings_key(
    model_name: str,
    settings: ProxySettings,
    exemplar_rows: RowSet | None,
    exemplars: Sequence[Exemplar] | None,
) -> str:
    """Fingerprint that generated lines carry: equal for equal models, settings and exemplars."""
    if exemplars is not None:
        source: object = [asdict(item) for item in exemplars]
    elif exemplar_rows is not None:
        source = exemplar_rows.fingerprint
    else:
        raise InputError(
            "the prompts need worked examples: give rows outside the forget set (data.retain), or "
            "a file of your own (proxies.exemplar_file)"
        )
    return fingerprint([VERSION, model_name, asdict(settings), source])


@dataclass(kw_only=True)
class _Prompt:
    """One conversation and the rows whose questions it asks."""

    indices: list[int]
    messages: list[Message]


@dataclass(kw_only=True)
class _Writer:
    """The proxy file while it is being filled; see `make_proxies` for the fields."""

    forget: RowSet
    questions: list[str]
    generator: Generator
    path: Path
    model_name: str
    settings: ProxySettings
    key: str
    rejections: tuple[str, ...]
    report: Progress
    lines: dict[int, ProxyLine | None]
    exemplars: Sequence[Exemplar] = ()
    refused: defaultdict[int, list[Reason]] = field(default_factory=lambda: defaultdict(list))
    written: int = 0

    @property
    def pending(self) -> list[int]:
        """Rows without a proxy."""
        return [index for index, line in self.lines.items() if not has_proxy(line)]

    def in_context(self, exemplars: Sequence[Exemplar]) -> None:
        """Ask several questions per prompt, then what is left one by one."""
        self.exemplars = exemplars
        settings = self.settings
        lone = settings.questions_per_prompt == 1
        together = self._prompts(settings.questions_per_prompt)
        trial = len(together) if lone or not settings.max_retries else TRIAL_PROMPTS
        for part in (together[:trial], together[trial:]):
            pending = set(self.pending).intersection(i for p in part for i in p.indices)
            self._ask(part, label="in context", generator="in_context")
            if len(pending.intersection(self.pending)) > len(pending) / 2:
                break  # a model that cannot do several at once costs less if asked one by one
        for attempt in range(1, settings.max_retries + 1):
            # The first lone prompt is greedy, unless the first round has asked just that already.
            sampled = attempt > 1 or lone
            self._ask(
                self._prompts(1),
                label=f"retry {attempt} of {settings.max_retries}",
                generator="in_context",
                temperature=(settings.temperature or 1.0) if sampled else 0.0,
                seed=settings.seed + 1000 * attempt,
            )

    def _prompts(self, size: int) -> list[_Prompt]:
        """In-context prompts with `size` questions each for everything that is pending."""
        pending = set(self.pending)
        return [
            _Prompt(indices=group, messages=proxy_prompt(self._questions(group), self.exemplars))
            for group in _groups(len(self.forget), size)
            if not pending.isdisjoint(group)
        ]

    def zero_shot(self) -> None:
        """Take the model's answer without exemplars for what is left."""
        prompts = [
            _Prompt(indices=[i], messages=zero_shot_prompt(self.questions[i])) for i in self.pending
        ]
        self._ask(prompts, label="without exemplars", generator="zero_shot")

    def perturbed(self) -> None:
        """Take one of the wrong answers that come with the data for what is left."""
        for index in self.pending:
            row = self.forget[index]
            wrong = [t for t in perturbed_answers(row) if folded(t) != folded(row.answer)]
            if wrong:
                # No further rules: these keep the words of the truth, all but the fact.
                answer = random.Random(f"{self.settings.seed} {row_id(row)}").choice(wrong)
                self._accept(index, answer, "perturbed_answer", "")
        self._save("from the data")

    def close(self) -> None:
        """Note in the file what is still missing.

        Raises:
            InputError: Something is.
        """
        pending = self.pending
        if not pending:
            return
        for index in pending:
            self._set(index, "", "none", "")
        self._save("done")
        left = [
            Problem(
                where=f"row {i}",
                message=f"{self.questions[i]!r} (answers refused: "
                f"{', '.join(dict.fromkeys(self.refused[i])) or 'none came'})",
            )
            for i in pending[:5]
        ]
        counts = f"{len(pending)} of {len(self.forget)} questions have no proxy answer"
        advice = (
            f"{counts}; they are in the file with an empty proxy_answer. Write them by hand, or "
            f"run again with a larger proxies.max_retries or another proxies.model or endpoint"
        )
        raise InputError(
            [Problem(where="proxy_answer", message=advice), *left], source=str(self.path)
        )

    def _ask(
        self,
        prompts: Sequence[_Prompt],
        *,
        label: str,
        generator: str,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Send prompts, judge the replies, write the file after every call."""
        for start in range(0, len(prompts), PROMPTS_PER_CALL):
            self.tell(label)
            chunk = prompts[start : start + PROMPTS_PER_CALL]
            replies = self.generator(
                [prompt.messages for prompt in chunk],
                max_new_tokens=[self._budget(prompt) for prompt in chunk],
                temperature=temperature,
                seed=seed + start,
            )
            for prompt, text in zip(chunk, replies, strict=True):
                self._judge(prompt, text, generator)
            self._save(label)

    def _judge(self, prompt: _Prompt, text: str, generator: str) -> None:
        """Keep the acceptable answers of one reply, and note why others are not."""
        seen: set[str] = set()
        in_context = generator == "in_context"
        if in_context:
            answers = parse_answers(text, self._questions(prompt.indices))
        else:
            answers = {0: clean_answer(whole_sentences(text) or text)}
        sha256 = prompt_sha256(prompt.messages)
        for position, index in enumerate(prompt.indices):
            row, answer = self.forget[index], answers.get(position)
            reason: Reason | None = "unparsed"
            if answer is not None:
                answer = shorten(answer, row.answer)
                reason = reject_reason(
                    answer,
                    question=row.question,
                    truth=row.answer,
                    exemplars=self.exemplars if in_context else (),
                    rejections=self.rejections,
                )
                if reason is None and folded(answer) in seen:
                    reason = "repeats_another"
                seen.add(folded(answer))
            if has_proxy(self.lines[index]):
                continue  # asked once more only because its neighbours are missing
            if reason is not None:
                self.refused[index].append(reason)
            elif answer is not None:
                self._accept(index, answer, generator, sha256)

    def _accept(self, index: int, answer: str, generator: str, sha256: str) -> None:
        self._set(index, answer, generator, sha256)
        self.written += 1

    def _set(self, index: int, answer: str, generator: str, sha256: str) -> None:
        status = {"in_context": "retried" if self.refused[index] else "accepted", "none": "missing"}
        row = self.forget[index]
        self.lines[index] = ProxyLine(
            id=row_id(row),
            question=row.question,
            answer=row.answer,
            proxy_answer=answer,
            generator=generator,
            status=status.get(generator, "fallback"),
            attempts=len(self.refused[index]) + bool(answer),
            rejected=tuple(self.refused[index]),
            prompt_sha256=sha256,
            model="" if generator == "perturbed_answer" else self.model_name,
            settings=self.key,
            made=fingerprint(answer),
        )

    def _save(self, label: str) -> None:
        write_proxies(self.path, [line for line in self.lines.values() if line is not None])
        self.tell(label)

    def tell(self, label: str) -> None:
        """Report how many questions have a proxy."""
        self.report(len(self.forget) - len(self.pending), len(self.forget), label)

    def _questions(self, indices: Sequence[int]) -> list[str]:
        return [self.questions[index] for index in indices]

    def _budget(self, prompt: _Prompt) -> int:
        """Tokens a reply may need: answers as long as the true ones, and questions if repeated."""
        tokens = 8
        for index in prompt.indices:
            answer = len(self.forget[index].answer) // 2 + 16  # 3 to 4 characters a token
            tokens += min(self.settings.max_new_tokens, answer)
            if len(prompt.indices) > 1:
                tokens += len(self.questions[index]) // 3 + 16
        return tokens


def _groups(count: int, size: int) -> list[list[int]]:
    """Row indices per prompt, as far from each other as possible.

    Neighbours in a data set often ask about one subject, and one question would give away the
    answer to the next. The groups depend on nothing else, so a resumed run asks what it would have.
    """
    num_groups = -(-count // size)
    return [list(range(first, count, num_groups)) for first in range(num_groups)]
