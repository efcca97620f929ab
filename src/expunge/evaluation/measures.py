"""Measures and aggregates: what a benchmark computes from tables, and which way is good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from expunge.core.results import Better, ForgetQuality, Score
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import Values, metrics
from expunge.metrics.aggregate import (
    forget_quality,
    harmonic_mean,
    harmonic_mean_interval,
    mean_with_interval,
)

Tables = Mapping[str, ProbeTable]

_LACKS = {
    "perturbed_logps": "its rows have no wrong answers (perturbed_answer)",
    "generation": "nothing was generated on it",
    "generation_tokens": "nothing was generated on it",
    "generation_ids": "nothing was generated on it",
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The mean of a metric over the samples of a probe.

    Attributes:
        name: Name in results, after the probe's: "forget/NAME".
        probe: Name of the probe.
        metric: Name of the metric.
        better: Which way is good here.
        unit: What the number is.
        options: Options of the metric.
    """

    name: str
    probe: str
    metric: str
    better: Better
    unit: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Key in results: "forget/probability"."""
        return f"{self.probe}/{self.name}"

    def samples(self, tables: Tables, options: Mapping[str, Any] | None = None) -> Values | str:
        """One value per sample, or why there are none.

        Args:
            tables: Stored tables by probe.
            options: Options that a preset sets for every metric that knows them.
        """
        table = tables.get(self.probe)
        if table is None:
            return f"the {self.probe} probe was not run"
        item = metrics.get(self.metric)
        missing = item.missing(table.columns)
        if missing:
            why = _LACKS.get(missing[0], f"its table has no column {missing[0]}")
            return f"not measurable on {self.probe}: {why}"
        known = item.function.__kwdefaults__ or {}
        chosen = {name: value for name, value in (options or {}).items() if name in known}
        return item(table.columns, **{**chosen, **self.options})

    def score(self, tables: Tables, options: Mapping[str, Any] | None = None) -> Score:
        """The mean with its interval; see `samples`."""
        values = self.samples(tables, options)
        version = metrics.get(self.metric).version
        if isinstance(values, str):
            return Score(
                n=0, better=self.better, unit=self.unit, reason=values, metric_version=version
            )
        mean = mean_with_interval(values)
        return Score(
            value=mean.value,
            low=mean.low,
            high=mean.high,
            n=mean.n,
            unscored=mean.unscored,
            better=self.better,
            unit=self.unit,
            reason=None if mean.n else "not one of the samples could be scored",
            metric_version=version,
        )


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A value over several measures, or over one measure of two models.

    Attributes:
        name: Key in results.
        kind: `harmonic_mean` of the means of several measures; `forget_quality`: Kolmogorov-Smirnov
            test of the samples of one measure against those of the retain model.
        better: Which way is good.
        unit: What the number is.
        over: Keys of the measures, for a harmonic mean.
        samples: The measure whose samples are compared, for forget quality.
        version: Raised by every change that moves it.
    """

    name: str
    kind: Literal["harmonic_mean", "forget_quality"]
    better: Better
    unit: str
    over: tuple[str, ...] = ()
    samples: Measure | None = None
    version: int = 1


def utility_score(
    aggregate: Aggregate,
    measures: Mapping[str, Measure],
    tables: Tables,
    options: Mapping[str, Any] | None = None,
) -> Score:
    """Harmonic mean of the measures of an aggregate; absent as soon as one of them is.

    `n` counts samples of all probes; the interval draws the samples of each probe anew and keeps
    the measures of one sample together.
    """
    columns: dict[str, list[Values]] = {}
    absent: dict[str, list[str]] = {}
    for key in aggregate.over:
        values = measures[key].samples(tables, options)
        if isinstance(values, str):
            absent.setdefault(values, []).append(key)
        elif np.isnan(values).all():
            absent.setdefault("not one of the samples could be scored", []).append(key)
        else:
            columns.setdefault(measures[key].probe, []).append(values)
    if absent:
        reason = "; ".join(f"needs {', '.join(keys)}: {why}" for why, keys in absent.items())
        return _absent(aggregate, reason)
    groups = {probe: np.stack(found, axis=1) for probe, found in columns.items()}
    means = [mean for values in groups.values() for mean in np.nanmean(values, axis=0)]
    low, high = harmonic_mean_interval(groups)
    return Score(
        value=harmonic_mean(means),
        low=low,
        high=high,
        n=sum(len(values) for values in groups.values()),
        unscored=sum(int(np.isnan(values).any(axis=1).sum()) for values in groups.values()),
        better=aggregate.better,
        unit=aggregate.unit,
        metric_version=aggregate.version,
    )


def forget_quality_test(
    aggregate: Aggregate,
    tables: Tables,
    retain_tables: Tables | None,
    options: Mapping[str, Any] | None = None,
) -> ForgetQuality:
    """The test against the retain model; absent with a reason where it cannot be made.

    It is never made up: without a retain model, or with one that was evaluated on other rows or
    in another way, there is no value.
    """
    measure = aggregate.samples
    assert measure is not None, f"{aggregate.name} names no measure"
    values = measure.samples(tables, options)
    if isinstance(values, str):
        return ForgetQuality(reason=values)
    n = int((~np.isnan(values)).sum())
    if retain_tables is None:
        reason = (
            "no retain model to compare with. Evaluate a model trained without the forget set "
            "and name its run as retain_run"
        )
        return ForgetQuality(n=n, reason=reason)
    theirs = measure.samples(retain_tables, options)
    if isinstance(theirs, str):
        return ForgetQuality(n=n, reason=f"of the retain model: {theirs}")
    difference = _not_comparable(tables[measure.probe], retain_tables[measure.probe])
    if difference is not None:
        return ForgetQuality(n=n, reason=difference)
    return forget_quality(values, theirs)


def forget_quality_score(aggregate: Aggregate, test: ForgetQuality) -> Score:
    """The p-value of a test as a score."""
    return Score(
        value=test.p_value,
        n=test.n,
        better=aggregate.better,
        unit=aggregate.unit,
        reason=test.reason,
        metric_version=aggregate.version,
    )


def _absent(aggregate: Aggregate, reason: str) -> Score:
    return Score(
        n=0,
        better=aggregate.better,
        unit=aggregate.unit,
        reason=reason,
        metric_version=aggregate.version,
    )


def _not_comparable(table: ProbeTable, retain: ProbeTable) -> str | None:
    """Why the samples of two models on a probe cannot be compared, or None if they can."""
    if not _same_rows(table, retain):
        return (
            f"the retain model was evaluated on other {table.probe} rows "
            f"({len(retain)} of them, here {len(table)}); evaluate it on the same ones"
        )
    for name, what in (("template", "another template"), ("settings", "other settings")):
        ours, theirs = (_scoring_part(item.info.get(name)) for item in (table, retain))
        if ours is not None and theirs is not None and ours != theirs:
            return f"the retain model was evaluated with {what}: {theirs}, here {ours}"
    return None


def _scoring_part(value: Any) -> Any:
    """What of a template or of settings moves scored answers: not the generation limits."""
    if not isinstance(value, Mapping):
        return value
    generating = ("max_new_tokens", "max_total_tokens")
    return {key: item for key, item in value.items() if key not in generating}


def _same_rows(table: ProbeTable, other: ProbeTable) -> bool:
    ours, theirs = (item.info.get("data") for item in (table, other))
    if ours is not None and theirs is not None:
        return bool(ours["fingerprint"] == theirs["fingerprint"])
    rows: Sequence[list[tuple[Any, Any]]] = [
        list(zip(item["question"], item["answer"], strict=True)) for item in (table, other)
    ]
    return rows[0] == rows[1]
