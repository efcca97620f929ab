"""Whole benchmarks: from their data to the report, each from one recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from expunge.core.errors import InputError, Problem
from expunge.core.registry import Registry
from expunge.data import RowSet
from expunge.data.write import write_rows
from expunge.report.scenario import write_scenario_report
from expunge.run.check import check
from expunge.run.config import RunConfig
from expunge.run.jobs import union
from expunge.run.pipelines import run_all
from expunge.run.scenarios import Arm, run_arms, run_requests
from expunge.run.sections import DataSource, FactsConfig, ScenarioConfig
from expunge.run.ui import Ui

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A benchmark as it is run: target, retain model, unlearning, evaluation, report.

    Attributes:
        name: Its name.
        title: What is done.
        source: Where it is defined.
        recipe: Recipe it takes when no file is given.
        run: Does it; returns the folder.
        folder: What the folder of data must hold, where one is needed.
    """

    name: str
    title: str
    source: str
    recipe: str
    run: Callable[[RunConfig, Ui], Path]
    folder: str | None = None


def run_benchmark_protocol(name: str, config: RunConfig, ui: Ui) -> Path:
    """Run a benchmark; every stage that a former call finished is taken from disk.

    Args:
        name: Among `protocols`.
        config: Its recipe, resolved.
        ui: Where progress goes.

    Raises:
        InputError: There is no such benchmark, or something about its data is wrong.
    """
    protocol = protocols.get(name)
    if protocol.folder is not None and not _options(config).get("folder"):
        raise InputError(
            Problem(
                where="evaluation.options.folder",
                message=f"is required: {protocol.folder}. Give it with --folder",
            )
        )
    return protocol.run(config, ui)


def data_folder(config: RunConfig) -> Path:
    """Where rows made for a run are written."""
    return Path(config.output_dir) / "data"


def _options(config: RunConfig) -> dict[str, Any]:
    return {} if config.evaluation is None else dict(config.evaluation.options)


def _single(config: RunConfig, ui: Ui) -> Path:
    found = check(config, verb="run")
    found.raise_if_problems(config.name)
    for text in found.warnings:
        ui.warning(text)
    return run_all(config, ui)


def _with_rows(config: RunConfig, **sets: RowSet | None) -> RunConfig:
    """The configuration with row sets written to files: forget, retain, target_data, ..."""
    sources = {}
    for name, rows in sets.items():
        if rows is not None:
            path = data_folder(config) / f"{name}.jsonl"
            write_rows(path, rows)
            sources[name] = DataSource(source=str(path))
    data: dict[str, Any] = {
        name: sources.pop(name) for name in ("forget", "retain") if name in sources
    }
    changes: dict[str, Any] = {"data": config.data.model_copy(update=data)}
    if sources and config.finetune is not None:
        changes["finetune"] = config.finetune.model_copy(update=sources)
    return config.model_copy(update=changes)


def _read(config: RunConfig, read: Callable[[Path | str], R]) -> R:
    """What is in the folder of data; a damaged one is reported with whatever else is wrong.

    Raises:
        InputError: The folder or anything else of the run is not as it should be; all of it at
            once.
    """
    try:
        return read(_options(config)["folder"])
    except InputError as error:
        found = check(config, verb="run").problems
        # The rows and the probes come from the folder, which has been found wrong already.
        others = [
            each
            for each in found
            if each.where != "evaluation.options" and not each.where.startswith("data.")
        ]
        raise InputError([*error.problems, *others]) from None


def _real_world(config: RunConfig, ui: Ui) -> Path:
    from expunge.data.real_world import training_rows

    rows = _read(config, training_rows)
    return _single(_with_rows(config, forget=rows.forget, retain=rows.retain), ui)


def _muse(config: RunConfig, ui: Ui) -> Path:
    return _single(_muse_config(config), ui)


def _muse_config(config: RunConfig) -> RunConfig:
    """MUSE trains on raw/forget and raw/retain1; the target has seen all but the holdout."""
    from expunge.data.muse import load_muse

    sets = _read(config, load_muse).sets
    forget, retain = sets["raw/forget"], sets.get("raw/retain1")
    known = sets.get("train/retain", retain)
    taught = sets.get("train/full")
    if taught is None and known is not None:
        taught = union(sets.get("train/forget", forget), known, name="target")
    return _with_rows(config, forget=forget, retain=retain, target_data=taught, retain_data=known)


def _muse_scalability(config: RunConfig, ui: Ui) -> Path:
    from expunge.data.muse import scalability_sets

    return _muse_requests(config, scalability_sets(_options(config)["folder"]), "target", ui)


def _muse_sustainability(config: RunConfig, ui: Ui) -> Path:
    from expunge.data.muse import sustainability_sets

    return _muse_requests(config, sustainability_sets(_options(config)["folder"]), "previous", ui)


def _muse_requests(config: RunConfig, folds: Sequence[RowSet], start: Any, ui: Ui) -> Path:
    config = _muse_config(config)
    requests = []
    for i, rows in enumerate(folds, start=1):
        path = data_folder(config) / f"fold_{i}.jsonl"
        write_rows(path, rows)
        requests.append(DataSource(source=str(path)))
    # MUSE has one retain set for all folds.
    scenario = ScenarioConfig(requests=tuple(requests), start=start, pending="leave_out")
    return run_requests(config.model_copy(update={"scenario": scenario}), ui)


def _related_knowledge(config: RunConfig, ui: Ui) -> Path:
    from expunge.data.related import generate_related, load_related, plan_arms, write_related
    from expunge.run.relations import write_relations

    if config.finetune is None or config.evaluation is None:
        raise InputError(
            Problem(
                where="finetune",
                message="is required, and so is evaluation: the three models are taught first",
            )
        )
    given = _options(config).get("folder")
    folder = data_folder(config) / "facts" if given is None else Path(given)
    if given is None:
        wanted = (config.scenario.facts if config.scenario else None) or FactsConfig()
        facts = generate_related(
            wanted.num_facts, wanted.num_related, config.seed, strength=wanted.strength
        )
        write_related(folder, facts)
    evaluation = config.evaluation.model_copy(
        update={"options": {**config.evaluation.options, "folder": str(folder)}}
    )
    arms = plan_arms(load_related(folder) if given is None else _read(config, load_related))
    chosen = config.model_copy(update={"evaluation": evaluation, "scenario": None})
    found = run_arms(chosen, [Arm(**vars(arm)) for arm in arms], ui)
    write_relations(chosen, arms, folder, ui)
    write_scenario_report(found)  # which has had no relations to show so far
    return found


protocols: Registry[Protocol] = Registry("benchmark to run")
"""Every benchmark that can be run as a whole, by name."""

_MUSE_FOLDER = "a copy of MUSE (raw, verbmem, knowmem, privleak), its hub name, or a stand-in"

for _protocol in (
    Protocol(
        name="tofu",
        title="one forget request about invented authors",
        source="TOFU, arXiv:2401.06121",
        recipe="benchmarks/tofu",
        run=_single,
    ),
    Protocol(
        name="continual",
        title="forget requests about invented authors, one after the other",
        source="Closer Look, arXiv:2410.08109",
        recipe="benchmarks/continual",
        run=run_requests,
    ),
    Protocol(
        name="real_world",
        title="real people that a model knows from pretraining",
        source="Closer Look, arXiv:2410.08109",
        recipe="benchmarks/real_world",
        run=_real_world,
        folder="forget, forget_perturbed, neighbor and neighbor_perturbed as JSON lines",
    ),
    Protocol(
        name="muse",
        title="news or books: verbatim text, knowledge, membership, utility",
        source="MUSE, arXiv:2407.06460",
        recipe="benchmarks/muse",
        run=_muse,
        folder=_MUSE_FOLDER,
    ),
    Protocol(
        name="muse_scalability",
        title="MUSE with growing forget sets, each from the target model",
        source="MUSE, arXiv:2407.06460, C5",
        recipe="benchmarks/muse",
        run=_muse_scalability,
        folder=f"{_MUSE_FOLDER}, with scal",
    ),
    Protocol(
        name="muse_sustainability",
        title="MUSE with forget sets one after the other",
        source="MUSE, arXiv:2407.06460, C6",
        recipe="benchmarks/muse",
        run=_muse_sustainability,
        folder=f"{_MUSE_FOLDER}, with sust",
    ),
    Protocol(
        name="wmdp",
        title="hazardous knowledge: your corpora, tasks of lm-evaluation-harness",
        source="WMDP, arXiv:2403.03218",
        recipe="benchmarks/wmdp",
        run=_single,
    ),
    Protocol(
        name="related_knowledge",
        title="is a forgotten fact rebuilt from related ones: three models on generated facts",
        source="UIPE, arXiv:2503.04693, section 4",
        recipe="benchmarks/related_knowledge",
        run=_related_knowledge,
    ),
):
    protocols.add(_protocol.name, _protocol)
