"""Models on probes, in a run: the passes that need the model itself, each done once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.results import Score
from expunge.evaluation import EvaluationStore
from expunge.evaluation.gradnorm import LabelledTokens, gradient_norms
from expunge.evaluation.judges.fluency import FluencyModel, mean_nlls
from expunge.models.tensors import update_distance
from expunge.run.evaluating import (
    ROLES,
    load_extra,
    model_tables,
    run_benchmark,
    run_probes_of,
    run_settings,
    save_extra,
)

if TYPE_CHECKING:
    from expunge.run.pipelines import Context

UPDATE_DISTANCE = "update_distance"


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
    model = context.load(path, config.model.dtype).to(context.accelerator.device)
    model_tables(
        model,
        context.tokenizer,
        context.template,
        probes,
        run_settings(config),
        model_id=context.log.models[role].fingerprint,
        folder=folder,
        on_progress=context.ui.progress,
    )
    if "gradnorm" in section.passes:
        _gradient_norms(context, model, folder)
    if "lowercase" in section.passes:
        _lower_case(context, model, folder)
    _harness(context, model, folder)
    if role == "unlearned" and target is not None:
        _update_distance(folder, target, path)


def _gradient_norms(context: Context, model: Any, folder: Path) -> None:
    """The size of every row's gradient, for the attack of that name; one backward pass per row."""
    column = "answer_gradnorm"
    probes = {
        probe.name: probe for probe in run_probes_of(context.config, context.forget, context.retain)
    }
    for name in _probes_with(context, column):
        table = EvaluationStore(folder).load().get(name)
        if table is None or column in table:
            continue
        samples = [
            LabelledTokens(*context.template.encode(row.messages, row.answer))
            for row in probes[name].rows
        ]
        norms = gradient_norms(model, samples, parameters="all", on_progress=context.ui.progress)
        origin = {"pass": "gradient norm", "p": 2.0}
        EvaluationStore(folder).annotate(name, {column: norms}, {column: origin})


def _lower_case(context: Context, model: Any, folder: Path) -> None:
    """The loss on lower-cased texts, for the attack PPL/lower."""
    column = "answer_lower_nll"
    judge = FluencyModel(model, context.tokenizer)
    for name in _probes_with(context, column):
        table = EvaluationStore(folder).load().get(name)
        if table is not None and column not in table:
            nlls = mean_nlls(judge, [text.lower() for text in table["answer"]])
            origin = {"pass": "lower-cased text"}
            EvaluationStore(folder).annotate(name, {column: nlls}, {column: origin})


def _probes_with(context: Context, column: str) -> list[str]:
    """Probes on which some attack reads a column, the holdout set included."""
    section = context.config.evaluation
    assert section is not None, "asked only for runs with an evaluation"
    return run_benchmark(context.config).probes_reading(column, section.preset)


def _harness(context: Context, model: Any, folder: Path) -> None:
    """Tasks of lm-evaluation-harness that have no score yet."""
    section = context.config.evaluation
    assert section is not None, "asked only for runs with an evaluation"
    chosen = section.harness
    benchmark = run_benchmark(context.config)
    tasks: list[Any] = []
    for name in chosen.tasks:
        tasks += benchmark.harness if name == "benchmark" else [name]
    known = load_extra(folder)
    missing = [task for task in tasks if _harness_key(task) not in known]
    if not missing:
        return
    from expunge.evaluation.harness import run_harness

    def keep(key: str, score: Score) -> None:
        context.ui.note(f"{key}: {score.value if score.value is not None else score.reason}")
        save_extra(folder, {key: score})

    run_harness(
        model,
        context.tokenizer,
        missing,
        limit=chosen.limit,
        num_fewshot=chosen.num_fewshot,
        batch_size=chosen.batch_size or "auto",
        include_path=chosen.include_path,
        apply_chat_template=chosen.apply_chat_template,
        add_bos=chosen.add_bos,
        on_task=keep,
    )


def _harness_key(task: Any) -> str:
    from expunge.evaluation.harness_tasks import harness_task

    return harness_task(task).key


def _update_distance(folder: Path, target: str, path: str) -> None:
    """How far unlearning moved the weights: the Euclidean norm of the update."""
    if UPDATE_DISTANCE in load_extra(folder):
        return
    found = update_distance(target, path)
    if found is not None:
        score = Score(value=found, n=1, better="none", unit="L2 norm of the update")
        save_extra(folder, {UPDATE_DISTANCE: score})
