"""Benchmarks: declarations of probes, measures, aggregates and presets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from expunge.core.errors import InputError, did_you_mean
from expunge.core.registry import Registry
from expunge.core.results import ForgetQuality, ModelResults, Score
from expunge.data.rows import RowSet
from expunge.evaluation.measures import (
    Aggregate,
    Measure,
    Tables,
    forget_quality_score,
    forget_quality_test,
    utility_score,
)
from expunge.evaluation.probes import EvaluationSettings, Probe

__all__ = ["Aggregate", "Benchmark", "Measure", "Preset", "benchmarks", "register"]

# Packages whose version may move a number.
_PACKAGES = ("expunge", "torch", "transformers", "numpy", "scipy", "rouge-score")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A variant of a benchmark that a group of papers uses.

    Attributes:
        name: Its name.
        title: What it is and who uses it.
        rows: First rows of each probe to use; a probe that is not named has all.
        settings: Fields of `EvaluationSettings` that it sets.
        options: Options it sets for every metric that knows them.
    """

    name: str
    title: str
    rows: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class ProbeBuilder(Protocol):
    """Makes the probes of a benchmark."""

    def __call__(
        self, forget: RowSet, retain: RowSet | None, *, rows: Mapping[str, int | None]
    ) -> list[Probe]:
        """Probes for a forget set.

        Args:
            forget: What is to be forgotten.
            retain: What is to be kept; None if there is none.
            rows: First rows of each probe to use; None or absent: all.
        """


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

    def preset(self, name: str | None) -> Preset:
        """The preset of a name; None is the benchmark's own way: all rows, nothing special.

        Raises:
            InputError: There is no such preset.
        """
        if name is None or name == self.name:
            return Preset(name=self.name, title=self.title)
        if name not in self.presets:
            known = [self.name, *self.presets]
            raise InputError(f"{self.name} has no preset {name!r}. {did_you_mean(name, known)}")
        return self.presets[name]

    def build_probes(
        self,
        forget: RowSet,
        retain: RowSet | None = None,
        *,
        preset: str | None = None,
        rows: Mapping[str, int | None] | None = None,
    ) -> list[Probe]:
        """The probes for a forget set.

        Args:
            forget: What is to be forgotten.
            retain: What is to be kept.
            preset: Variant of the benchmark.
            rows: First rows of each probe to use, such as {"retain": 40}; goes before the preset's
                limits, and None lifts one.

        Raises:
            InputError: `rows` names a probe that does not exist, or an unknown preset.
        """
        limits = {**self.preset(preset).rows, **(rows or {})}
        for name in limits:
            if name not in self.probes:
                raise InputError(
                    f"{self.name} has no probe {name!r}. {did_you_mean(name, self.probes)}"
                )
        return self.builder(forget, retain, rows=limits)

    def settings(self, preset: str | None = None, **overrides: Any) -> EvaluationSettings:
        """Evaluation settings of a preset.

        Args:
            preset: Variant of the benchmark.
            **overrides: Fields of `EvaluationSettings` that go before the preset's.
        """
        return EvaluationSettings(**{**self.preset(preset).settings, **overrides})

    def score_tables(
        self,
        tables: Tables,
        retain_tables: Tables | None = None,
        *,
        preset: str | None = None,
        role: str = "model",
        model: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> ModelResults:
        """All scores of one model from its stored tables; needs no model.

        Args:
            tables: The model's tables by probe.
            retain_tables: The retain model's; without them what needs them is absent.
            preset: Variant of the benchmark; sets options of metrics.
            role: "base", "target", "unlearned", "retain".
            model: Path or name of the model, for the record.
            settings: More for the record.

        Raises:
            InputError: Unknown preset.
        """
        chosen = self.preset(preset)
        measures = {measure.key: measure for measure in self.measures}
        scores = {key: m.score(tables, chosen.options) for key, m in measures.items()}
        test: ForgetQuality | None = None
        for aggregate in self.aggregates:
            if aggregate.kind == "harmonic_mean":
                score = utility_score(aggregate, measures, tables, chosen.options)
            else:
                test = forget_quality_test(aggregate, tables, retain_tables, chosen.options)
                score = forget_quality_score(aggregate, test)
            scores[aggregate.name] = score
        return self._results(scores, test, tables, chosen, role, model, settings)

    def _results(
        self,
        scores: dict[str, Score],
        test: ForgetQuality | None,
        tables: Tables,
        preset: Preset,
        role: str,
        model: str,
        settings: Mapping[str, Any] | None,
    ) -> ModelResults:
        infos = [table.info for table in tables.values()]
        common = infos[0] if infos else {}
        used = {
            "preset": preset.name,
            "metric_options": dict(preset.options),
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


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
