"""Probes run once per model and stored as per-sample tables; scores and results made from those.

The names below are imported on first use, so that reading stored tables loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.evaluation.aggregates import Aggregate
    from expunge.evaluation.evidence import Evidence
    from expunge.evaluation.measures import Measure
    from expunge.evaluation.probes import EvaluationSettings, Probe
    from expunge.evaluation.runner import run_probes
    from expunge.evaluation.store import EvaluationStore, TablePool
    from expunge.evaluation.tables import ProbeTable

_HOME = {
    "Aggregate": "aggregates",
    "EvaluationSettings": "probes",
    "EvaluationStore": "store",
    "Evidence": "evidence",
    "Measure": "measures",
    "Probe": "probes",
    "ProbeTable": "tables",
    "TablePool": "store",
    "run_probes": "runner",
}

__all__ = [
    "Aggregate",
    "EvaluationSettings",
    "EvaluationStore",
    "Evidence",
    "Measure",
    "Probe",
    "ProbeTable",
    "TablePool",
    "run_probes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
