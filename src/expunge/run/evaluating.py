"""Evaluation in a run folder: tables per model, results from tables, both kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.benchmarks import Benchmark, benchmarks
from expunge.core.errors import InputError, Problem
from expunge.core.files import cache_root
from expunge.core.results import ModelResults
from expunge.data import RowSet, Template
from expunge.evaluation import (
    EvaluationSettings,
    EvaluationStore,
    Probe,
    ProbeTable,
    TablePool,
    run_probes,
)
from expunge.run.config import RunConfig
from expunge.run.folder import RunFolder

if TYPE_CHECKING:
    from expunge.evaluation.runner import Progress

Tables = Mapping[str, ProbeTable]
RESULTS = "results.json"
ROLES = ("base", "target", "unlearned", "retain")


def run_benchmark(config: RunConfig) -> Benchmark:
    """The benchmark of a run.

    Raises:
        InputError: The run has no evaluation, or names an unknown benchmark.
    """
    name = config.benchmark()
    if name is None:
        raise InputError(Problem(where="evaluation", message="is null; nothing is measured"))
    return benchmarks.get(name)


def run_settings(config: RunConfig) -> EvaluationSettings:
    """How models are run: the preset, with what the configuration says about it."""
    section = config.evaluation
    assert section is not None, "checked by run_benchmark"
    chosen: dict[str, Any] = {"batch_tokens": section.batch_tokens}
    if section.max_new_tokens is not None:
        chosen["max_new_tokens"] = section.max_new_tokens
    return run_benchmark(config).settings(section.preset, **chosen)


def run_probes_of(config: RunConfig, forget: RowSet, retain: RowSet | None) -> list[Probe]:
    """The probes of a run."""
    section = config.evaluation
    assert section is not None, "checked by run_benchmark"
    return run_benchmark(config).build_probes(
        forget, retain, preset=section.preset, rows=section.rows
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
        on_progress: Told how far it is.
    """
    shared = TablePool(cache_root() / "evaluations")
    tables = run_probes(
        model,
        tokenizer,
        template,
        probes,
        settings,
        store=shared,
        model_id=model_id,
        on_progress=on_progress,
    )
    if folder is not None:
        own = EvaluationStore(folder)
        for table in tables.values():
            if own.find(table.probe, str(table.info.get("key"))) is None:
                own.save(table)
    return tables


def retain_tables(config: RunConfig, folder: RunFolder) -> Tables | None:
    """Stored tables of the retain model: of `retain_run`, else of this run, else None."""
    stores = [EvaluationStore(folder.evaluation / "retain")]
    if config.evaluation is not None and config.evaluation.retain_run is not None:
        other = RunFolder(path=Path(config.evaluation.retain_run))
        stores.insert(0, EvaluationStore(other.evaluation / "retain"))
    for store in stores:
        if (store.folder / "manifest.json").is_file():
            return store.load()
    return None


def score_run(config: RunConfig, folder: RunFolder) -> dict[str, ModelResults]:
    """Results of every evaluated model of a run from its stored tables; no model is loaded.

    Raises:
        InputError: Nothing is stored.
    """
    benchmark = run_benchmark(config)
    roles = [role for role in ROLES if stored(folder, role)]
    if not roles:
        raise InputError(
            Problem(
                where=str(folder.path),
                message="holds no stored evaluation; make one with: expunge evaluate",
            )
        )
    reference = retain_tables(config, folder)
    results = {}
    for role in roles:
        results[role] = benchmark.score_tables(
            EvaluationStore(folder.evaluation / role).load(),
            reference,
            preset=None if config.evaluation is None else config.evaluation.preset,
            role=role,
            model=_model_name(folder, role),
        )
        results[role].save(folder.evaluation / role / RESULTS)
    return results


def stored(folder: RunFolder, role: str) -> bool:
    """Whether tables of a role are in the run folder."""
    return (folder.evaluation / role / "manifest.json").is_file()


def _model_name(folder: RunFolder, role: str) -> str:
    from expunge.run.folder import read_manifest

    manifest = read_manifest(folder)
    summary = None if manifest is None else manifest.models.get(role)
    return role if summary is None else summary.path


def scores_table(results: Mapping[str, ModelResults]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table a person sees at the end of a run: a row per measure.

    Measures that no model has a value for are left out; `reasons` says why.
    """
    marks = {"higher": "higher is better", "lower": "lower is better"}
    marks |= {"closer_to_retain": "closer to retain is better", "none": ""}
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


def reasons(results: Mapping[str, ModelResults]) -> list[str]:
    """Why values are absent: each reason once, with the measures, and the models unless it is all.

    A probe that the benchmark leaves out is no reason; only what depends on it is listed.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for role, result in results.items():
        for key, score in result.scores.items():
            if score.value is None and score.reason and "/" not in key:
                found.setdefault(score.reason, {}).setdefault(key, []).append(role)
    lines = []
    for reason, keys in found.items():
        where = [
            key if len(roles) == len(results) else f"{key} ({', '.join(roles)})"
            for key, roles in keys.items()
        ]
        lines.append(f"{', '.join(where)}: {reason}")
    return lines
