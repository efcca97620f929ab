"""Benchmarks: declarations of probes, measures, aggregates and presets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from expunge.core.errors import InputError, Problem, did_you_mean
from expunge.core.registry import Registry
from expunge.core.results import ForgetQuality, ModelResults, Score
from expunge.data.rows import RowSet
from expunge.data.sources import load_rows
from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.harness_tasks import HarnessTask
from expunge.evaluation.measures import Measure
from expunge.evaluation.probes import EvaluationSettings, Probe, first_rows
from expunge.evaluation.standard import forget_measures
from expunge.evaluation.tables import ANNOTATIONS, ProbeTable
from expunge.metrics import metrics

__all__ = [
    "HOLDOUT",
    "Aggregate",
    "Benchmark",
    "Evidence",
    "Measure",
    "Preset",
    "benchmarks",
    "holdout_probe",
    "register",
]

# Packages whose version may move a number.
_PACKAGES = ("expunge", "torch", "transformers", "numpy", "scipy", "rouge-score")
FORGET = "forget"
# Options of aggregates, beside those of metrics.
_AGGREGATE_OPTIONS = ("margin", "retain_auc", "epsilon")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A variant of a benchmark that a group of papers uses.

    Attributes:
        name: Its name.
        title: What it is and who uses it.
        rows: First rows of each probe to use; a probe that is not named has all.
        settings: Fields of `EvaluationSettings` that it sets.
        options: Options it sets for every metric and aggregate that knows them.
        leaves_out: Names of measures and aggregates that it does not have.
    """

    name: str
    title: str
    rows: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    leaves_out: frozenset[str] = frozenset()


class ProbeBuilder(Protocol):
    """Makes the probes of a benchmark."""

    def __call__(
        self,
        forget: RowSet,
        retain: RowSet | None,
        *,
        rows: Mapping[str, int | None],
        options: Mapping[str, Any],
    ) -> list[Probe]:
        """Probes for a forget set.

        Args:
            forget: What is to be forgotten.
            retain: What is to be kept; None if there is none.
            rows: First rows of each probe to use; None or absent: all.
            options: The user's values of the benchmark's own options.
        """


def holdout_probe(options: Mapping[str, Any], rows: Mapping[str, int | None]) -> list[Probe]:
    """The probe holdout, for attacks: rows of the same kind that no model of the run has seen.

    Args:
        options: `holdout` names the source of the rows; without it there is no such probe.
        rows: First rows of each probe to use.
    """
    if options.get("holdout") is None:
        return []
    found = load_rows(options["holdout"], name="holdout")
    limited = first_rows(found, rows.get("holdout"))
    return [Probe(name="holdout", rows=limited, generate=False, variants=False)]


HOLDOUT = "source of rows that no model of the run was trained on, for membership attacks"
"""What the option `holdout` of a benchmark is."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured on a model, and how it is summed up.

    Attributes:
        name: Its name.
        title: What it is.
        source: Where it is defined.
        version: Raised by every change that moves a number.
        probes: Names of its probes.
        measures: What is computed on them.
        aggregates: What is computed over measures.
        presets: Variants by name.
        builder: Makes the probes.
        options: Options of its own, such as a folder of data, and what they are.
        harness: Tasks of lm-evaluation-harness that belong to it; run only when asked for.
        reader: Reads the folder that the option `folder` names and raises what is wrong with it;
            None for a benchmark without one. For a check where there is no forget set to build the
            probes with.
    """

    name: str
    title: str
    source: str
    version: int
    probes: tuple[str, ...]
    measures: tuple[Measure, ...]
    aggregates: tuple[Aggregate, ...]
    presets: Mapping[str, Preset]
    builder: ProbeBuilder
    options: Mapping[str, str] = field(default_factory=dict)
    harness: tuple[HarnessTask, ...] = ()
    reader: Callable[[str], object] | None = None

    def preset(self, name: str | None) -> Preset:
        """The preset of a name; None is the benchmark's own way: all rows, nothing special.

        Raises:
            InputError: There is no such preset.
        """
        name = name or self.name
        if name == self.name and name not in self.presets:
            return Preset(name=self.name, title=self.title)
        if name not in self.presets:
            known = list(dict.fromkeys([self.name, *self.presets]))
            raise InputError(f"{self.name} has no preset {name!r}. {did_you_mean(name, known)}")
        return self.presets[name]

    def build_probes(
        self,
        forget: RowSet,
        retain: RowSet | None = None,
        *,
        preset: str | None = None,
        rows: Mapping[str, int | None] | None = None,
        options: Mapping[str, Any] | None = None,
        further: Mapping[str, RowSet] | None = None,
    ) -> list[Probe]:
        """The probes for a forget set.

        Args:
            forget: What is to be forgotten.
            retain: What is to be kept.
            preset: Variant of the benchmark.
            rows: First rows of each probe to use, such as {"retain": 40}; goes before the preset's
                limits, and None lifts one.
            options: The benchmark's own options; those of metrics may be among them.
            further: Further sets to forget, by the names given to `with_further`.

        Raises:
            InputError: `rows` names a probe that does not exist, an unknown preset, or data that
                the options name is missing or damaged.
        """
        limits = {**self.preset(preset).rows, **(rows or {})}
        for name in limits:
            if name not in self.probes:
                raise InputError(
                    f"{self.name} has no probe {name!r}. {did_you_mean(name, self.probes)}"
                )
        given = {**self.preset(preset).options, **(options or {})}
        own = {name: value for name, value in given.items() if name in self.options}
        probes = self.builder(forget, retain, rows=limits, options=own)
        _check_holdout(probes, forget, retain)
        for name, found in (further or {}).items():
            probe = Probe(name=name, rows=found, generate=not found.is_text)
            if self.probes[0] == FORGET:
                # What the benchmark does with a forget set (wrong answers, cuts) is done here too.
                probe = self.builder(found, retain, rows={}, options=own)[0]
            kept = first_rows(probe.rows, limits.get(name, limits.get(FORGET)))
            probes.append(replace(probe, name=name, rows=kept))
        return probes

    def with_further(self, names: Sequence[str]) -> Benchmark:
        """The benchmark with further sets to forget, each a probe with the measures of forget."""
        if not names:
            return self
        own: Sequence[Measure] = forget_measures()
        if self.probes[0] == FORGET:
            own = [measure for measure in self.measures if measure.probe == FORGET]
        more = [replace(measure, probe=name) for name in names for measure in own]
        return replace(self, probes=(*self.probes, *names), measures=(*self.measures, *more))

    def settings(self, preset: str | None = None, **overrides: Any) -> EvaluationSettings:
        """Evaluation settings of a preset.

        Args:
            preset: Variant of the benchmark.
            **overrides: Fields of `EvaluationSettings` that go before the preset's.
        """
        return EvaluationSettings(**{**self.preset(preset).settings, **overrides})

    def measures_of(self, preset: str | None = None) -> tuple[Measure, ...]:
        """The measures of a preset."""
        out = self.preset(preset).leaves_out
        return tuple(measure for measure in self.measures if measure.name not in out)

    def aggregates_of(self, preset: str | None = None) -> tuple[Aggregate, ...]:
        """The aggregates of a preset."""
        out = self.preset(preset).leaves_out
        return tuple(aggregate for aggregate in self.aggregates if aggregate.name not in out)

    def annotations(self, preset: str | None = None) -> dict[str, set[str]]:
        """Columns that another model or pass must add, by probe; see `ANNOTATIONS`."""
        wanted: dict[str, set[str]] = {}
        for measure in self.measures_of(preset):
            wanted.setdefault(measure.probe, set()).update(
                set(metrics.get(measure.metric).reads) & set(ANNOTATIONS)
            )
        return wanted

    def probes_reading(self, column: str, preset: str | None = None) -> list[str]:
        """Probes on which a measure or an attack of a preset reads a column."""
        found = {m.probe for m in self.measures_of(preset) if _reads(m, column)}
        for aggregate in self.aggregates_of(preset):
            if aggregate.samples is not None and _reads(aggregate.samples, column):
                found |= {aggregate.samples.probe, aggregate.against or aggregate.samples.probe}
        return sorted(found)

    def check_options(self, options: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with a user's options: names that neither it nor a metric of it knows."""
        known = {*self.options, *_AGGREGATE_OPTIONS}
        for measure in self.measures:
            known |= set(metrics.get(measure.metric).function.__kwdefaults__ or {})
        return [
            Problem(
                where=f"evaluation.options.{name}",
                message=f"{self.name} has no such option. {did_you_mean(name, sorted(known))}",
            )
            for name in options
            if name not in known
        ]

    def score_tables(
        self,
        evidence: Evidence | Mapping[str, ProbeTable],
        *,
        preset: str | None = None,
        options: Mapping[str, Any] | None = None,
        role: str = "model",
        model: str = "",
        settings: Mapping[str, Any] | None = None,
        extra: Mapping[str, Score] | None = None,
    ) -> ModelResults:
        """All scores of one model from stored tables; needs no model.

        Args:
            evidence: The model's tables by probe, alone or with those of the models it is compared
                with; without those what needs them is absent.
            preset: Variant of the benchmark; sets options of metrics.
            options: Options of metrics that go before the preset's.
            role: "base", "target", "unlearned", "retain".
            model: Path or name of the model, for the record.
            settings: More for the record.
            extra: Scores that come from the model itself and not from tables.

        Raises:
            InputError: Unknown preset.
        """
        found = evidence if isinstance(evidence, Evidence) else Evidence(tables=evidence)
        chosen = self.preset(preset)
        used = {**chosen.options, **(options or {})}
        measures = {measure.key: measure for measure in self.measures}
        scores = {m.key: m.score(found, used) for m in self.measures_of(preset)}
        test: ForgetQuality | None = None
        for aggregate in self.aggregates_of(preset):
            if aggregate.kind == "forget_quality":
                test = aggregate.test(found, used)
                scores[aggregate.name] = aggregate.test_score(test)
            else:
                scores[aggregate.name] = aggregate.score(measures, found, used)
        scores |= extra or {}
        return self._results(scores, test, found, chosen, used, role, model, settings)

    def _results(
        self,
        scores: dict[str, Score],
        test: ForgetQuality | None,
        evidence: Evidence,
        preset: Preset,
        options: Mapping[str, Any],
        role: str,
        model: str,
        settings: Mapping[str, Any] | None,
    ) -> ModelResults:
        tables = evidence.tables
        infos = [table.info for table in tables.values()]
        common = infos[0] if infos else {}
        used = {
            "preset": preset.name,
            "metric_options": dict(options),
            "judges": _judges(tables),
            "retain_models": len(evidence.retains),
            "rows": {name: len(table) for name, table in tables.items()},
            "data": {name: table.info.get("data") for name, table in tables.items()},
            "template": common.get("template"),
            "dtype": common.get("dtype"),
            **(common.get("settings") or {}),
            **(settings or {}),
        }
        return ModelResults(
            role=role,
            model=model,
            model_fingerprint=str(common.get("model", "")),
            benchmark=self.name,
            benchmark_version=self.version,
            scores=scores,
            forget_quality=test,
            settings=used,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
        )


def _check_holdout(probes: Sequence[Probe], forget: RowSet, retain: RowSet | None) -> None:
    """Refuse holdout rows that a model of the run was trained on."""
    held = next((probe.rows for probe in probes if probe.name == "holdout"), None)
    if held is None:
        return
    known = {(row.question, row.answer) for row in (*forget, *(retain or ()))}
    both = [row for row in held if (row.question, row.answer) in known]
    if both:
        raise InputError(
            f"{len(both)} of {len(held)} holdout rows ({held.origin}) are in the forget or the "
            f"retain set, first row {both[0].index}: an attack needs rows that no model of the run "
            "has seen"
        )


def _reads(measure: Measure, column: str) -> bool:
    return column in metrics.get(measure.metric).reads


def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


benchmarks: Registry[Benchmark] = Registry("benchmark", discover=_discover)
"""Every benchmark by name."""


def register(benchmark: Benchmark) -> Benchmark:
    """Make a benchmark known by its name.

    Raises:
        ValueError: Two of its measures have the same key, or an aggregate names a missing one.
    """
    keys = [measure.key for measure in benchmark.measures]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{benchmark.name} has two measures of one key")
    for aggregate in benchmark.aggregates:
        missing = set(aggregate.over) - set(keys)
        if missing:
            raise ValueError(f"{aggregate.name} of {benchmark.name} lacks {sorted(missing)}")
    return benchmarks.add(benchmark.name, benchmark)


def _judges(tables: Mapping[str, ProbeTable]) -> dict[str, Any]:
    """The models that judged texts, by the column they made."""
    found: dict[str, Any] = {}
    for table in tables.values():
        found |= table.info.get("annotations", {})
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
