"""Truth ratios as distributions: from a per-sample table, how far apart, and as a curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


class Distance(NamedTuple):
    """The Kolmogorov-Smirnov distance of two samples.

    Attributes:
        statistic: D, the largest difference between the two empirical distributions, 0..1.
        at: The value at which they differ most.
        low: The lower of the two distribution functions there.
        high: The higher one; D = high - low.
    """

    statistic: float
    at: float
    low: float
    high: float


def truth_ratios(table: pa.Table, options: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Truth ratio of every row of a per-sample table, nan where it cannot be computed.

    None for a table without wrong answers.

    Args:
        table: The table.
        options: Options of metrics, as the results name them; those that
            `expunge.metrics.likelihood.truth_ratio` does not know are left out.
    """
    from expunge.metrics.likelihood import truth_ratio

    known = truth_ratio.__kwdefaults__ or {}
    columns = {name: table[name].to_pylist() for name in table.column_names if "logps" in name}
    if not any(columns.get("perturbed_logps", [])) or "answer_logps" not in columns:
        return None
    return truth_ratio(
        columns["answer_logps"],
        columns.get("paraphrase_logps"),
        columns["perturbed_logps"],
        **{name: value for name, value in options.items() if name in known},
    )


def ks_distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> Distance | None:
    """Where and how far the empirical distributions of `x` and `y` differ most; nan is left out."""
    x, y = np.sort(x[~np.isnan(x)]), np.sort(y[~np.isnan(y)])
    if not x.size or not y.size:
        return None
    points = np.concatenate([x, y])
    in_x = np.searchsorted(x, points, side="right") / x.size
    in_y = np.searchsorted(y, points, side="right") / y.size
    at = int(np.argmax(np.abs(in_x - in_y)))
    low, high = sorted((float(in_x[at]), float(in_y[at])))
    return Distance(high - low, float(points[at]), low, high)


def ecdf(values: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Empirical distribution function as values and shares at or below them; nan is left out."""
    sorted_values = np.sort(values[~np.isnan(values)])
    shares = np.arange(1, sorted_values.size + 1) / max(sorted_values.size, 1)
    return sorted_values.tolist(), shares.tolist()
