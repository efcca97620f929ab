"""Pages of metrics and benchmarks."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.benchmarks import Benchmark
    from expunge.metrics import Metric

_WAYS = {
    "higher": "up",
    "lower": "down",
    "closer_to_retain": "towards the retain model",
    "closer_to_zero": "towards 0, from either side",
    "closer_to_half": "towards 0.5, from either side",
    "none": "-",
}


def metric_facts(metric: Metric) -> list[str]:
    """Columns, range, direction, version and source of a metric, one per line."""
    low, high = metric.range
    reads = [f"{name} (optional)" if name in metric.optional else name for name in metric.reads]
    return [
        f"Reads: {', '.join(reads)}",
        f"Range: {low:g} to {high:g}",
        f"Good direction: {metric.direction}",
        f"Version: {metric.version}",
        f"Source: {metric.source}",
    ]


def metric_doc(metric: Metric) -> str:
    """Docstring of a metric up to its arguments."""
    return (inspect.getdoc(metric.function) or "").partition("\n\nArgs:")[0]


def metric_page(name: str) -> str | None:
    """The page of a metric; None if there is none of that name."""
    from expunge.metrics import metrics
    from expunge.run.pages import option_lines, option_table

    if name not in metrics:
        return None
    metric = metrics.get(name)
    lines = [f"{metric.name}: {metric.title}", "", *metric_facts(metric), "", metric_doc(metric)]
    rows = option_table(metric.function)
    return "\n".join([*lines, *(["", *option_lines(rows)] if rows else [])])


def benchmark_facts(benchmark: Benchmark) -> list[str]:
    """Probes, version and source of a benchmark, one per line."""
    return [
        f"Probes: {', '.join(benchmark.probes)}",
        f"Version: {benchmark.version}",
        f"Source: {benchmark.source}",
    ]


def measure_rows(benchmark: Benchmark) -> list[tuple[str, str, str, str]]:
    """Key, metric, good direction and unit of every measure and aggregate."""
    rows = [(m.key, m.metric, _WAYS[m.better], m.unit) for m in benchmark.measures]
    for item in benchmark.aggregates:
        over = f"{item.kind} of {len(item.over)} values" if len(item.over) > 1 else item.kind
        rows.append((item.name, over, _WAYS[item.better], item.unit))
    return rows


def preset_rows(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Name and meaning of every preset."""
    return [(preset.name, preset.title) for preset in benchmark.presets.values()]


def benchmark_page(name: str) -> str | None:
    """The page of a benchmark; None if there is none of that name."""
    from expunge.benchmarks import benchmarks
    from expunge.run.table import aligned

    if name not in benchmarks:
        return None
    benchmark = benchmarks.get(name)
    lines = [f"{benchmark.name}: {benchmark.title}", "", *benchmark_facts(benchmark), ""]
    lines += aligned([("value", "metric", "good", "unit"), *measure_rows(benchmark)])
    if benchmark.presets:
        lines += ["", "Presets:", *(f"  {line}" for line in aligned(preset_rows(benchmark)))]
    return "\n".join(lines)
