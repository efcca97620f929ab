"""Evaluations from and for other projects: `expunge import` and `expunge export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from expunge.benchmarks import Benchmark
from expunge.core.errors import InputError, Problem, did_you_mean
from expunge.core.files import atomic_write_text
from expunge.core.results import ModelResults, ModelSummary, RunManifest, load_record
from expunge.data.tofu import TOFU_SPLITS
from expunge.report import not_assessable_of, write_report
from expunge.run.config import RunConfig
from expunge.run.environment import machine, versions
from expunge.run.evaluating import (
    RESULTS,
    ROLES,
    run_benchmark,
    score_run,
    scores_table,
    stored,
)
from expunge.run.exchange_names import KNOWN, counterpart, family_of_benchmark, key_of, scale_of
from expunge.run.exchange_read import Imported, read_evaluation
from expunge.run.exchange_write import Exported, export_open_unlearning
from expunge.run.folder import RunFolder, command_line, now, read_manifest
from expunge.run.imported import IMPORTED, store_import, stored_tables, tables_of, with_imported
from expunge.run.render import to_yaml
from expunge.run.resolve import load_config
from expunge.run.sections import DataConfig, DataSource, EvaluationConfig, ModelConfig
from expunge.run.ui import Ui

__all__ = [
    "export_open_unlearning",
    "export_run",
    "import_evaluation",
    "read_evaluation",
    "tables_of",
    "with_imported",
]

_SIZES: Final = {40: "forget01", 200: "forget05", 300: "forget10", 400: "forget10"}
"""TOFU's forget splits by the rows of an evaluation; the classic one stops at 300."""

_SLACK: Final = 1e-4
"""Relative difference from the file's own aggregate that is worth a note."""


def import_evaluation(
    file: Path | str, output: Path | str, *, role: str, split: str | None = None, ui: Ui
) -> Path:
    """Put an evaluation file of another project into a run folder, score it and report.

    A folder may take several files, one per role, and may be that of a run made here: so models of
    two projects are compared.

    Args:
        file: The file; see `read_evaluation`.
        output: The run folder; made if there is none.
        role: "target", "retain", "unlearned", "base".
        split: The forget set of the evaluation, such as "forget10"; by the number of rows if None.
        ui: Where results and notes go.

    Returns:
        The run folder.

    Raises:
        InputError: The file or its fit to the folder is at fault.
    """
    found = read_evaluation(file)
    folder = RunFolder(path=Path(output))
    config = _config_for(found, folder, split)
    _check_free(folder, role)
    ui.stage(f"Import {found.source} as the {role} model")
    store_import(found, folder.evaluation / role)
    notes = list(_notes(found, role, run_benchmark(config), config))
    if not (folder.path / "config.yaml").exists():
        atomic_write_text(folder.path / "config.yaml", to_yaml(config))
    _manifest(folder, config, role, str(file), notes).save(folder.manifest)
    for note in notes:
        ui.note(note)
    results = score_imported(config, folder)
    columns, rows = scores_table(results)
    ui.table("Results", columns, rows)
    for text in not_assessable_of(results):
        ui.note(f"Not assessable: {text}")
    ui.note(f"Report: {write_report(folder.path)}")
    return folder.path


def score_imported(config: RunConfig, folder: RunFolder) -> dict[str, ModelResults]:
    """Results of every model in a run folder, imported values included."""
    benchmark, section = run_benchmark(config), config.evaluation
    preset = None if section is None else section.preset
    results = score_run(config, folder) if any(stored(folder, role) for role in ROLES) else {}
    for role in ROLES:
        place = folder.evaluation / role
        if not (place / IMPORTED).is_file():
            continue
        if role not in results:  # a summary: there is nothing to compute from
            nothing = benchmark.score_tables({}, preset=preset, role=role, model=role)
            results[role] = with_imported(nothing, benchmark, place)
            results[role].save(place / RESULTS)
    return {role: results[role] for role in ROLES if role in results}


def export_run(run: Path | str, output: Path | str | None, *, role: str, ui: Ui) -> Exported:
    """Write a model's results of a run folder as open-unlearning's files.

    Args:
        run: The run folder.
        output: Folder for the files; `open-unlearning/ROLE` in the run folder if None.
        role: Whose results.
        ui: Where the names of the files, and what is not in them, go.

    Raises:
        InputError: The run has no results of that model.
    """
    place = RunFolder(path=Path(run)).evaluation / role
    if not (place / RESULTS).is_file():
        others = sorted(path.parent.name for path in Path(run).glob(f"evaluation/*/{RESULTS}"))
        message = f"has no results of the {role} model; " + (
            f"there are those of: {', '.join(others)} (--role)"
            if others
            else "make them with: expunge evaluate, or expunge score"
        )
        raise InputError(Problem(where=str(run), message=message))
    results = load_record(ModelResults, place / RESULTS)
    tables = stored_tables(place)
    target = Path(run) / "open-unlearning" / role if output is None else Path(output)
    exported = export_open_unlearning(results, tables, target)
    for path in exported.files:
        ui.note(f"Written: {path}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in exported.left_out.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        ui.note(f"Left out: {', '.join(names)}: {reason}")
    for note in exported.notes:
        ui.note(note)
    return exported


# The run folder ---------------------------------------------------------------------------------


def _config_for(found: Imported, folder: RunFolder, split: str | None) -> RunConfig:
    """The configuration in the folder, which the file has to fit; else a new one."""
    path = folder.path / "config.yaml"
    if not path.is_file():
        return _new_config(found, folder, split)
    config = load_config(path)
    if config.evaluation is None:
        config = config.model_copy(update={"evaluation": EvaluationConfig()})
    here = run_benchmark(config).name
    if family_of_benchmark(here) != found.family:
        message = f"is a run of the benchmark {here}; {found.source} belongs into another folder"
        raise InputError(Problem(where=str(folder.path), message=message))
    source = config.data.forget.source
    if split is not None and _forget_source(split, found) != source:
        message = (
            f"is a run with the forget set {source}, and the file is of {split}; "
            "numbers of two forget sets cannot be compared. Choose another folder"
        )
        raise InputError(Problem(where=str(folder.path), message=message))
    return config


def _new_config(found: Imported, folder: RunFolder, split: str | None) -> RunConfig:
    source = _forget_source(split or _guessed_split(found), found)
    benchmark, preset = None, None
    if found.family == "muse":
        benchmark, preset = "muse", "muse_ou"
    elif source.startswith("tofu:"):
        preset = "tofu_classic" if found.layout == "TOFU log" else "tofu_ou"
    return RunConfig(
        name=folder.path.name or "import",
        output_dir=str(folder.path),
        model=ModelConfig(path=f"imported from {found.source}"),
        data=DataConfig(forget=DataSource(source=source)),
        evaluation=EvaluationConfig(benchmark=benchmark, preset=preset),
    )


def _guessed_split(found: Imported) -> str:
    """The forget set by the number of its rows.

    Raises:
        InputError: It cannot be told.
    """
    if found.family == "muse":
        return "muse"
    rows = len(found.tables["forget"]) if "forget" in found.tables else 0
    if rows not in _SIZES:
        size = f"its {rows} forget rows are no split of TOFU" if rows else "it has no forget rows"
        message = f"--split is needed to say what was to be forgotten, as in forget10: {size}"
        raise InputError(Problem(where=found.source, message=message))
    return _SIZES[rows]


def _forget_source(split: str, found: Imported) -> str:
    """The data source that a split stands for.

    Raises:
        InputError: It is a name without a colon or a point that TOFU does not have.
    """
    if found.family == "muse" or ":" in split or "/" in split or "." in split:
        return split
    if split not in TOFU_SPLITS:
        raise InputError(f"--split {split}: no split of TOFU. {did_you_mean(split, TOFU_SPLITS)}")
    return f"tofu:{split}"


def _check_free(folder: RunFolder, role: str) -> None:
    """Nothing that was measured here is overwritten; an earlier import is."""
    place = folder.evaluation / role
    if any(place.glob("*")) and not (place / IMPORTED).is_file():
        message = (
            f"holds an evaluation of the {role} model that was made here. "
            "Choose another --role or another folder"
        )
        raise InputError(Problem(where=str(folder.path), message=message))


def _manifest(
    folder: RunFolder, config: RunConfig, role: str, file: str, notes: list[str]
) -> RunManifest:
    """The manifest of the folder with one more model in it."""
    former = read_manifest(folder)
    if former is None:
        former = RunManifest(
            name=config.name,
            command=command_line(),
            status="finished",
            started=now(),
            finished=now(),
            config=config.model_dump(mode="json"),
            versions=versions(),
            machine=machine(),
        )
    about = _about(role)
    kept = [note for note in former.notes if not note.startswith(about)]
    return former.model_copy(
        update={
            "models": {**former.models, role: ModelSummary(path=file)},
            "notes": [*kept, *notes],
        }
    )


# What a reader must know ------------------------------------------------------------------------


def _about(role: str) -> str:
    return f"Imported {role} model: "


def _notes(found: Imported, role: str, benchmark: Benchmark, config: RunConfig) -> Iterator[str]:
    """Where the numbers come from, what is uncertain about them, and what was not taken."""
    about = _about(role)
    without_text = [
        probe for probe, table in found.tables.items() if not table.info["imported"]["texts"]
    ]
    matched = "; its rows are matched by position" if found.tables else "; it has aggregates only"
    if without_text:
        matched += f" (no texts: {', '.join(without_text)})"
    yield f"{about}not run here, numbers from {found.description}{matched}."
    if found.unknown:
        yield f"{about}not taken, unknown here: {', '.join(found.unknown)}."
    for note in (*found.notes, *_disagreements(found, benchmark, config)):
        yield about + note


def _disagreements(found: Imported, benchmark: Benchmark, config: RunConfig) -> Iterator[str]:
    """Aggregates that do not follow from the samples beside them."""
    section = config.evaluation
    preset = benchmark.preset(None if section is None else section.preset)
    scores: Mapping[str, Any] = benchmark.score_tables(found.tables, preset=preset.name).scores
    for name, value in found.values.items():
        known = KNOWN[found.family][name]
        here = counterpart(known, benchmark.measures, benchmark.aggregates)
        score = None if here is None else scores.get(key_of(here))
        if here is None or score is None or score.value is None:
            continue
        computed = score.value / scale_of(here)
        if abs(computed - value) > _SLACK * max(abs(value), 1e-3):
            yield f"{name} is {value:.6g} in the file and {computed:.6g} from its samples."
