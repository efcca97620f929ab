"""Several unlearning runs that belong together: requests one after the other, or arms side by side.

Every request and every arm is an ordinary run folder, so it resumes, scores and reports like one.
The folder around them holds `scenario.json`, the rows each of them was given, and a report of them
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import InputError, Problem
from expunge.core.scenario import SCENARIO, ScenarioRecord, Stage
from expunge.data import RowSet, check_overlap
from expunge.data.rows import Row, row_set
from expunge.data.write import write_rows
from expunge.report.scenario import write_scenario_report
from expunge.run.check import check
from expunge.run.check_data import load_source
from expunge.run.config import RunConfig
from expunge.run.folder import RunFolder
from expunge.run.pipelines import Context, finetuned, run_all
from expunge.run.sections import DataSource, ScenarioConfig
from expunge.run.ui import Ui


class _Request(NamedTuple):
    """A forget request with the rows that are to be kept meanwhile."""

    name: str
    forget: RowSet
    retain: RowSet


def run_requests(config: RunConfig, ui: Ui) -> Path:
    """Unlearn the requests of a scenario one after the other; returns the folder of all.

    Closer Look (arXiv:2410.08109) calls it continual unlearning, MUSE (arXiv:2407.06460)
    sustainability, or with `start: target` and growing requests scalability. After each request the
    model is asked for the rows of all earlier ones again.

    Args:
        config: With a scenario section that names the requests.
        ui: Where progress goes.

    Raises:
        InputError: A request cannot be read, or is among the rows to keep.
    """
    scenario = _scenario(config)
    folder = Path(config.output_dir)
    requests = _requests(config, scenario)
    _write_rows(folder, requests)
    stages = [_stage_config(config, scenario, requests, i) for i in range(len(requests))]
    _check_all(stages, ui)
    record = ScenarioRecord(
        name=config.name,
        kind="requests",
        start=scenario.start,
        reference=scenario.reference,
        stages=[
            Stage(
                name=request.name,
                title=request.forget.origin,
                folder=Path(stage.output_dir).name,
                num_rows=len(request.forget),
            )
            for request, stage in zip(requests, stages, strict=True)
        ],
    )
    record.save(folder / SCENARIO)
    target = _target(config, stages[0], ui)
    retain = _retain_model(config, requests[0], stages[0], ui)
    start = target
    for i, stage in enumerate(stages):
        ui.stage(f"Request {i + 1} of {len(stages)}: {record.stages[i].title}")
        moved = _starting_at(stage, start, target if scenario.reference == "fixed" else None, i)
        run_all(moved, ui, target=start, retain=retain)
        write_scenario_report(folder)
        if scenario.start == "previous":
            start = str(RunFolder(path=Path(stage.output_dir)).model)
    ui.note(f"Report: {write_scenario_report(folder)}")
    return folder


def run_arms(config: RunConfig, arms: Sequence[Arm], ui: Ui) -> Path:
    """Run arms that learn and forget different rows, each from the same base model.

    Args:
        config: What they have in common; needs a finetune section.
        arms: The arms.
        ui: Where progress goes.
    """
    folder = Path(config.output_dir)
    stages = []
    for arm in arms:
        place = folder / "data"
        for part, rows in (("learn", arm.learn), ("forget", arm.forget), ("retain", arm.retain)):
            write_rows(place / f"{arm.name}_{part}.jsonl", rows)
        stages.append(_arm_config(config, arm, folder))
    _check_all(stages, ui)
    ScenarioRecord(
        name=config.name,
        kind="arms",
        stages=[
            Stage(name=arm.name, title=arm.title, folder=arm.name, num_rows=len(arm.forget))
            for arm in arms
        ],
    ).save(folder / SCENARIO)
    for arm, stage in zip(arms, stages, strict=True):
        ui.stage(f"{arm.name}: {arm.title}")
        run_all(stage, ui)
        write_scenario_report(folder)
    ui.note(f"Report: {write_scenario_report(folder)}")
    return folder


class Arm(NamedTuple):
    """One arm of an experiment: what a model learns first, then forgets and keeps."""

    name: str
    title: str
    learn: RowSet
    forget: RowSet
    retain: RowSet


def _scenario(config: RunConfig) -> ScenarioConfig:
    if config.scenario is None or not config.scenario.requests:
        raise InputError(
            Problem(
                where="scenario.requests",
                message="is required: the forget sets, one request each, in order",
            )
        )
    return config.scenario


def _requests(config: RunConfig, scenario: ScenarioConfig) -> list[_Request]:
    """The requests with their retain sets: the base and what is not requested yet."""
    if config.data.retain is None:
        raise InputError(Problem(where="data.retain", message="is required by a scenario"))
    base = load_source(config.data.retain, "retain")
    forgets = [load_source(source, "forget") for source in scenario.requests]
    found = []
    for i, forget in enumerate(forgets):
        check_overlap(forget, base)
        kept: list[Row] = list(base)
        if scenario.pending == "retain" and scenario.start == "previous":
            kept += [row for later in forgets[i + 1 :] for row in later]
        origin = base.origin if len(kept) == len(base) else f"{base.origin} and later requests"
        retain = row_set(kept, name="retain", origin=origin)
        found.append(_Request(f"request_{i + 1:02d}", forget, retain))
    return found


def _write_rows(folder: Path, requests: Sequence[_Request]) -> None:
    for request in requests:
        write_rows(_rows_file(folder, request.name, "forget"), request.forget)
        write_rows(_rows_file(folder, request.name, "retain"), request.retain)


def _rows_file(folder: Path, name: str, part: str) -> Path:
    return folder / "data" / f"{name}_{part}.jsonl"


def _stage_config(
    config: RunConfig, scenario: ScenarioConfig, requests: Sequence[_Request], i: int
) -> RunConfig:
    """The configuration of one request; where it starts from is filled in when that exists."""
    folder, request = Path(config.output_dir), requests[i]

    def source(name: str, part: str) -> DataSource:
        return DataSource(source=str(_rows_file(folder, name, part)))

    changes: dict[str, Any] = {
        "name": f"{config.name}-{request.name}",
        "output_dir": str(folder / request.name),
        "scenario": None,
        "data": config.data.model_copy(
            update={
                "forget": source(request.name, "forget"),
                "retain": source(request.name, "retain"),
            }
        ),
    }
    if config.evaluation is not None:
        nested = scenario.start == "target"
        earlier = {} if nested else {r.name: source(r.name, "forget") for r in requests[:i]}
        named = config.benchmark()
        changes["evaluation"] = config.evaluation.model_copy(
            # What is kept is measured on the same rows after every request.
            update={
                "also": {**config.evaluation.also, **earlier},
                "retain": config.evaluation.retain or config.data.retain,
                "benchmark": named,
                "fluency": config.evaluation.fluency
                or (config.model.path if config.finetune is not None else None),
            }
        )
    if config.proxies.model is None and config.proxies.endpoint is None:
        # The start model of a later request is no base model.
        changes["proxies"] = config.proxies.model_copy(update={"model": config.model.path})
    return config.model_copy(update=changes)


def _arm_config(config: RunConfig, arm: Arm, folder: Path) -> RunConfig:
    assert config.finetune is not None, "checked by the caller"

    def source(part: str) -> DataSource:
        return DataSource(source=str(folder / "data" / f"{arm.name}_{part}.jsonl"))

    return config.model_copy(
        update={
            "name": f"{config.name}-{arm.name}",
            "output_dir": str(folder / arm.name),
            "scenario": None,
            "data": config.data.model_copy(
                update={"forget": source("forget"), "retain": source("retain")}
            ),
            "finetune": config.finetune.model_copy(update={"target_data": source("learn")}),
        }
    )


def _check_all(stages: Sequence[RunConfig], ui: Ui) -> None:
    """Everything that is wrong with any of the runs, before weights are loaded."""
    for stage in stages:
        found = check(stage, verb="run")
        found.raise_if_problems(stage.output_dir)
        for text in found.warnings if stage is stages[0] else ():
            ui.warning(text)


def _target(config: RunConfig, first: RunConfig, ui: Ui) -> str:
    """The model that the first request starts from."""
    if config.finetune is None:
        return config.model.path
    return str(finetuned(Context(first, ui), "target"))


def _retain_model(config: RunConfig, request: _Request, first: RunConfig, ui: Ui) -> str | None:
    """A model that saw no request at all, to compare every request with."""
    section = config.evaluation
    if config.finetune is None or section is None:
        return None
    if section.roles is not None and "retain" not in section.roles:
        return None
    base = config.data.model_copy(update={"forget": first.data.forget})
    return str(finetuned(Context(first.model_copy(update={"data": base}), ui), "retain"))


def _starting_at(stage: RunConfig, start: str, reference: str | None, i: int) -> RunConfig:
    """The configuration with the model it starts from; the first one fine-tunes as it says."""
    training = stage.training
    if i and reference is not None:
        training = training.model_copy(update={"reference": reference})
    model = stage.model.model_copy(update={"path": start})
    return stage.model_copy(update={"model": model, "finetune": None, "training": training})
