"""Metrics: pure functions from stored per-sample outputs to one value per sample, and aggregates.

They need numpy, scipy and rouge-score and no model, so everything can be scored again later.
"""

from expunge.metrics.registry import Metric, Values, metric, metrics

__all__ = ["Metric", "Values", "metric", "metrics"]
