"""Measures: the mean of a metric over a probe, and which way is good there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from expunge.core.results import Better, Score
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.given import given_values
from expunge.metrics import Values, metrics
from expunge.metrics.aggregate import Estimate, mean_with_interval

UNSCORABLE = "not one of the samples could be scored"


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
        scale: The samples are multiplied by it; 100 where a benchmark prints percent.
    """

    name: str
    probe: str
    metric: str
    better: Better
    unit: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def key(self) -> str:
        """Key in results: "forget/probability"."""
        return f"{self.probe}/{self.name}"

    def samples(self, evidence: Evidence, options: Mapping[str, Any] | None = None) -> Values | str:
        """One value per sample, or why there are none.

        Args:
            evidence: The stored tables.
            options: Options that a preset sets for every metric that knows them.
        """
        item = metrics.get(self.metric)
        known = item.function.__kwdefaults__ or {}
        chosen = {name: value for name, value in (options or {}).items() if name in known}
        chosen |= self.options
        table = evidence.tables.get(self.probe)
        given = None if table is None else given_values(table, self.metric, chosen)
        if given is not None:
            return given if isinstance(given, str) else self.scale * given
        columns = evidence.columns(self.probe, item.reads, item.optional)
        return columns if isinstance(columns, str) else self.scale * item(columns, **chosen)

    def score(self, evidence: Evidence, options: Mapping[str, Any] | None = None) -> Score:
        """The mean with its interval; see `samples`."""
        values = self.samples(evidence, options)
        version = metrics.get(self.metric).version
        found = values if isinstance(values, str) else mean_with_interval(values)
        return score_of(found, better=self.better, unit=self.unit, version=version)


def score_of(found: Estimate | str, *, better: Better, unit: str, version: int) -> Score:
    """A value with its interval as a record, or the reason why there is none."""
    if isinstance(found, str):
        return Score(n=0, better=better, unit=unit, reason=found, metric_version=version)
    absent = found.value != found.value
    return Score(
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        unscored=found.unscored,
        better=better,
        unit=unit,
        reason=UNSCORABLE if absent else None,
        metric_version=version,
        two_sided=None if absent else found.two_sided,
        note=None if absent else found.note,
    )
