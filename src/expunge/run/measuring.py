"""Models on probes, in a run: the passes that need the model itself, each done once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.files import cache_root
from expunge.core.results import Score
from expunge.evaluation import EvaluationStore, Probe, TablePool
from expunge.evaluation.answers import AnswerJob, score_answers
from expunge.evaluation.gradnorm import LabelledTokens, gradient_norms
from expunge.evaluation.runner import are_stored, encoded_answer
from expunge.evaluation.store import Beside
from expunge.models.tensors import update_distance
from expunge.run.evaluating import (
    ROLES,
    load_extra,
    model_tables,
    run_benchmark,
    run_probes_of,
    run_settings,
    save_extra,
    wanted_tasks,
)

if TYPE_CHECKING:
    from expunge.run.pipelines import Context

UPDATE_DISTANCE = "update_distance"
HARNESS = "harness.json"


def evaluate_roles(context: Context, models: Mapping[str, str]) -> None:
    """Tables of every model that the run wants evaluated; the main process does the work.

    Other processes wait: the stored tables are the same for any number of them.
    """
    section = context.config.evaluation
    wanted = models if section is None or section.roles is None else section.roles
    for role, path in sorted(models.items(), key=lambda item: ROLES.index(item[0])):
        if role in wanted:
            with context.log.stage(f"Evaluate the {role} model"):
                if context.is_main:
                    _measure(context, role, path, models.get("target"))
                context.accelerator.wait_for_everyone()


def _measure(context: Context, role: str, path: str, target: str | None) -> None:
    config = context.config
    section = config.evaluation
    assert section is not None, "asked only for runs with an evaluation"
    folder = context.folder.evaluation / role
    probes = run_probes_of(config, context.forget, context.retain)
    model_id = context.log.models[role].fingerprint

    @cache
    def model() -> Any:
        """The model itself, loaded when something is really to be computed."""
        return context.load(path, config.model.dtype).to(context.accelerator.device)

    asked = (context.tokenizer, context.template, probes, run_settings(config))
    store = Beside(EvaluationStore(folder), TablePool(cache_root() / "evaluations"))
    if not are_stored(*asked, store=store, model_id=model_id, dtype=config.model.dtype):
        model_tables(
            model(),
            *asked,
            model_id=model_id,
            folder=folder,
            model_folder=Path(path) if Path(path).is_dir() else None,
            on_progress=context.ui.progress,
        )
    if "gradnorm" in section.passes:
        _gradient_norms(context, model, folder)
    if "lowercase" in section.passes:
        _lower_case(context, model, folder)
    _harness(context, model, folder)
    if role == "unlearned" and target is not None:
        _update_distance(folder, target, path)


def _gradient_norms(context: Context, model: Callable[[], Any], folder: Path) -> None:
    """The size of every row's gradient, for the attack of that name; one backward pass per row."""
    column = "answer_gradnorm"
    settings = run_settings(context.config)
    probes = {
        probe.name: probe for probe in run_probes_of(context.config, context.forget, context.retain)
    }
    for name in _probes_with(context, column):
        table = EvaluationStore(folder).load().get(name)
        if table is None or column in table:
            continue
        samples = [
            LabelledTokens(*encoded_answer(probes[name], row, context.template, settings))
            for row in probes[name].rows
        ]
        norms = gradient_norms(model(), samples, parameters="all", on_progress=context.ui.progress)
        origin = {"pass": "gradient norm", "p": 2.0, "drop_last": True, "parameters": "all"}
        EvaluationStore(folder).annotate(name, {column: norms}, {column: origin})


def _lower_case(context: Context, model: Callable[[], Any], folder: Path) -> None:
    """The loss on lower-cased texts, for the attack PPL/lower of MUSE."""
    column = "answer_lower_nll"
    settings = run_settings(context.config)
    probes = _probes(context)
    for name in _probes_with(context, column):
        table = EvaluationStore(folder).load().get(name)
        if table is None or column in table:
            continue
        probe = replace(probes[name], variants=False)
        lowered = [replace(row, answer=row.answer.lower()) for row in probe.rows]
        encoded = [encoded_answer(probe, row, context.template, settings) for row in lowered]
        jobs = [AnswerJob(prompt, (answer,)) for prompt, answer in encoded]
        nlls = [math.nan] * len(jobs)
        for batch in score_answers(model(), jobs, batch_tokens=settings.batch_tokens):
            for position, (scores,) in batch:
                if scores.logps:
                    nlls[position] = -math.fsum(scores.logps) / len(scores.logps)
        origin = {"pass": "lower-cased text"}
        EvaluationStore(folder).annotate(name, {column: nlls}, {column: origin})


def _probes(context: Context) -> dict[str, Probe]:
    found = run_probes_of(context.config, context.forget, context.retain)
    return {probe.name: probe for probe in found}


def _probes_with(context: Context, column: str) -> list[str]:
    """Probes on which some attack reads a column, the holdout set included."""
    section = context.config.evaluation
    assert section is not None, "asked only for runs with an evaluation"
    return run_benchmark(context.config).probes_reading(column, section.preset)


def _harness(context: Context, model: Callable[[], Any], folder: Path) -> None:
    """Tasks of lm-evaluation-harness that have no score yet; what failed is tried again."""
    section = context.config.evaluation
    assert section is not None, "asked only for runs with an evaluation"
    chosen = section.harness
    known = {key for key, score in load_extra(folder).items() if score.value is not None}
    tasks = [task for task in wanted_tasks(context.config) if task.key not in known]
    if not tasks:
        return
    from expunge.evaluation.harness import run_harness

    def keep(key: str, score: Score) -> None:
        context.ui.note(f"{key}: {score.value if score.value is not None else score.reason}")
        save_extra(folder, {key: score})

    results = run_harness(
        model(),
        context.tokenizer,
        tasks,
        limit=chosen.limit,
        num_fewshot=chosen.num_fewshot,
        batch_size=chosen.batch_size or "auto",
        include_path=chosen.include_path,
        apply_chat_template=chosen.apply_chat_template,
        add_bos=chosen.add_bos,
        on_task=keep,
    )
    results.save(folder / HARNESS)


def _update_distance(folder: Path, target: str, path: str) -> None:
    """How far unlearning moved the weights: the Euclidean norm of the update."""
    if UPDATE_DISTANCE in load_extra(folder):
        return
    found = update_distance(target, path)
    if found is not None:
        score = Score(value=found, n=1, better="none", unit="L2 norm of the update")
        save_extra(folder, {UPDATE_DISTANCE: score})
