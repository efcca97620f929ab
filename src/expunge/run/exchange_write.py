"""Results as open-unlearning's files: `TOFU_EVAL.json` and `TOFU_SUMMARY.json`, or MUSE's.

Names and structure are open-unlearning's, so its scripts and notebooks read the files. Numbers are
ours: what we do not have is left out, and nothing is put in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from expunge.benchmarks import Benchmark, benchmarks
from expunge.core.files import atomic_write_text, jsonable
from expunge.core.results import ModelResults
from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.measures import Measure
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import Values
from expunge.metrics.likelihood import mean_nll
from expunge.run.exchange_names import (
    KNOWN,
    OVERLAPS,
    TEXTS,
    Known,
    counterpart,
    family_of_benchmark,
    key_of,
    scale_of,
)

Tables = Mapping[str, ProbeTable]
Entry = dict[str, Any]

_SECOND_SPELLING: Final = "forget_Truth_Ratio"  # the same numbers as forget_truth_ratio


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        files: The two files.
        left_out: Why a metric is not in them, by open-unlearning's name.
        notes: What a reader of the numbers should know.
    """

    files: tuple[Path, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()


def export_open_unlearning(results: ModelResults, tables: Tables, path: Path | str) -> Exported:
    """Write results in open-unlearning's structure.

    Args:
        results: Scores of one model.
        tables: Its stored tables by probe; without them there are aggregates only.
        path: Folder for the files.

    Raises:
        InputError: The benchmark of the results is not known.
    """
    benchmark = benchmarks.get(results.benchmark)
    family = family_of_benchmark(benchmark.name)
    source = _Source(results=results, tables=tables, benchmark=benchmark)
    entries: dict[str, Entry] = {}
    left_out: dict[str, str] = {}
    for known in _metrics_of(benchmark):
        entry = source.entry(known)
        if isinstance(entry, str):
            left_out[known.name] = entry
        else:
            entries[known.name] = entry
    summary = {
        name: entry["agg_value"]
        for name, entry in entries.items()
        if not _is_ingredient(KNOWN[family][name]) and entry["agg_value"] is not None
    }
    files = tuple(Path(path) / f"{family.upper()}_{kind}.json" for kind in ("EVAL", "SUMMARY"))
    for file, content in zip(files, (entries, summary), strict=True):
        # Sorted and indented by four, as there.
        text = json.dumps(jsonable(content), indent=4, sort_keys=True, ensure_ascii=False)
        atomic_write_text(file, text + "\n")
    return Exported(files=files, left_out=left_out, notes=tuple(_notes(results, benchmark)))


def _metrics_of(benchmark: Benchmark) -> Iterator[Known]:
    """Those of open-unlearning's metrics that can come from the probes of a benchmark."""
    for known in KNOWN[family_of_benchmark(benchmark.name)].values():
        if known.name != _SECOND_SPELLING and (not known.probe or known.probe in benchmark.probes):
            yield known


def _is_ingredient(known: Known) -> bool:
    return known.kind == "losses" and not known.metric


def _notes(results: ModelResults, benchmark: Benchmark) -> Iterator[str]:
    theirs, preset = f"{benchmark.name}_ou", results.settings.get("preset")
    if theirs in benchmark.presets and preset != theirs:
        yield (
            f"The numbers follow the preset {preset}. open-unlearning's own conventions, such as "
            f"its epsilon in ratios, are those of the preset {theirs}."
        )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the numbers of an export come from."""

    results: ModelResults
    tables: Tables
    benchmark: Benchmark

    def entry(self, known: Known) -> Entry | str:
        """One metric in open-unlearning's structure, or why there is none."""
        value, reason = self._score(known)
        samples = self._samples(known)
        if isinstance(samples, str):
            if value is not None:
                return {"agg_value": value}
            return reason or samples
        if value is None and _is_ingredient(known):
            value = _mean(samples["value_by_index"], known.field)
        if value is None:
            return reason or "it was not scored"
        auc = {"auc": value} if known.kind == "attack" else {}
        return {"agg_value": value, **auc, **samples}

    def _score(self, known: Known) -> tuple[float | None, str]:
        """The aggregate, or why it is absent."""
        if _is_ingredient(known):
            return None, ""
        here = self._counterpart(known)
        score = self.results.scores.get(known.name if here is None else key_of(here))
        if score is None:
            return None, f"the benchmark {self.benchmark.name} does not have it"
        scale = 1.0 if here is None else scale_of(here)
        return None if score.value is None else score.value / scale, score.reason or ""

    def _counterpart(self, known: Known) -> Measure | Aggregate | None:
        return counterpart(known, self.benchmark.measures, self.benchmark.aggregates)

    def _samples(self, known: Known) -> Entry | str:
        """`value_by_index`, for attacks forget and holdout; or why there is none."""
        if known.kind == "aggregate":
            return "it has no samples"
        table = self.tables.get(known.probe)
        if table is None:
            return f"the {known.probe} probe was not run"
        if known.kind == "losses":
            if known.column not in table:
                return f"the {known.probe} table has no {known.column}"
            return _by_index(table, [_loss_entry(row) for row in table[known.column]])
        if known.kind == "attack":
            return self._attacked(known)
        metric = "truth_ratio" if known.kind == "ratio" else known.metric
        values = self._values(known, known.probe, metric)
        if isinstance(values, str):
            return values
        if known.kind == "rouge":
            return self._overlaps(known, table, values)
        return _by_index(table, [{known.field: _plain(value)} for value in values])

    def _values(self, known: Known, probe: str, metric: str) -> Values | str:
        """A metric of every sample, with the options that the results were made with."""
        here = self._counterpart(known)
        measure = here.samples if isinstance(here, Aggregate) else here
        samples = Measure(
            name=metric,
            probe=probe,
            metric=metric,
            better="none",
            unit="",
            options={} if measure is None else measure.options,
        )
        options = self.results.settings.get("metric_options")
        evidence = Evidence(tables=self.tables)
        return samples.samples(evidence, options if isinstance(options, dict) else None)

    def _overlaps(self, known: Known, table: ProbeTable, values: Values) -> Entry:
        columns = {known.field: [_plain(value) for value in values]}
        for metric, name in OVERLAPS.items():
            other = self._values(known, known.probe, metric)
            if name != known.field and not isinstance(other, str):
                columns[name] = [_plain(value) for value in other]
        for column, name in TEXTS.items():
            if column in table and any(table[column]):
                columns[name] = list(table[column])
        rows = zip(*columns.values(), strict=True)
        return _by_index(table, [dict(zip(columns, row, strict=True)) for row in rows])

    def _attacked(self, known: Known) -> Entry | str:
        parts: Entry = {}
        for side, probe in (("forget", known.probe), ("holdout", known.against)):
            values = self._values(known, probe, known.metric)
            if isinstance(values, str):
                return values
            entries = [{"score": _plain(value)} for value in values]
            samples = _by_index(self.tables[probe], entries)
            parts[side] = {"agg_value": _mean(samples["value_by_index"], "score"), **samples}
        return parts


def _loss_entry(row: Any) -> Entry:
    """{prob, avg_loss} of an answer; lists of them where a row has several answers."""
    several = bool(row) and isinstance(row[0], list | tuple | np.ndarray)
    nlls = mean_nll(row if several else [row])
    losses = [_plain(nll) for nll in nlls]
    probs = [_plain(prob) for prob in np.exp(-nlls)]
    return (
        {"prob": probs, "avg_loss": losses} if several else dict(prob=probs[0], avg_loss=losses[0])
    )


def _by_index(table: ProbeTable, entries: Sequence[Entry]) -> Entry:
    indices = [str(index) for index in table["index"]]
    return {"value_by_index": dict(zip(indices, entries, strict=True))}


def _mean(entries: Mapping[str, Entry], field: str) -> float | None:
    """Mean over samples of the mean of each; None where nothing has a value."""
    means = [np.mean(found) for entry in entries.values() if (found := _numbers(entry.get(field)))]
    return float(np.mean(means)) if means else None


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if item is not None]


def _plain(value: Any) -> float | None:
    """A number as JSON has it; what could not be scored is null."""
    return float(value) if np.isfinite(value) else None
