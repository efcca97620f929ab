"""Whether a value moved between two models of a scenario: by the same questions where possible.

Both models answered the same questions, and question by question a small difference can be clear,
see `expunge.metrics.compare`. Where per-sample tables are missing the two 95% intervals stand in:
they must not overlap, which finds less.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from expunge.benchmarks import Benchmark, benchmarks
from expunge.core.errors import InputError
from expunge.core.results import Better, Record, Score, Value
from expunge.evaluation.evidence import Evidence, not_comparable
from expunge.evaluation.measures import Measure
from expunge.evaluation.store import EvaluationStore
from expunge.metrics import Values
from expunge.metrics.compare import FEWEST_ROWS, compare_harmonic_means, compare_means
from expunge.report.scenario_values import FORGET, RequestRow, Scenario, StageReport

Verdict = Literal["higher", "lower", "not distinguishable", "too few questions", "not compared"]


class Change(Record):
    """A value of one model compared with that of an earlier one.

    Attributes:
        value: Later minus earlier; None where one of them has no value.
        low: Lower end of its 95% bootstrap interval over questions; None when the intervals of the
            two values were compared instead.
        high: Upper end of it.
        n: Questions with a value on both sides.
        verdict: What is concluded.
        by: What was compared: the same questions, or the intervals of the two values.
        reason: Why it was not compared question by question; None when it was.
    """

    value: Value = None
    low: Value = None
    high: Value = None
    n: int = 0
    verdict: Verdict = "not compared"
    by: Literal["questions", "intervals"] = "questions"
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a value is: a model of a run, and the key of its score.

    Attributes:
        stage: The run.
        role: The model.
        key: The score.
    """

    stage: StageReport
    role: str
    key: str

    @property
    def score(self) -> Score:
        """The score there."""
        return self.stage.score(self.role, self.key)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The per-sample tables of one model.

    Attributes:
        benchmark: The benchmark, with a probe for every request.
        evidence: The tables.
        options: What they are scored with.
    """

    benchmark: Benchmark
    evidence: Evidence
    options: dict[str, Any]


class Changes:
    """Compares models of a scenario; each model's tables are read once.

    Args:
        scenario: The scenario.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._names = [each.stage.name for each in scenario.stages]
        self._samples = functools.cache(self._read)

    def of_request(self, row: RequestRow, name: str, t: int) -> Change:
        """A measure of a request's rows after request `t` compared with right after its own.

        Args:
            row: The request.
            name: Name of the measure.
            t: Position of a later request.
        """
        own = Place(stage=row.stage, role="unlearned", key=f"{FORGET}/{name}")
        asked = f"{row.stage.stage.name}/{name}"
        if own.score.value is None:
            own = Place(stage=self.scenario.stages[row.stage.position], role="target", key=asked)
        later = Place(stage=self.scenario.stages[t - 1], role="unlearned", key=asked)
        return self.between(own, later)

    def between(self, first: Place, second: Place) -> Change:
        """Second minus first."""
        if first.score.value is None or second.score.value is None:
            return Change(reason=first.score.reason or second.score.reason)
        sides = [self._samples(each.stage.position, each.role) for each in (first, second)]
        if reason := next((side for side in sides if isinstance(side, str)), ""):
            return _by_intervals(first.score, second.score, reason)
        one, other = (side for side in sides if not isinstance(side, str))
        if one.benchmark.name != other.benchmark.name or one.options != other.options:
            return Change(reason="the two models were not scored in the same way")
        found = _by_questions(one, first.key, other, second.key)
        return _by_intervals(first.score, second.score, found) if isinstance(found, str) else found

    def _read(self, position: int, role: str) -> _Samples | str:
        """The tables of a model, or why they cannot be used."""
        stage = self.scenario.stages[position - 1]
        model = stage.model(role)
        if stage.report is None or model is None or model.results is None:
            return f"the model of {stage.label} has no scores"
        results = model.results
        if results.benchmark not in benchmarks:
            return f"{stage.label} was scored with a benchmark that is not known here"
        benchmark = benchmarks.get(results.benchmark)
        if benchmark.version != results.benchmark_version:
            return f"{stage.label} was scored with another version of {benchmark.name}"
        try:
            tables = EvaluationStore(stage.report.folder / "evaluation" / role).load()
        except InputError:
            return f"the answers of {stage.label} are not stored"
        options = results.settings.get("metric_options")
        return _Samples(
            benchmark=benchmark.with_further(self._names),
            evidence=Evidence(tables=tables),
            options=dict(options) if isinstance(options, dict) else {},
        )


def _by_questions(one: _Samples, key: str, other: _Samples, other_key: str) -> Change | str:
    """Question by question, or why that cannot be."""
    for item in one.benchmark.aggregates:
        if item.name == key == other_key and item.kind == "harmonic_mean":
            return _means_of_means(one, other, item.over)
    measures = {measure.key: measure for measure in one.benchmark.measures}
    pair = _pair(one, measures.get(key), other, measures.get(other_key))
    return pair if isinstance(pair, str) else _change(compare_means, *pair)


def _pair(
    one: _Samples, measure: Measure | None, other: _Samples, other_measure: Measure | None
) -> tuple[Values, Values] | str:
    """The samples of both sides, or why they cannot be paired."""
    if measure is None or other_measure is None:
        return "no values of single questions are stored"
    tables = [one.evidence.table(measure.probe), other.evidence.table(other_measure.probe)]
    for table in tables:
        if isinstance(table, str):
            return table
    early, late = (table for table in tables if not isinstance(table, str))
    if reason := not_comparable(late, early, "earlier"):
        return reason
    values = measure.samples(one.evidence, one.options)
    other_values = other_measure.samples(other.evidence, other.options)
    if isinstance(values, str):
        return values
    return other_values if isinstance(other_values, str) else (values, other_values)


def _means_of_means(one: _Samples, other: _Samples, keys: Sequence[str]) -> Change | str:
    measures = {measure.key: measure for measure in one.benchmark.measures}
    sides: tuple[dict[str, list[Values]], dict[str, list[Values]]] = ({}, {})
    for key in keys:
        pair = _pair(one, measures[key], other, measures[key])
        if isinstance(pair, str):
            return pair
        for side, values in zip(sides, pair, strict=True):
            side.setdefault(measures[key].probe, []).append(values)
    columns = [{probe: np.stack(v, axis=1) for probe, v in side.items()} for side in sides]
    return _change(compare_harmonic_means, *columns)


def _change(compare: Callable[..., Any], first: Any, second: Any) -> Change:
    found = compare(first, second)
    verdict: Verdict = "not distinguishable"
    if found.distinguishable is None:
        verdict = "too few questions"
    elif found.distinguishable:
        verdict = "higher" if found.value > 0 else "lower"
    return Change(value=found.value, low=found.low, high=found.high, n=found.n, verdict=verdict)


def _by_intervals(first: Score, second: Score, reason: str) -> Change:
    assert first.value is not None, "checked by the caller"
    assert second.value is not None, "checked by the caller"
    n = min(first.n, second.n)
    ends = (first.low, first.high, second.low, second.high)
    verdict: Verdict = "not distinguishable"
    if n < FEWEST_ROWS or any(end is None for end in ends):
        verdict = "too few questions"
    elif first.high is not None and second.low is not None and second.low > first.high:
        verdict = "higher"
    elif first.low is not None and second.high is not None and second.high < first.low:
        verdict = "lower"
    return Change(
        value=second.value - first.value, n=n, verdict=verdict, by="intervals", reason=reason
    )


def in_words(verdict: Verdict, better: Better) -> str:
    """A verdict about a forgotten set, for people: "came back", "forgotten further".

    Args:
        verdict: How the later value compares with the one right after the request.
        better: Good direction of the measure on a forgotten set.
    """
    worse = {"lower": "higher", "higher": "lower"}.get(better)
    if verdict not in ("higher", "lower") or worse is None:
        return verdict
    return "came back" if verdict == worse else "forgotten further"
