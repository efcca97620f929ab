"""Values of metrics that another project computed, in tables made from its files.

An imported table may hold a metric's values as such, in a column "given_METRIC". Of its other
columns some only stand for what a model would give: a mean loss as an answer of one token. So its
`info["imported"]` names the metrics that may be computed from them; all others are absent, not
made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from expunge.evaluation.tables import ProbeTable
from expunge.metrics import Values

GIVEN: Final = "given_"
"""Prefix of columns with a metric's values, one number per sample or None."""


def given_values(
    table: ProbeTable, metric: str, options: Mapping[str, Any] | None = None
) -> Values | str | None:
    """A metric's values as they were imported, or why an imported table cannot have them.

    None where they are to be computed from the columns: in every table of a model that was
    evaluated here, and in an imported one for the metrics that its columns are good for.

    Args:
        table: Any table.
        metric: Name of the metric.
        options: Options that are asked for; values that were made with others do not count.
    """
    imported = table.info.get("imported")
    if imported is None:
        return None
    made_with = imported.get("given", {}).get(metric, {})
    asked = options or {}
    others = {name: made for name, made in made_with.items() if asked.get(name, made) != made}
    if GIVEN + metric in table and not others:
        values = [np.nan if value is None else value for value in table[GIVEN + metric]]
        return np.array(values, dtype=np.float64)
    if metric in imported.get("metrics", ()):
        return None
    if others:
        made = ", ".join(f"{name} {value}" for name, value in others.items())
        return f"not measurable on {table.probe}: the imported file has it with {made}"
    return f"not measurable on {table.probe}: the imported file has neither it nor its ingredients"
