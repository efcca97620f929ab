"""Evaluation in a run folder: tables per model, results from tables, both kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.benchmarks import Benchmark, benchmarks
from expunge.core.errors import InputError, Problem
from expunge.core.files import cache_root
from expunge.core.results import ModelResults, Record, Score, load_record
from expunge.data import RowSet, Template
from expunge.evaluation import (
    EvaluationSettings,
    EvaluationStore,
    Probe,
    ProbeTable,
    TablePool,
    run_probes,
)
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.harness_tasks import HarnessTask, harness_task, tasks_for
from expunge.evaluation.measures import Measure
from expunge.evaluation.store import Beside
from expunge.metrics import metrics
from expunge.run.check_data import load_source
from expunge.run.config import RunConfig
from expunge.run.folder import RunFolder, read_manifest

if TYPE_CHECKING:
    from expunge.evaluation.runner import Progress
    from expunge.run.ui import Ui

Tables = Mapping[str, ProbeTable]
Notes = Callable[[Mapping[str, Tables], Sequence[Tables]], list[str]]
RESULTS = "results.json"
EXTRA = "extra.json"
ROLES = ("base", "target", "unlearned", "retain")


class ExtraScores(Record):
    """What `extra.json` holds: scores of a model that no table gives, by key."""

    scores: dict[str, Score]


def run_benchmark(config: RunConfig) -> Benchmark:
    """The benchmark of a run.

    Raises:
        InputError: The run has no evaluation, or names an unknown benchmark.
    """
    name = config.benchmark()
    if name is None:
        raise InputError(Problem(where="evaluation", message="is null; nothing is measured"))
    assert config.evaluation is not None, "a name comes with a section"
    return benchmarks.get(name).with_further(tuple(config.evaluation.also))


def run_settings(config: RunConfig) -> EvaluationSettings:
    """How models are run: the preset, with what the configuration says about it."""
    section = config.evaluation
    assert section is not None, "checked by run_benchmark"
    chosen: dict[str, Any] = {
        "batch_tokens": section.batch_tokens,
        "generator": section.generator,
    }
    if section.max_new_tokens is not None:
        chosen["max_new_tokens"] = section.max_new_tokens
    return run_benchmark(config).settings(section.preset, **chosen)


def run_probes_of(config: RunConfig, forget: RowSet, retain: RowSet | None) -> list[Probe]:
    """The probes of a run."""
    section = config.evaluation
    assert section is not None, "checked by run_benchmark"
    if section.retain is not None:
        retain = load_source(section.retain, "retain")
    further = {name: load_source(source, name) for name, source in section.also.items()}
    return run_benchmark(config).build_probes(
        forget,
        retain,
        preset=section.preset,
        rows=section.rows,
        options=section.options,
        further=further,
    )


def model_tables(
    model: Any,
    tokenizer: Any,
    template: Template,
    probes: Sequence[Probe],
    settings: EvaluationSettings,
    *,
    model_id: str,
    folder: Path | None = None,
    model_folder: Path | None = None,
    on_progress: Progress | None = None,
) -> Tables:
    """Per-sample tables of one model, from the cache where it has them, kept in `folder` as well.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        template: How rows become tokens.
        probes: What is asked.
        settings: How.
        model_id: Fingerprint of the weights.
        folder: Folder of this model's evaluation in the run.
        model_folder: Folder that the model was loaded from, for a generator that loads it itself.
        on_progress: Told how far it is.
    """
    pool = TablePool(cache_root() / "evaluations")
    return run_probes(
        model,
        tokenizer,
        template,
        probes,
        settings,
        store=pool if folder is None else Beside(EvaluationStore(folder), pool),
        model_id=model_id,
        model_folder=model_folder,
        on_progress=on_progress,
    )


def retain_tables(config: RunConfig, folder: RunFolder) -> list[Tables]:
    """Stored tables of every retain model: of `retain_run`, else of this run; maybe none."""
    from expunge.run.imported import tables_of

    named = config.evaluation.retain_run if config.evaluation is not None else ()
    if named:
        return [tables_of(path) for path in named]
    own = EvaluationStore(folder.evaluation / "retain")
    return [own.load()] if (own.folder / "manifest.json").is_file() else []


def score_run(
    config: RunConfig,
    folder: RunFolder,
    ui: Ui | None = None,
    *,
    notes: Notes | None = None,
) -> dict[str, ModelResults]:
    """Results of every evaluated model of a run from its stored tables.

    No evaluated model is loaded; encoders and classifiers only for answers they have not judged.
    The results name the runs of the retain models that they were computed with.

    Args:
        config: The run.
        folder: Its folder.
        ui: Where progress and warnings go.
        notes: Looks at the tables by role and says what a reader of the scores must know; the
            sentences go to `ui` and into the results.

    Raises:
        InputError: Nothing is stored.
    """
    from expunge.run.annotating import Annotator
    from expunge.run.imported import stored_tables, with_imported

    benchmark = run_benchmark(config)
    section = config.evaluation
    assert section is not None, "checked by run_benchmark"
    roles = [role for role in ROLES if stored(folder, role)]
    if not roles:
        raise InputError(
            Problem(
                where=str(folder.path),
                message="holds no stored evaluation; make one with: expunge evaluate",
            )
        )
    manifest = read_manifest(folder)
    base = None if manifest is None else manifest.models.get("base")
    annotator = Annotator(config, benchmark, None if base is None else base.path, ui)
    tables = {
        role: annotator.complete(folder, role, stored_tables(folder.evaluation / role))
        for role in roles
    }
    retains = retain_tables(config, folder)
    settings: dict[str, Any] = {"retain_run": list(section.retain_run)}
    if notes is not None and (said := notes(tables, retains)):
        settings["notes"] = said
        if ui is not None:
            for text in said:
                ui.warning(text)
    results = {}
    for role in roles:
        evidence = Evidence(
            tables=tables[role],
            retains=retains,
            initial=tables.get("target"),
            base=tables.get("base"),
            absent=annotator.reasons,
        )
        found = benchmark.score_tables(
            evidence,
            preset=section.preset,
            options=section.options,
            role=role,
            model=_model_name(folder, role),
            settings=settings,
            extra=load_extra(folder.evaluation / role),
        )
        results[role] = with_imported(found, benchmark, folder.evaluation / role)
        results[role].save(folder.evaluation / role / RESULTS)
    return results


def metric_table(
    config: RunConfig, folder: RunFolder, wanted: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table with any metrics of the registry, from stored tables.

    Args:
        config: The run.
        folder: Its folder.
        wanted: "NAME" for every probe that has the columns, or "PROBE/NAME".

    Raises:
        InputError: There is no such metric, or no table has what it needs.
    """
    retains = retain_tables(config, folder)
    stores = {role: EvaluationStore(folder.evaluation / role) for role in ROLES}
    tables = {role: store.load() for role, store in stores.items() if stored(folder, role)}
    probes = list(dict.fromkeys(probe for found in tables.values() for probe in found))
    options = {} if config.evaluation is None else config.evaluation.options
    rows = []
    for text in wanted:
        probe, _, name = text.rpartition("/")
        item = metrics.get(name)
        lines, why = [], ""
        for where in [probe] if probe else probes:
            measure = Measure(name=name, probe=where, metric=name, better="none", unit="")
            scores = [
                measure.score(
                    Evidence(
                        tables=found,
                        retains=retains,
                        initial=tables.get("target"),
                        base=tables.get("base"),
                    ),
                    options,
                )
                for found in tables.values()
            ]
            why = next((score.reason for score in scores if score.reason), "")
            if any(score.value is not None for score in scores):
                counts = "/".join(dict.fromkeys(str(score.n) for score in scores))
                lines.append(
                    [measure.key, *(_cell(s.value) for s in scores), counts, item.direction]
                )
        if not lines:
            raise InputError(Problem(where=text, message=why))
        rows += lines
    return ["metric", *tables, "n", "good direction"], rows


def wanted_tasks(config: RunConfig) -> list[HarnessTask]:
    """Tasks of lm-evaluation-harness that a run asks for, each once."""
    section = config.evaluation
    if section is None:
        return []
    found: dict[str, HarnessTask] = {}
    for name in section.harness.tasks:
        own = tasks_for(run_benchmark(config).harness, section.options)
        for task in own if name == "benchmark" else [harness_task(name)]:
            found.setdefault(task.key, task)
    return list(found.values())


def load_extra(folder: Path) -> dict[str, Score]:
    """Scores that came from the model itself and not from its tables."""
    path = folder / EXTRA
    return dict(load_record(ExtraScores, path).scores) if path.is_file() else {}


def save_extra(folder: Path, scores: Mapping[str, Score]) -> None:
    """Keep such scores beside the tables; equal keys are replaced."""
    ExtraScores(scores={**load_extra(folder), **scores}).save(folder / EXTRA)


def stored(folder: RunFolder, role: str) -> bool:
    """Whether tables of a role are in the run folder."""
    names = ("manifest.json", "imported.json")
    return any((folder.evaluation / role / name).is_file() for name in names)


def _model_name(folder: RunFolder, role: str) -> str:
    manifest = read_manifest(folder)
    summary = None if manifest is None else manifest.models.get(role)
    return role if summary is None else summary.path


def scores_table(results: Mapping[str, ModelResults]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table a person sees at the end of a run: a row per measure.

    Measures that no model has a value for are left out; `report.not_assessable_of` says why.
    """
    marks = {"higher": "higher is better", "lower": "lower is better"}
    marks |= {"closer_to_retain": "closer to retain is better", "none": ""}
    marks |= {
        "closer_to_zero": "closer to 0 is better",
        "closer_to_half": "closer to 0.5 is better",
    }
    keys = list(dict.fromkeys(key for found in results.values() for key in found.scores))
    columns = ["measure", *results, "n", "good direction"]
    rows = []
    for key in keys:
        scores = [found.scores.get(key) for found in results.values()]
        present = [score for score in scores if score is not None and score.value is not None]
        if present:
            cells = [_cell(None if score is None else score.value) for score in scores]
            counts = "/".join(dict.fromkeys(str(score.n) for score in present))
            name = "forget_quality: p-value" if key == "forget_quality" else key
            rows.append([name, *cells, counts, marks[present[0].better]])
    tests = [found.forget_quality for found in results.values()]
    if any(test is not None and test.statistic is not None for test in tests):
        cells = [_cell(None if test is None else test.statistic) for test in tests]
        counts = "/".join(dict.fromkeys(str(test.n) for test in tests if test is not None))
        rows.append(["forget_quality: distance D", *cells, counts, "lower is better"])
    return columns, rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
