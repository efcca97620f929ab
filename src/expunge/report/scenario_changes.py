"""Whether a value moved between two models of a scenario: by the same questions where possible.

Both models answered the same questions, and question by question a small difference can be clear,
see `expunge.metrics.compare`. Where per-sample tables are missing the two 95% intervals stand in:
they must not overlap, which finds less.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from expunge.benchmarks import Benchmark, benchmarks
from expunge.core.errors import InputError
from expunge.core.results import Better, Record, Score, Value
from expunge.evaluation.evidence import Evidence, not_comparable
from expunge.evaluation.store import EvaluationStore
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import Values
from expunge.metrics.compare import FEWEST_ROWS, compare_harmonic_means, compare_means
from expunge.report.measures import split_key
from expunge.report.scenario_values import FORGET, MAIN_MEASURES, RequestRow, Scenario, StageReport

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
    """Values of single questions of one model.

    Attributes:
        benchmark: The benchmark, with a probe for every request.
        options: What they are scored with.
        tables: Which questions they are about, by probe, without what the model answered.
        values: By key; a text says why there are none.
    """

    benchmark: Benchmark
    options: dict[str, Any]
    tables: Mapping[str, ProbeTable]
    values: Mapping[str, Values | str]


class Changes:
    """Compares models of a scenario; the tables of each are read once and not kept.

    Args:
        scenario: The scenario.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._names = [each.stage.name for each in scenario.stages]
        self._samples = functools.cache(self._read)

    def of_request(self, row: RequestRow, name: str, t: int) -> Change:
        """A main measure of a request's rows after request `t` compared with right after its own.

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
        keys = [f"{probe}/{each}" for probe in (FORGET, *self._names) for each in MAIN_MEASURES]
        return self._between(own, later, tuple(keys))

    def of_kept(self, first: Place, second: Place) -> Change:
        """A score over sets that should stay, second minus first."""
        return self._between(first, second, (first.key,))

    def _between(self, first: Place, second: Place, keys: tuple[str, ...]) -> Change:
        if first.score.value is None or second.score.value is None:
            return Change(reason=first.score.reason or second.score.reason)
        one, other = (
            self._samples(each.stage.position, each.role, keys) for each in (first, second)
        )
        if isinstance(one, str):
            return _by_intervals(first.score, second.score, one)
        if isinstance(other, str):
            return _by_intervals(first.score, second.score, other)
        if one.benchmark.name != other.benchmark.name or one.options != other.options:
            return Change(reason="the two models were not scored in the same way")
        found = _by_questions(one, first.key, other, second.key)
        return _by_intervals(first.score, second.score, found) if isinstance(found, str) else found

    def _read(self, position: int, role: str, keys: tuple[str, ...]) -> _Samples | str:
        """The values of a model, or why there are none. An aggregate stands for its measures."""
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
        benchmark = benchmark.with_further(self._names)
        given = results.settings.get("metric_options")
        options = dict(given) if isinstance(given, dict) else {}
        wanted = {part for key in keys for part in _parts(benchmark, key)}
        evidence = Evidence(tables=tables)
        return _Samples(
            benchmark=benchmark,
            options=options,
            tables={probe: _without_answers(table) for probe, table in tables.items()},
            values={
                measure.key: measure.samples(evidence, options)
                for measure in benchmark.measures
                if measure.key in wanted and measure.probe in tables
            },
        )


def _parts(benchmark: Benchmark, key: str) -> tuple[str, ...]:
    """Keys of the measures that a harmonic mean is made of; any other key stands for itself."""
    for item in benchmark.aggregates:
        if item.name == key and item.kind == "harmonic_mean":
            return item.over
    return (key,)


def _without_answers(table: ProbeTable) -> ProbeTable:
    columns = {name: table[name] for name in ("question", "answer") if name in table}
    return replace(table, columns=columns)


def _by_questions(one: _Samples, key: str, other: _Samples, other_key: str) -> Change | str:
    """Question by question, or why that cannot be."""
    parts, other_parts = _parts(one.benchmark, key), _parts(other.benchmark, other_key)
    sides: tuple[dict[str, list[Values]], dict[str, list[Values]]] = ({}, {})
    for part, other_part in zip(parts, other_parts, strict=True):
        pair = _pair(one, part, other, other_part)
        if isinstance(pair, str):
            return pair
        for side, values in zip(sides, pair, strict=True):
            side.setdefault(split_key(part)[0], []).append(values)
    if parts == (key,):
        (first,), (second,) = (side[split_key(key)[0]] for side in sides)
        return _change(compare_means, first, second)
    columns = [{probe: np.stack(v, axis=1) for probe, v in side.items()} for side in sides]
    return _change(compare_harmonic_means, *columns)


def _pair(one: _Samples, key: str, other: _Samples, other_key: str) -> tuple[Values, Values] | str:
    """The values of both sides, or why they cannot be paired."""
    early, late = (
        side.tables.get(split_key(each)[0]) for side, each in ((one, key), (other, other_key))
    )
    if early is None or late is None:
        return "not all answers are stored"
    if reason := not_comparable(late, early, "earlier"):
        return reason
    unknown = "no values of single questions are stored"
    values, others = one.values.get(key, unknown), other.values.get(other_key, unknown)
    if isinstance(values, str):
        return values
    return others if isinstance(others, str) else (values, others)


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

    Only measures that fall as a set is forgotten say so. The truth ratio is largest where right and
    wrong answers are equally likely: it falls on the way back and on the way past that point alike.

    Args:
        verdict: How the later value compares with the one right after the request.
        better: Good direction of the measure on a forgotten set.
    """
    if better != "lower":
        return verdict
    return {"higher": "came back", "lower": "forgotten further"}.get(verdict, verdict)
