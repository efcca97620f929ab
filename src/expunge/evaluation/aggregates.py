"""Aggregates: values over several measures of a model, or over one measure of two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from expunge.core.results import Better, ForgetQuality, Score
from expunge.evaluation.evidence import Evidence, not_comparable
from expunge.evaluation.measures import UNSCORABLE, Measure, score_of
from expunge.metrics import Values
from expunge.metrics.aggregate import (
    Estimate,
    auc_with_interval,
    forget_efficacy_with_interval,
    forget_quality,
    harmonic_mean,
    harmonic_mean_interval,
    max_with_interval,
    median_with_interval,
    privleak_with_interval,
)

Kind = Literal[
    "harmonic_mean", "one_minus_mean", "forget_quality", "auc", "privleak", "median", "max"
]
Measures = Mapping[str, Measure]


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A value over several measures, or over one measure of two models.

    Attributes:
        name: Key in results.
        kind: `harmonic_mean` and `one_minus_mean` of the means of several measures (model utility,
            forget efficacy); `forget_quality`: Kolmogorov-Smirnov test of the samples of one
            measure against those of the retain model; `auc`: how well the samples tell two probes
            apart; `privleak`: that AUC relative to the retain model's; `median` and `max` of the
            samples.
        better: Which way is good.
        unit: What the number is.
        over: Keys of the measures, for means of measures.
        samples: The measure whose samples are used, for all other kinds.
        against: Probe of the other samples, for `auc` and `privleak`: the holdout set.
        version: Raised by every change that moves it.
    """

    name: str
    kind: Kind
    better: Better
    unit: str
    over: tuple[str, ...] = ()
    samples: Measure | None = None
    against: str | None = None
    version: int = 1

    def __post_init__(self) -> None:
        assert self.kind in get_args(Kind), f"{self.name} is of unknown kind {self.kind}"

    def score(
        self, measures: Measures, evidence: Evidence, options: Mapping[str, Any] | None = None
    ) -> Score:
        """The value with its interval, or why there is none.

        Args:
            measures: All measures of the benchmark by key.
            evidence: The stored tables.
            options: Options that a preset sets for every metric that knows them.
        """
        if self.kind == "forget_quality":
            return self.test_score(self.test(evidence, options))
        found = _KINDS[self.kind](self, measures, evidence, options or {})
        return score_of(found, better=self.better, unit=self.unit, version=self.version)

    def test(self, evidence: Evidence, options: Mapping[str, Any] | None = None) -> ForgetQuality:
        """The test against the retain models; absent with a reason where it cannot be made.

        It is never made up: without a retain model, or with one that was evaluated on other rows
        or in another way, there is no value.
        """
        measure = self._measure
        values = measure.samples(evidence, options)
        if isinstance(values, str):
            return ForgetQuality(reason=values)
        n = int((~np.isnan(values)).sum())
        if not evidence.retains:
            return ForgetQuality(n=n, reason=self._without_retain(evidence))
        theirs = []
        for tables in evidence.retains:
            other = measure.samples(replace(evidence, tables=tables), options)
            if isinstance(other, str):
                return ForgetQuality(n=n, reason=f"of the retain model: {other}")
            difference = not_comparable(evidence.tables[measure.probe], tables[measure.probe])
            if difference is not None:
                return ForgetQuality(n=n, reason=difference)
            theirs.append(other)
        return forget_quality(values, *theirs, margin=(options or {}).get("margin"))

    def test_score(self, test: ForgetQuality) -> Score:
        """The p-value of a test as a score."""
        return Score(
            value=test.p_value,
            n=test.n,
            better=self.better,
            unit=self.unit,
            reason=test.reason,
            metric_version=self.version,
            note=test.warning,
        )

    @property
    def _measure(self) -> Measure:
        assert self.samples is not None, f"{self.name} names no measure"
        return self.samples

    def _without_retain(self, evidence: Evidence) -> str:
        why = evidence.columns(self._measure.probe, ("retain:answer_logps",))
        assert isinstance(why, str), "asked only where there is no retain model"
        return why


Found = Estimate | str


def _columns(
    aggregate: Aggregate, measures: Measures, evidence: Evidence, options: Mapping[str, Any]
) -> dict[str, Values] | str:
    """Samples of all measures by probe, [n, k] each, or which are missing and why."""
    columns: dict[str, list[Values]] = {}
    absent: dict[str, list[str]] = {}
    for key in aggregate.over:
        values = measures[key].samples(evidence, options)
        if isinstance(values, str):
            absent.setdefault(values, []).append(key)
        elif np.isnan(values).all():
            absent.setdefault(UNSCORABLE, []).append(key)
        else:
            columns.setdefault(measures[key].probe, []).append(values)
    if absent:
        return "; ".join(f"needs {', '.join(keys)}: {why}" for why, keys in absent.items())
    return {probe: np.stack(found, axis=1) for probe, found in columns.items()}


def _harmonic_mean(
    aggregate: Aggregate, measures: Measures, evidence: Evidence, options: Mapping[str, Any]
) -> Found:
    """`n` counts samples of all probes; the measures of one sample stay together in a draw."""
    groups = _columns(aggregate, measures, evidence, options)
    if isinstance(groups, str):
        return groups
    means = [mean for values in groups.values() for mean in np.nanmean(values, axis=0)]
    low, high = harmonic_mean_interval(groups)
    n = sum(len(values) for values in groups.values())
    unscored = sum(int(np.isnan(values).any(axis=1).sum()) for values in groups.values())
    return Estimate(harmonic_mean(means), low, high, n, unscored)


def _one_minus_mean(
    aggregate: Aggregate, measures: Measures, evidence: Evidence, options: Mapping[str, Any]
) -> Found:
    groups = _columns(aggregate, measures, evidence, options)
    if isinstance(groups, str):
        return groups
    (values,) = groups.values()
    return forget_efficacy_with_interval(values)


def _two_sets(
    aggregate: Aggregate, evidence: Evidence, options: Mapping[str, Any]
) -> tuple[Values, Values] | str:
    """Membership scores of forget and holdout samples."""
    measure = aggregate._measure
    assert aggregate.against is not None, f"{aggregate.name} names no holdout probe"
    forget = measure.samples(evidence, options)
    if isinstance(forget, str):
        return forget
    holdout = replace(measure, probe=aggregate.against).samples(evidence, options)
    if isinstance(holdout, str):
        if aggregate.against not in evidence.tables:
            return (
                f"no {aggregate.against} set: an attack needs rows of the same kind that no model "
                "of the run has seen (evaluation.options)"
            )
        return holdout
    return forget, holdout


def _auc(
    aggregate: Aggregate, measures: Measures, evidence: Evidence, options: Mapping[str, Any]
) -> Found:
    found = _two_sets(aggregate, evidence, options)
    return found if isinstance(found, str) else auc_with_interval(*found)


def _privleak(
    aggregate: Aggregate, measures: Measures, evidence: Evidence, options: Mapping[str, Any]
) -> Found:
    found = _two_sets(aggregate, evidence, options)
    if isinstance(found, str):
        return found
    retain: tuple[Values, Values] | float | None = options.get("retain_auc")
    if retain is None:
        if not evidence.retains:
            return aggregate._without_retain(evidence)
        measure = aggregate._measure
        for probe in (measure.probe, str(aggregate.against)):
            theirs = evidence.retains[0].get(probe)
            if theirs is None:
                return f"of the retain model: the {probe} probe was not run"
            difference = not_comparable(evidence.tables[probe], theirs)
            if difference is not None:
                return difference
        other = _two_sets(aggregate, replace(evidence, tables=evidence.retains[0]), options)
        if isinstance(other, str):
            return f"of the retain model: {other}"
        retain = other
    return privleak_with_interval(*found, retain, epsilon=float(options.get("epsilon", 0.0)))


def _over_samples(estimate: Callable[[Values], Estimate]) -> Callable[..., Found]:
    def compute(
        aggregate: Aggregate, measures: Measures, evidence: Evidence, options: Mapping[str, Any]
    ) -> Found:
        values = aggregate._measure.samples(evidence, options)
        return values if isinstance(values, str) else estimate(values)

    return compute


_KINDS: dict[Kind, Callable[[Aggregate, Measures, Evidence, Mapping[str, Any]], Found]] = {
    "harmonic_mean": _harmonic_mean,
    "one_minus_mean": _one_minus_mean,
    "auc": _auc,
    "privleak": _privleak,
    "median": _over_samples(median_with_interval),
    "max": _over_samples(max_with_interval),
}
