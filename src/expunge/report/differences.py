"""Two runs on the same questions: what differs, and what cannot be told apart.

Two intervals that overlap are no proof that two runs are alike: both models answered the same
questions, and question by question a small difference can be clear. So the difference itself is
drawn anew, from the stored per-sample tables, with the metrics of the benchmark.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from expunge.benchmarks import Benchmark, benchmarks
from expunge.core.errors import InputError
from expunge.core.results import Better, ModelResults
from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.evidence import Evidence, not_comparable
from expunge.evaluation.measures import Measure
from expunge.evaluation.store import EvaluationStore
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import Values
from expunge.metrics.compare import (
    Difference,
    compare_aucs,
    compare_distances,
    compare_forget_efficacy,
    compare_harmonic_means,
    compare_means,
    compare_medians,
    compare_privleaks,
)
from expunge.metrics.equivalence import ks_distance, middle
from expunge.report.load import retain_folders
from expunge.report.measures import DISTANCE_KEY, column_label, ordered, probe_label
from expunge.report.model import ReportData
from expunge.report.text import count, one_line

COMPARED_ROLE: Final = "unlearned"

Tables = Mapping[str, ProbeTable]
ScoreSets = tuple[Values, Values]  # of forget and holdout set


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One measure of two runs.

    Attributes:
        key: Key of the score; D stands for the forget quality.
        better: Good direction of the measure.
        difference: Second run minus first, over the questions both have a value for.
    """

    key: str
    better: Better
    difference: Difference

    @property
    def verdict(self) -> str:
        """The second run is "higher", "lower", "not distinguishable", or there are too few rows."""
        told = self.difference.distinguishable
        if told is None:
            return "too few questions"
        if not told:
            return "not distinguishable"
        return "higher" if self.difference.value > 0 else "lower"


@dataclass(frozen=True, kw_only=True)
class RunContrast:
    """All measures of two runs.

    Attributes:
        first: Name of the run that is compared with.
        second: Name of the run that is compared with it.
        contrasts: What could be compared, in the order of every table.
        left_out: Measures that could not, by the reason.
    """

    first: str
    second: str
    contrasts: tuple[Contrast, ...] = ()
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def lines(self) -> tuple[str, ...]:
        """The comparison in a few sentences: what is higher, lower, not distinguishable."""
        return self.lines_of({*(item.key for item in self.contrasts), *self._missing})

    def lines_of(self, keys: Collection[str]) -> tuple[str, ...]:
        """The same with some of the measures by name.

        Args:
            keys: The measures to name; of the others only the number is given.
        """
        about = f"{self.second} against {self.first}, by the same questions"
        lines = []
        for verdict in ("higher", "lower", "not distinguishable", "too few questions"):
            found = [item.key for item in self.contrasts if item.verdict == verdict]
            if found:
                lines.append(f"{about}: {verdict}: {_named(found, keys)}.")
        lines += [
            f"{about}: not compared: {_named(missing, keys)} ({reason})."
            if missing
            else f"{about}: not compared: {reason}."
            for reason, missing in self.left_out.items()
        ]
        return tuple(lines)

    @property
    def _missing(self) -> tuple[str, ...]:
        return tuple(key for keys in self.left_out.values() for key in keys)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why measures are missing, a phrase each."""
        return tuple(
            f"{_named(keys, keys)} ({reason})" if keys else reason
            for reason, keys in self.left_out.items()
        )


def _named(found: Sequence[str], keys: Collection[str]) -> str:
    """Measures by name, and how many more there are."""
    names = [column_label(key) for key in found if key in keys]
    others = len(found) - len(names)
    more = f"{others} more" if names else count(others, "measure")
    return "; ".join([*names, *([more] if others else [])])


def compare_runs(reports: Sequence[ReportData]) -> tuple[RunContrast, ...]:
    """The unlearned model of every run compared with that of the first one.

    Args:
        reports: The runs, the one to compare with first.
    """
    if len(reports) < 2:
        return ()
    first, *others = [_Samples.of(report) for report in reports]
    names = [one_line(report.name) for report in reports]
    return tuple(
        _contrast(first, other, names[0], name)
        for other, name in zip(others, names[1:], strict=True)
    )


def chance_note(contrasts: Sequence[RunContrast]) -> str:
    """What so many comparisons at once mean; "" for none."""
    num = sum(len(each.contrasts) for each in contrasts)
    if not num:
        return ""
    return (
        f"{num} differences with 95% intervals: of measures that do not differ at all about one in "
        "twenty is called higher or lower by chance. Not distinguishable is no evidence of "
        "sameness, and another seed of either run would give other numbers."
    )


class _Absent(Exception):
    """There is nothing to compare; says why."""


class _Samples:
    """Per-sample values of the unlearned model of one run.

    Attributes:
        results: Its scores.
        benchmark: The benchmark they come from.
        evidence: The stored tables.
    """

    def __init__(self, results: ModelResults, benchmark: Benchmark, evidence: Evidence) -> None:
        self.results = results
        self.benchmark = benchmark
        self.evidence = evidence
        self.measures = {measure.key: measure for measure in benchmark.measures}
        self.values = functools.cache(self._values)

    @classmethod
    def of(cls, report: ReportData) -> _Samples | str:
        """The samples of a run, or why there are none."""
        model = report.models.get(COMPARED_ROLE)
        results = model.results if model else None
        name = one_line(report.name)
        if results is None:
            return f"{name} has no scores of an unlearned model"
        if results.benchmark not in benchmarks:
            return f"{name} was scored with an unknown benchmark, {one_line(results.benchmark)}"
        benchmark = benchmarks.get(results.benchmark)
        if results.benchmark_version != benchmark.version:
            return (
                f"{name} was scored with version {results.benchmark_version} of "
                f"{benchmark.name}, which is {benchmark.version} now; run: expunge score"
            )
        try:
            tables = _stored(report, COMPARED_ROLE)
        except InputError:
            return f"{name} has no per-sample tables"
        evidence = Evidence(
            tables=tables,
            retains=tuple(_retains(report)),
            initial=_optional(report, "target"),
            base=_optional(report, "base"),
        )
        return cls(results, benchmark, evidence)

    @property
    def options(self) -> dict[str, Any]:
        options = self.results.settings.get("metric_options")
        return dict(options) if isinstance(options, Mapping) else {}

    def _values(self, key: str) -> Values:
        return self.of_measure(self.measures[key])

    def of_measure(self, measure: Measure, tables: Tables | None = None) -> Values:
        """Values of any measure, of the model itself or of one with other tables."""
        evidence = self.evidence if tables is None else replace(self.evidence, tables=tables)
        found = measure.samples(evidence, self.options)
        if isinstance(found, str):
            raise _Absent(found)
        return found

    def columns(self, aggregate: Aggregate) -> dict[str, Values]:
        """Values of the measures under an aggregate, [n, k] by probe."""
        found: dict[str, list[Values]] = {}
        for key in aggregate.over:
            found.setdefault(self.measures[key].probe, []).append(self.values(key))
        return {probe: np.stack(columns, axis=1) for probe, columns in found.items()}

    def two_sets(self, aggregate: Aggregate, tables: Tables | None = None) -> ScoreSets:
        """Membership scores of forget and holdout set."""
        assert aggregate.samples is not None
        assert aggregate.against is not None
        holdout = replace(aggregate.samples, probe=aggregate.against)
        return self.of_measure(aggregate.samples, tables), self.of_measure(holdout, tables)


def _stored(report: ReportData, role: str) -> Tables:
    return EvaluationStore(report.folder / "evaluation" / role).load()


def _optional(report: ReportData, role: str) -> Tables | None:
    try:
        return _stored(report, role)
    except InputError:
        return None


def _retains(report: ReportData) -> Iterator[Tables]:
    for folder in retain_folders(report.folder, report.manifest):
        try:
            yield EvaluationStore(folder).load()
        except InputError:
            continue


def _contrast(
    first: _Samples | str, second: _Samples | str, first_name: str, second_name: str
) -> RunContrast:
    reasons = [each for each in (first, second) if isinstance(each, str)]
    if isinstance(first, str) or isinstance(second, str):
        return RunContrast(
            first=first_name, second=second_name, left_out=dict.fromkeys(reasons, ())
        )
    if reason := _differently_scored(first, second):
        return RunContrast(first=first_name, second=second_name, left_out={reason: ()})
    contrasts: dict[str, Contrast] = {}
    left_out: dict[str, list[str]] = {}
    for key, better in _common(first, second).items():
        try:
            found = _difference(first, second, key)
        except _Absent as reason:
            left_out.setdefault(str(reason), []).append(key)
            continue
        name = DISTANCE_KEY if key == "forget_quality" else key
        way: Better = "lower" if key == "forget_quality" else better
        contrasts[name] = Contrast(key=name, better=way, difference=found)
    return RunContrast(
        first=first_name,
        second=second_name,
        contrasts=tuple(contrasts[key] for key in ordered(contrasts)),
        left_out={reason: tuple(ordered(keys)) for reason, keys in left_out.items()},
    )


def _differently_scored(first: _Samples, second: _Samples) -> str:
    if first.benchmark.name != second.benchmark.name:
        return f"other benchmarks: {first.benchmark.name} and {second.benchmark.name}"
    if first.options != second.options:
        return f"scored with other options: {first.options} and {second.options}"
    return ""


def _common(first: _Samples, second: _Samples) -> dict[str, Better]:
    """Scores that both runs have a value for, with their good direction."""
    theirs = second.results.scores
    return {
        key: score.better
        for key, score in first.results.scores.items()
        if score.value is not None and key in theirs and theirs[key].value is not None
    }


def _difference(first: _Samples, second: _Samples, key: str) -> Difference:
    if key in first.measures:
        _check_probes(first, second, first.measures[key].probe)
        return compare_means(first.values(key), second.values(key))
    for aggregate in first.benchmark.aggregates:
        if aggregate.name == key:
            return _aggregate_difference(first, second, aggregate)
    raise _Absent("no per-sample values are stored")


def _aggregate_difference(first: _Samples, second: _Samples, item: Aggregate) -> Difference:
    probes = [first.measures[key].probe for key in item.over]
    probes += [item.samples.probe] if item.samples else []
    probes += [item.against] if item.against else []
    _check_probes(first, second, *probes)
    if item.kind == "harmonic_mean":
        return compare_harmonic_means(first.columns(item), second.columns(item))
    if item.kind == "one_minus_mean":
        sides = [np.concatenate([*each.columns(item).values()], axis=1) for each in (first, second)]
        return compare_forget_efficacy(*sides)
    if item.kind == "auc":
        return compare_aucs(first.two_sets(item), second.two_sets(item))
    if item.kind == "privleak":
        retains = [_retain_scores(each, item) for each in (first, second)]
        epsilon = float(first.options.get("epsilon", 0.0))
        return compare_privleaks(
            first.two_sets(item), second.two_sets(item), *retains, epsilon=epsilon
        )
    assert item.samples is not None
    sides = [each.of_measure(item.samples) for each in (first, second)]
    if item.kind == "forget_quality":
        return compare_distances(
            *sides, *(_nearest(each, item.samples) for each in (first, second))
        )
    if item.kind == "median":
        return compare_medians(*sides)
    raise _Absent("drawing questions anew says nothing about a largest value")


def _nearest(samples: _Samples, measure: Measure) -> Values:
    """Of the retain model that the headline of the forget quality is about."""
    retains = [samples.of_measure(measure, tables) for tables in samples.evidence.retains]
    if not retains:
        raise _Absent("the samples of the retain model are not stored in a run")
    own = samples.of_measure(measure)
    return retains[middle([ks_distance(own, values) for values in retains])]


def _retain_scores(samples: _Samples, item: Aggregate) -> ScoreSets | float:
    known = samples.options.get("retain_auc")
    if known is not None:
        return float(known)
    if not samples.evidence.retains:
        raise _Absent("the samples of the retain model are not stored in a run")
    return samples.two_sets(item, samples.evidence.retains[0])


def _check_probes(first: _Samples, second: _Samples, *probes: str) -> None:
    for probe in dict.fromkeys(probes):
        tables = [each.evidence.tables.get(probe) for each in (first, second)]
        if tables[0] is None or tables[1] is None:
            raise _Absent(f"no per-sample table of the {probe_label(probe).lower()} is stored")
        if reason := not_comparable(tables[1], tables[0], "first"):
            raise _Absent(reason.replace("the first model", "the first run's model"))
