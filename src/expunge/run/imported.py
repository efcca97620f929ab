"""Imported evaluations in a run folder: per-sample tables, and plain values beside them.

The tables lie where those of an evaluated model lie, so everything that reads stored tables reads
them. What a file gives only as a number is in `imported.json` and joins the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from expunge.benchmarks import Benchmark
from expunge.core.errors import InputError, Problem
from expunge.core.files import atomic_folder
from expunge.core.results import SCHEMA_VERSION, ForgetQuality, ModelResults, Record, Score
from expunge.core.results import load_record as _load_record
from expunge.evaluation.store import MANIFEST, EvaluationStore
from expunge.evaluation.tables import ProbeTable
from expunge.run.exchange_names import KNOWN, counterpart, family_of_benchmark, key_of, scale_of
from expunge.run.exchange_read import Imported, read_evaluation

IMPORTED: Final = "imported.json"
AS_IN_FILE: Final = "as the imported file says"


class ImportRecord(Record):
    """What `imported.json` holds.

    Attributes:
        schema_version: Version of this layout.
        source: Name of the file.
        fingerprint: Of its bytes.
        layout: What kind of file it was.
        values: Its aggregates by open-unlearning's names.
        unknown: Metrics in it that have no counterpart here.
        notes: What else was noticed.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    fingerprint: str
    layout: str
    values: dict[str, float]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def store_import(found: Imported, folder: Path) -> None:
    """Write an imported evaluation as the evaluation folder of a model; replaces what is there."""
    with atomic_folder(folder) as place:
        store = EvaluationStore(place)
        for table in found.tables.values():
            store.save(table)
        record = ImportRecord(
            source=found.source,
            fingerprint=found.fingerprint,
            layout=found.layout,
            values=dict(found.values),
            unknown=found.unknown,
            notes=found.notes,
        )
        record.save(place / IMPORTED)


def load_import(folder: Path) -> ImportRecord | None:
    """What was imported into the evaluation folder of a model; None if it was evaluated here."""
    path = folder / IMPORTED
    return _load_record(ImportRecord, path) if path.is_file() else None


def stored_tables(folder: Path) -> Mapping[str, ProbeTable]:
    """Tables in the evaluation folder of a model; none where a summary was imported.

    Raises:
        InputError: Nothing is stored there.
    """
    if load_import(folder) is not None and not (folder / MANIFEST).is_file():
        return {}
    return EvaluationStore(folder).load()


def with_imported(results: ModelResults, benchmark: Benchmark, folder: Path) -> ModelResults:
    """Results with the values of an imported file where nothing can be computed from its samples.

    Unchanged for a model that was evaluated here.

    Args:
        results: Scores from the stored tables.
        benchmark: The benchmark they are of.
        folder: The evaluation folder of the model.

    Raises:
        InputError: `imported.json` is damaged.
    """
    record = load_import(folder)
    if record is None:
        return results
    scores, quality = dict(results.scores), results.forget_quality
    taken = []
    for name, value in record.values.items():
        known = KNOWN[family_of_benchmark(benchmark.name)].get(name)
        if known is None or (known.kind == "losses" and not known.metric):
            continue
        here = counterpart(known, benchmark.measures, benchmark.aggregates)
        key = name if here is None else key_of(here)
        computed = scores.get(key)
        if computed is not None and computed.value is not None:
            continue
        unit = "open-unlearning's value" if here is None else here.unit
        scores[key] = Score(
            value=value if here is None else value * scale_of(here),
            n=0,
            better="none" if here is None else here.better,
            unit=f"{unit}, {AS_IN_FILE}",
            metric_version=1 if computed is None else computed.metric_version,
        )
        taken.append(key)
        if known.aggregate == "forget_quality":
            quality = ForgetQuality(p_value=value, log10_p=math.log10(value) if value > 0 else None)
    origin = record.model_dump(mode="json", include={"source", "fingerprint", "layout"})
    settings = {**results.settings, "imported": {**origin, "as_in_file": taken}}
    return results.model_copy(
        update={"scores": scores, "forget_quality": quality, "settings": settings}
    )


def tables_of(path: Path | str, role: str = "retain") -> Mapping[str, ProbeTable]:
    """Per-sample tables of one model, from wherever they may be.

    Args:
        path: A run folder (also one that was imported), the evaluation folder of one model, or an
            evaluation file of another project.
        role: Whose tables to take from a run folder.

    Raises:
        InputError: There is nothing there, or nothing per sample.
    """
    path = Path(path)
    if path.is_file():
        found = read_evaluation(path)
        if not found.tables:
            message = (
                f"is an {found.layout}: it has aggregates only, and comparing with a model needs "
                "its samples. Give the ..._EVAL.json of the same evaluation"
            )
            raise InputError(Problem(where=str(path), message=message))
        return found.tables
    for folder in (path / "evaluation" / role, path):
        if (folder / MANIFEST).is_file():
            return EvaluationStore(folder).load()
    if not path.exists():
        message = "there is no such run folder or file"
    else:
        others = sorted(item.parent.name for item in path.glob(f"evaluation/*/{MANIFEST}"))
        message = f"holds no stored evaluation of a {role} model" + (
            f", only of: {', '.join(others)}" if others else ""
        )
    message += (
        f". Make one with: expunge evaluate MODEL --role {role} --output RUN, "
        f"or: expunge import FILE --role {role} --output RUN"
    )
    raise InputError(Problem(where=str(path), message=message))
