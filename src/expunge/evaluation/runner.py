"""Run probes on a model: one teacher-forced pass and one generation pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from expunge.core.errors import InputError, Problem, Problems
from expunge.core.fingerprint import fingerprint
from expunge.data.rows import Row
from expunge.data.templates import Template
from expunge.data.tokens import Encoded, ids_after, leading_ids, text_ids
from expunge.evaluation.answers import AnswerJob, TokenScores, score_answers
from expunge.evaluation.probes import ORIGINAL, EvaluationSettings, Probe
from expunge.evaluation.store import Beside, EvaluationStore, TablePool, finite
from expunge.evaluation.tables import ProbeTable
from expunge.models.fingerprints import model_fingerprint, tokenizer_fingerprint
from expunge.models.generate import Generation, Indexed, context_length, generate_batches

VERSION = 2
"""Raised by every change that moves the content of tables; old ones are then computed again."""


Store = EvaluationStore | TablePool | Beside
"""Where tables are kept."""


class Progress(Protocol):
    """Called as the work goes on."""

    def __call__(self, done: int, total: int, label: str) -> None:
        """Tell how far it is.

        Args:
            done: Rows finished in this stage, stored ones included.
            total: Rows of this stage.
            label: What is done: "scoring answers" or "generating answers".
        """


def run_probes(
    model: nn.Module,
    tokenizer: Any,
    template: Template,
    probes: Sequence[Probe],
    settings: EvaluationSettings | None = None,
    *,
    store: Store | None = None,
    model_id: str | None = None,
    on_progress: Progress | None = None,
    model_folder: Path | None = None,
) -> dict[str, ProbeTable]:
    """Per-sample tables of all probes, in their order.

    Tables that the store has under the same key are taken from there, and rows that an interrupted
    run finished are not computed again. The model is left in the mode it was in.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        template: How rows become prompts and answers.
        probes: What to run; different names.
        settings: Limits and batch size.
        store: Where tables are kept; nothing is written without one.
        model_id: Fingerprint of the model; made from its weights if None.
        on_progress: Called after every batch.
        model_folder: Where this very model is saved, for vLLM; without it vLLM gets a temporary
            copy on disk.

    Raises:
        InputError: A row does not fit into the model's context, or has fields that make no sense,
            or vLLM is wanted and not installed.
    """
    settings = settings or EvaluationSettings()
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    model_id = model_id or model_fingerprint(model)
    origin = _origin(model_id, dtype, tokenizer, template, settings)
    runs = [_ProbeRun(probe=probe, info=_info(probe, origin)) for probe in probes]
    if len({run.probe.name for run in runs}) < len(runs):
        raise ValueError("two probes have the same name")
    tables: dict[str, ProbeTable] = {}
    pending = []
    for run in runs:
        found = None if store is None else store.find(run.probe.name, run.key)
        if found is None:
            pending.append(run)
        else:
            tables[run.probe.name] = found
    if settings.generator == "vllm" and any(run.probe.generate for run in pending):
        from expunge.models.generate_vllm import check_vllm

        check_vllm()  # before an hour of scoring, not after it
    if pending:
        _encode(pending, template, settings, context_length(model))
        for run in pending:
            run.recall(store)
        _score(model, pending, settings, store, on_progress)
        writer = _writer(model, tokenizer, template, settings, model_folder)
        _generate(writer, pending, settings, store, on_progress)
    for run in pending:
        table = run.table()
        if store is not None:
            store.save(table)
        tables[run.probe.name] = table
    return {probe.name: tables[probe.name] for probe in probes}


def are_stored(
    tokenizer: Any,
    template: Template,
    probes: Sequence[Probe],
    settings: EvaluationSettings,
    *,
    store: Store,
    model_id: str,
    dtype: str,
) -> bool:
    """Whether the store has every table, so that `run_probes` would not use the model.

    Args:
        tokenizer: The model's tokenizer.
        template: How rows become prompts and answers.
        probes: What would be run.
        settings: Limits and batch size.
        store: Where tables are kept.
        model_id: Fingerprint of the model.
        dtype: Number format of its weights, such as "float32".
    """
    origin = _origin(model_id, dtype, tokenizer, template, settings)
    return all(
        store.find(probe.name, str(_info(probe, origin)["key"])) is not None for probe in probes
    )


@dataclass(kw_only=True)
class _RowWork:
    """One row on its way into a table.

    Attributes:
        row: The row.
        prompt: Its prompt.
        answer: The true answer as text, as far as it is scored.
        answers: True answer, paraphrase if any, wrong answers, as tokens.
        has_paraphrase: The second answer is a paraphrase.
        scores: Scores of the answers, as a record for the journal.
        generation: The generated answer, as a record for the journal.
    """

    row: Row
    prompt: tuple[int, ...]
    answer: str
    answers: tuple[tuple[int, ...], ...]
    has_paraphrase: bool
    scores: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None


@dataclass(kw_only=True)
class _ProbeRun:
    """One probe on its way into a table."""

    probe: Probe
    info: dict[str, Any]
    rows: list[_RowWork] = field(default_factory=list)

    @property
    def key(self) -> str:
        return str(self.info["key"])

    def recall(self, store: Store | None) -> None:
        """Take up what an interrupted run left."""
        if store is None:
            return
        for record in store.resume(self.probe.name, self.key):
            index, kind = record.get("index"), record.get("kind")
            if isinstance(index, int) and 0 <= index < len(self.rows):
                if kind == "scores":
                    self.rows[index].scores = record
                elif kind == "generation":
                    self.rows[index].generation = record

    def table(self) -> ProbeTable:
        """The table, when every row is done."""
        work = self.rows
        columns: dict[str, list[Any]] = {
            "index": [item.row.index for item in work],
            "question": [item.row.question for item in work],
            "answer": [item.answer for item in work],
            "prompt_tokens": [len(item.prompt) for item in work],
        }
        originals = [item.row.fields.get(ORIGINAL) for item in work]
        if any(isinstance(text, str) for text in originals):
            columns["original_answer"] = [
                text if isinstance(text, str) else None for text in originals
            ]
        scores = [item.scores or {} for item in work]
        columns["answer_logps"] = [finite(score["answer"]) for score in scores]
        columns["answer_greedy"] = [score["greedy"] for score in scores]
        columns["answer_logp_mean"] = [finite(score["means"]) for score in scores]
        columns["answer_logp_var"] = [finite(score["variances"]) for score in scores]
        if any(score["paraphrase"] is not None for score in scores):
            columns["paraphrase_logps"] = [
                None if (found := score["paraphrase"]) is None else finite(found)
                for score in scores
            ]
        if any(score["perturbed"] for score in scores):
            columns["perturbed_logps"] = [
                [finite(wrong) for wrong in score["perturbed"]] for score in scores
            ]
        if self.probe.generate:
            said = [item.generation or {} for item in work]
            columns["generation"] = [record["text"] for record in said]
            columns["generation_ids"] = [record["ids"] for record in said]
            columns["generation_tokens"] = [len(record["ids"]) for record in said]
            columns["finished"] = [record["finished"] for record in said]
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return ProbeTable(
            probe=self.probe.name, columns=columns, info={**self.info, "created": created}
        )


def _origin(
    model_id: str,
    dtype: str,
    tokenizer: Any,
    template: Template,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """What all tables of a model have in common and depend on."""
    return {
        "version": VERSION,
        "model": model_id,
        "dtype": dtype,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": {"name": template.name, "fingerprint": template.fingerprint()},
        "settings": settings.decisive(),
    }


def _info(probe: Probe, origin: dict[str, Any]) -> dict[str, Any]:
    data = {
        "origin": probe.rows.origin,
        "fingerprint": probe.rows.fingerprint,
        "rows": len(probe.rows),
    }
    return {**origin, "data": data, "key": fingerprint([origin, probe.fingerprint()])}


def _encode(
    runs: Iterable[_ProbeRun],
    template: Template,
    settings: EvaluationSettings,
    context: int | None,
) -> None:
    """Turn every row into tokens; all rows that do not fit are reported together."""
    problems = Problems()
    for run in runs:
        for row in run.probe.rows:
            work = _encode_row(run.probe, row, template, settings.max_length)
            longest = len(work.prompt) + max(len(answer) for answer in work.answers)
            if context is not None and longest > context:
                problems.add(
                    f"{run.probe.name} row {row.index}",
                    f"prompt and answer have {longest} tokens and the model sees only {context}; "
                    "shorten the row, leave it out, or set max_length to cut answers",
                )
            run.rows.append(work)
    problems.raise_if_any("evaluation")


def _encode_row(probe: Probe, row: Row, template: Template, max_length: int | None) -> _RowWork:
    paraphrase = probe.paraphrase(row)
    reference = _reference(probe, row, template)
    texts = [reference, *([] if paraphrase is None else [paraphrase]), *probe.perturbed(row)]
    prompt, first = _encode_pair(probe, row, template, reference)
    answers = [first]
    for text in texts[1:]:
        other, answer = _encode_pair(probe, row, template, text)
        if list(other) != list(prompt):
            raise InputError(
                Problem(
                    where=f"{probe.name} row {row.index}",
                    message="the template gives different prompts for different answers",
                )
            )
        answers.append(answer)
    if not prompt:
        # Nothing predicts the very first token, so it serves as the prompt.
        prompt, answers = list(first[:1]), [answers[0][1:]]
    room = None if max_length is None else max(0, max_length - len(prompt))
    return _RowWork(
        row=row,
        prompt=tuple(prompt),
        answer=reference,
        answers=tuple(tuple(answer[:room]) for answer in answers),
        has_paraphrase=paraphrase is not None and len(answers) > 1,
    )


def encoded_answer(
    probe: Probe, row: Row, template: Template, settings: EvaluationSettings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and true answer of a row as tokens, exactly as `run_probes` scores them."""
    work = _encode_row(probe, row, template, settings.max_length)
    return work.prompt, work.answers[0]


def _reference(probe: Probe, row: Row, template: Template) -> str:
    """The true answer, cut to the number of tokens that the probe allows."""
    if probe.reference_tokens is None:
        return row.answer
    tokenizer = template.tokenizer
    # MUSE counts the beginning-of-sequence token of a text that is tokenised by itself.
    ids = [*leading_ids(tokenizer), *text_ids(tokenizer, row.answer)]
    kept = ids[: probe.reference_tokens]
    return str(tokenizer.decode(kept, skip_special_tokens=True))


def _encode_pair(probe: Probe, row: Row, template: Template, answer: str) -> Encoded:
    """Prompt and answer of a row; a text to be continued has no template and no end."""
    if not probe.continuation:
        return template.encode(row.messages, answer)
    tokenizer = template.tokenizer
    prompt = text_ids(tokenizer, row.question)
    continued = ids_after(tokenizer, row.question, answer, before_ids=prompt)
    return Encoded(leading_ids(tokenizer) + prompt, continued)


def _score(
    model: nn.Module,
    runs: Sequence[_ProbeRun],
    settings: EvaluationSettings,
    store: Store | None,
    on_progress: Progress | None,
) -> None:
    """Score the answers of all rows that have no scores yet."""
    every = [(run, work) for run in runs for work in run.rows]
    todo = [(run, work) for run, work in every if work.scores is None]
    done = len(every) - len(todo)
    label = "scoring answers"
    _tell(on_progress, done, len(every), label)
    # The whole distribution and the model's own choice are looked at for the true answer only.
    jobs = [AnswerJob(work.prompt, work.answers, moments=1, greedy=1) for _, work in todo]
    for batch in score_answers(
        model, jobs, batch_tokens=settings.batch_tokens, share_prefix=settings.share_prefix
    ):
        for position, answers in batch:
            run, work = todo[position]
            work.scores = _score_record(work, answers)
            if store is not None:
                store.append(run.probe.name, run.key, [work.scores])
        done += len(batch)
        _tell(on_progress, done, len(every), label)


def _score_record(work: _RowWork, answers: list[TokenScores]) -> dict[str, Any]:
    others = [answer.logps for answer in answers[1:]]
    return {
        "kind": "scores",
        "index": work.row.index,
        "answer": answers[0].logps,
        "greedy": answers[0].greedy,
        "means": answers[0].means,
        "variances": answers[0].variances,
        "paraphrase": others[0] if work.has_paraphrase else None,
        "perturbed": others[1:] if work.has_paraphrase else others,
    }


Writer = Callable[[list[Sequence[int]], list[int]], Iterator[list[Indexed]]]
"""Continues prompts up to a limit each; answers come in parts."""


def _writer(
    model: nn.Module,
    tokenizer: Any,
    template: Template,
    settings: EvaluationSettings,
    folder: Path | None,
) -> Writer:
    if settings.generator == "vllm":
        from expunge.models.generate_vllm import generate_batches_vllm

        return lambda prompts, limits: generate_batches_vllm(
            model,
            prompts,
            tokenizer=tokenizer,
            max_new_tokens=limits,
            stop_ids=template.stop_ids,
            folder=folder,
        )
    return lambda prompts, limits: generate_batches(
        model,
        prompts,
        tokenizer=tokenizer,
        max_new_tokens=limits,
        batch_tokens=settings.batch_tokens,
        stop_ids=template.stop_ids,
    )


def _generate(
    writer: Writer,
    runs: Sequence[_ProbeRun],
    settings: EvaluationSettings,
    store: Store | None,
    on_progress: Progress | None,
) -> None:
    """Let the model answer all rows that it has not answered yet."""
    every = [(run, work) for run in runs if run.probe.generate for work in run.rows]
    todo = [(run, work) for run, work in every if work.generation is None]
    if not every:
        return
    done = len(every) - len(todo)
    label = "generating answers"
    _tell(on_progress, done, len(every), label)
    limits = [_limit(run.probe, work, settings) for run, work in todo]
    for batch in writer([work.prompt for _, work in todo], limits):
        for position, generation in batch:
            run, work = todo[position]
            work.generation = _generation_record(work, generation, run.probe.cut_at)
            if store is not None:
                store.append(run.probe.name, run.key, [work.generation])
        done += len(batch)
        _tell(on_progress, done, len(every), label)


def cut_text(text: str, marks: Sequence[str]) -> str:
    """The text up to the first of the marks in it; all of it if it has none."""
    return text[: min((place for mark in marks if (place := text.find(mark)) >= 0), default=None)]


def _generation_record(
    work: _RowWork, generation: Generation, cut_at: Sequence[str]
) -> dict[str, Any]:
    text = cut_text(generation.text, cut_at)
    return {
        "kind": "generation",
        "index": work.row.index,
        "text": text,
        "ids": list(generation.token_ids),
        "finished": generation.finished or text != generation.text,
    }


def _limit(probe: Probe, work: _RowWork, settings: EvaluationSettings) -> int:
    most = probe.max_new_tokens or settings.max_new_tokens
    if settings.max_total_tokens is None:
        return most
    return max(0, min(most, settings.max_total_tokens - len(work.prompt)))


def _tell(on_progress: Callable[..., None] | None, done: int, total: int, label: str) -> None:
    if on_progress is not None:
        on_progress(done, total, label)
