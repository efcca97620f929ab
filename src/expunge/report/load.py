"""Reading a run folder. A missing or broken piece becomes an `Absence`, never an exception."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from expunge.core.errors import InputError, Problem
from expunge.core.files import read_jsonl
from expunge.core.fingerprint import fingerprint
from expunge.core.results import SCHEMA_VERSION, ModelResults, RunManifest, load_record
from expunge.data.proxies import texts_key
from expunge.report.distributions import truth_ratios
from expunge.report.model import (
    ROLES,
    Absence,
    Generation,
    LogEntry,
    ModelReport,
    ProbeTable,
    ProxyAnswer,
    ProxyExemplar,
    ProxyMaking,
    ReportData,
    role_label,
)
from expunge.report.text import one_line

if TYPE_CHECKING:
    import pyarrow as pa

_LOG_FIELDS: Final = ("step", "epoch", "total", "terms")


def load_report(run_folder: Path | str) -> ReportData:
    """Gather a run folder into a `ReportData`.

    Raises:
        InputError: There is no such folder, or nothing in it comes from a run.
    """
    folder = Path(run_folder)
    _check_folder(folder)
    absences: list[Absence] = []
    manifest = _read_manifest(folder / "run.json", absences)
    config = _read_config(folder / "config.yaml", manifest, absences)
    trained = manifest is None or manifest.method is not None
    proxy_file = _proxy_file(folder, manifest)
    proxies = _read_proxies(proxy_file, absences)
    models = _read_models(folder / "evaluation", absences)
    named = retain_folders(folder, manifest)
    retains: list[ModelReport] = []
    if [path.resolve() for path in named] != [(folder / "evaluation" / "retain").resolve()]:
        retains = _read_retains(named, models, absences)
        # The run's own stands there only if it is named as well.
        models.pop("retain", None)
    if retains:
        models["retain"] = retains[0]
    return ReportData(
        folder=folder,
        name=manifest.name if manifest else folder.resolve().name,
        manifest=manifest,
        config=config,
        log=_read_log(folder / "log.jsonl", absences) if trained else (),
        models=models,
        further_retains=tuple(retains[1:]),
        proxies=proxies,
        proxy_making=_read_making(proxy_file, proxies, absences),
        absences=tuple(absences),
        notes=tuple(_notes(models, retains)),
    )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(Problem(where=str(folder), message="there is no such run folder"))
    if not any((folder / name).exists() for name in ("run.json", "log.jsonl", "evaluation")):
        raise InputError(
            Problem(
                where=str(folder),
                message="not a run folder: it holds no run.json, log.jsonl or evaluation folder. "
                "Give the folder that the command printed at its end, normally runs/NAME",
            )
        )


def _read_manifest(path: Path, absences: list[Absence]) -> RunManifest | None:
    try:
        manifest = load_record(RunManifest, path)
    except (InputError, OSError) as error:
        absences.append(Absence(what="description of the run", why=_reason(path, error)))
        return None
    _check_version(manifest.schema_version, path, absences)
    return manifest


def _check_version(version: int, path: Path, absences: list[Absence]) -> None:
    if version > SCHEMA_VERSION:
        why = f"it has layout {version} and this version of Expunge knows up to {SCHEMA_VERSION}"
        absences.append(Absence(what=f"sure reading of {path.name}", why=why))


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be used, naming it relative to the run folder."""
    if isinstance(error, FileNotFoundError) or not path.exists():
        return f"there is no {path.name}"
    if isinstance(error, UnicodeDecodeError):
        return f"{path.name} is not UTF-8 text"
    first = str(error).replace(str(path), path.name).splitlines() or [type(error).__name__]
    return f"{path.name} could not be read ({' '.join(line.strip() for line in first[:3])})"


def _read_config(path: Path, manifest: RunManifest | None, absences: list[Absence]) -> str | None:
    """config.yaml, or the same settings as they stand in the manifest."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if manifest is not None and manifest.config:
            return yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True)
        absences.append(Absence(what="resolved configuration", why=_reason(path, error)))
        return None


def _read_lines(path: Path, what: str, absences: list[Absence]) -> list[dict[str, Any]] | None:
    """The objects of a JSON-lines file; None when there is no such file or it is unreadable."""
    try:
        lines = read_jsonl(path)
    except (OSError, UnicodeDecodeError) as error:
        absences.append(Absence(what=what, why=_reason(path, error)))
        return None
    return [line for line in lines if isinstance(line, dict)]


def _read_log(path: Path, absences: list[Absence]) -> tuple[LogEntry, ...]:
    what = "loss curves"
    lines = _read_lines(path, what, absences)
    if lines is None:
        return ()
    entries = [entry for line in lines if (entry := _log_entry(line)) is not None]
    if not entries:
        absences.append(Absence(what=what, why=f"{path.name} holds no step"))
    return tuple(entries)


def _log_entry(line: Mapping[str, Any]) -> LogEntry | None:
    step = line.get("step")
    if not isinstance(step, int):
        return None
    terms = line.get("terms")
    extra = line.get("extra")
    others = {key: value for key, value in line.items() if key not in (*_LOG_FIELDS, "extra")}
    return LogEntry(
        step=step,
        epoch=_float(line.get("epoch")),
        total=_float(line.get("total")),
        terms=_floats(terms) if isinstance(terms, Mapping) else {},
        others=_floats(others | (extra if isinstance(extra, dict) else {})),
    )


def _float(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: number for key, value in values.items() if (number := _float(value)) is not None}


def retain_folders(folder: Path, manifest: RunManifest | None) -> tuple[Path, ...]:
    """Evaluation folders of the retain models of a run, whether or not they exist.

    Those that the scores were computed with: of the runs that the results name, else the run's own.
    Results that do not say it are taken to follow the settings. A named file of another project has
    no folder, and is itself in the result.

    Args:
        folder: The run folder.
        manifest: Its description.
    """
    named = _scored_with(folder)
    if named is None:
        evaluation = manifest.config.get("evaluation") if manifest else None
        named = evaluation.get("retain_run") if isinstance(evaluation, dict) else None
    names = [named] if isinstance(named, str) else named if isinstance(named, list | tuple) else []
    paths = [Path(name) for name in names if isinstance(name, str)]
    if not paths:
        return (folder / "evaluation" / "retain",)
    return tuple(_evaluation_of(path) for path in paths)


def _scored_with(folder: Path) -> Any:
    """`retain_run` of the latest scoring; None where no results of the run tell."""
    for role in ROLES:
        try:
            results = load_record(ModelResults, folder / "evaluation" / role / "results.json")
        except (InputError, OSError):
            continue
        if "retain_run" in results.settings:
            # All roles are scored together, so any of them knows.
            return results.settings["retain_run"]
    return None


def _evaluation_of(path: Path) -> Path:
    """The retain model's folder in a run folder; the path itself where it is that already."""
    inside = path / "evaluation" / "retain"
    is_one = path.is_file() or (not inside.is_dir() and any(path.glob("*.parquet")))
    return path if is_one else inside


def _read_models(folder: Path, absences: list[Absence]) -> dict[str, ModelReport]:
    """Every evaluated model of the run's own by role, known roles first."""
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )
    if not found:
        absences.append(
            Absence(what="evaluation results", why="no model of this run was evaluated")
        )
    # A folder that starts with a dot is one that a killed process was still writing.
    others = [role for role in found if role not in ROLES and not role.startswith(".")]
    roles = [role for role in ROLES if role in found] + others
    return {role: _read_model(folder / role, role, absences) for role in roles}


def _read_retains(
    paths: Sequence[Path], models: Mapping[str, ModelReport], absences: list[Absence]
) -> list[ModelReport]:
    """The retain models in these folders, those that are there.

    Their truth ratios are computed with the options of this run's results, as the scores were.
    """
    scored = [each.results for each in models.values() if each.results and each.role != "retain"]
    options = scored[0].settings.get("metric_options") if scored else None
    found = []
    for number, path in enumerate(paths, 1):
        if path.is_dir():
            model = _read_model(path, "retain", absences, options)
            found.append(replace(model, number=number if len(paths) > 1 else None))
            continue
        name = path.name if path.is_file() else path.parent.parent.name
        why = (
            f"{one_line(name, 80)} is a file of another project, not a run"
            if path.is_file()
            else f"{one_line(name, 80)} with its results is not where it was"
        )
        absences.append(Absence(what="retain model", why=why))
    return found


def _notes(models: Mapping[str, ModelReport], retains: Sequence[ModelReport]) -> Iterator[str]:
    """What the scoring noted, and retain models whose own scores were made another way."""
    scored = [
        each.results
        for role, each in models.items()
        if each.results and not (role == "retain" and retains)
    ]
    yield from dict.fromkeys(text for each in scored for text in _texts(each.settings, "notes"))
    for model in retains if scored else ():
        if model.results and _scoring(model.results) != _scoring(scored[0]):
            yield (
                f"The scores shown for the {model.label.lower()} are those of its own run, which "
                f"were made with {_way(model.results)}; the other models' were made with "
                f"{_way(scored[0])}."
            )


def _texts(values: Mapping[str, Any], name: str) -> list[str]:
    found = values.get(name)
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _scoring(results: ModelResults) -> tuple[Any, ...]:
    settings = results.settings
    return (results.benchmark, settings.get("preset"), settings.get("metric_options") or {})


def _way(results: ModelResults) -> str:
    _, preset, options = _scoring(results)
    words = f"benchmark {results.benchmark}, preset {preset}" if preset else results.benchmark
    return f"{words} and options {json.dumps(options, sort_keys=True)}" if options else words


def _read_model(
    folder: Path, role: str, absences: list[Absence], options: Any = None
) -> ModelReport:
    """One model; `options` are those of its metrics if it was scored with others elsewhere."""
    results = None
    try:
        results = load_record(ModelResults, folder / "results.json")
        _check_version(results.schema_version, folder / "results.json", absences)
    except (InputError, OSError) as error:
        why = _reason(folder / "results.json", error)
        absences.append(Absence(what=f"scores of the {role_label(role).lower()}", why=why))
    if options is None and results:
        options = results.settings.get("metric_options")
    tables = {}
    for path in sorted(folder.glob("*.parquet")):
        table = _read_table(path, role, options, absences)
        if table is not None:
            tables[path.stem] = table
    return ModelReport(role=role, results=results, tables=tables)


def _read_table(path: Path, role: str, options: Any, absences: list[Absence]) -> ProbeTable | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    what = f"samples of the {role_label(role).lower()} on {path.stem}"
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        absences.append(Absence(what=what, why=_reason(path, error)))
        return None
    missing = {"index", "question", "answer"} - set(table.column_names)
    if missing:
        why = f"{path.name} has no column {', '.join(sorted(missing))}"
        absences.append(Absence(what=what, why=why))
        return None
    table = table.sort_by("index")
    return ProbeTable(
        probe=path.stem,
        indices=tuple(table["index"].to_pylist()),
        questions=tuple(text or "" for text in table["question"].to_pylist()),
        answers=tuple(text or "" for text in table["answer"].to_pylist()),
        generations=tuple(_generations(table)),
        truth_ratios=truth_ratios(table, options if isinstance(options, Mapping) else {}),
    )


def _generations(table: pa.Table) -> Iterator[Generation]:
    names = table.column_names
    if "generation" not in names:
        return
    texts = table["generation"].to_pylist()
    empty = [None] * len(texts)
    tokens = table["generation_tokens"].to_pylist() if "generation_tokens" in names else empty
    finished = table["finished"].to_pylist() if "finished" in names else empty
    if all(text is None for text in texts):
        return  # the probe was scored without generating
    for text, num_tokens, done in zip(texts, tokens, finished, strict=True):
        yield Generation(text=text or "", num_tokens=num_tokens, finished=done)


def _proxy_file(folder: Path, manifest: RunManifest | None) -> Path:
    """The proxy file of the run folder, else the one that the settings name."""
    own = folder / "proxies.jsonl"
    data = manifest.config.get("data") if manifest else None
    named = data.get("proxies") if isinstance(data, dict) else None
    return own if own.exists() or not isinstance(named, str) else Path(named)


def _read_making(
    path: Path, proxies: tuple[ProxyAnswer, ...] | None, absences: list[Absence]
) -> ProxyMaking:
    """Exemplars and figures from the files beside the proxy file."""
    if proxies is None:
        return ProxyMaking()
    shown = _read_object(path.with_name(f"{path.stem}.exemplars.json"), "exemplars", absences)
    measured = _read_object(
        path.with_name(f"{path.stem}.quality.json"), "figures of the proxy answers", absences
    )
    items, summary = shown.get("exemplars"), measured.get("summary")
    names = ("question", "informed_answer", "uninformed_answer")
    exemplars = [
        ProxyExemplar(**dict(zip(("question", "informed", "uninformed"), texts, strict=True)))
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and any(texts := [_text(item.get(name)) for name in names])
    ]
    return ProxyMaking(
        model=_text(measured.get("model") or shown.get("model")),
        exemplars=tuple(exemplars),
        exemplar_source=_text(shown.get("source")),
        figures=_floats(summary) if isinstance(summary, dict) else {},
        nll_model=_text(summary.get("nll_model")) if isinstance(summary, dict) else "",
        is_current=measured.get("texts") == texts_key(proxy.proxy for proxy in proxies),
    )


def _read_object(path: Path, what: str, absences: list[Absence]) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is no such file or it is broken."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        absences.append(Absence(what=what, why=_reason(path, error)))
        return {}
    return value if isinstance(value, dict) else {}


def _read_proxies(path: Path, absences: list[Absence]) -> tuple[ProxyAnswer, ...] | None:
    if not path.exists():
        return None  # most methods need none: not worth a note
    lines = _read_lines(path, "proxy answers", absences)
    return None if lines is None else tuple(_proxies(lines))


def _proxies(lines: Iterable[Mapping[str, Any]]) -> Iterator[ProxyAnswer]:
    for index, line in enumerate(lines):
        proxy, generator = _text(line.get("proxy_answer")), _text(line.get("generator")) or "hand"
        yield ProxyAnswer(
            index=index,
            question=_text(line.get("question")),
            answer=_text(line.get("answer")),
            proxy=proxy,
            generator=generator,
            # The file keeps a fingerprint of every answer as it was generated.
            by_hand=generator == "hand" or line.get("made") != fingerprint(proxy),
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
