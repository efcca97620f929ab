"""A user's own data: what can be measured on a forget and a retain set without more than that.

Rows with the fields `paraphrased_answer` and `perturbed_answer` (a list of wrong answers) have
truth ratios, and with a retain model a forget quality. Without them those are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from expunge.benchmarks import HOLDOUT, Benchmark, holdout_probe, register
from expunge.data.rows import RowSet
from expunge.data.sources import load_rows
from expunge.evaluation.probes import Probe, first_rows
from expunge.evaluation.standard import (
    CLOSER_LOOK_UTILITY,
    FORGET_MEASURES,
    FORGET_QUALITY,
    MODEL_UTILITY,
    MODEL_UTILITY_CL,
    MODEL_UTILITY_RETAIN,
    RETAIN_GAP,
    UTILITY_MEASURES,
    UTILITY_PROBES,
    attack_aggregates,
    forget_efficacy,
    loss_gap_aggregates,
)

GENERAL_PROBES = ("real_authors", "world_facts")


def build_probes(
    forget: RowSet,
    retain: RowSet | None,
    *,
    rows: Mapping[str, int | None],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Probe]:
    """Probes forget and, if there is a retain set, retain; and holdout if it is named.

    A check of general knowledge, TOFU's real authors and world facts, joins in when `rows` names
    them: `rows={"real_authors": None, "world_facts": 40}`.

    Args:
        forget: What is to be forgotten.
        retain: What is to be kept.
        rows: First rows of each probe to use; None: all.
        options: `holdout` is a source of rows for attacks.
    """
    sets = {"forget": forget}
    if retain is not None:
        sets["retain"] = retain
    for name in GENERAL_PROBES:
        if name in rows:
            sets[name] = load_rows(f"tofu:{name}_perturbed", name=name)
    return [
        # Plain text has no question, so there is nothing to answer.
        *(
            Probe(name=name, rows=first_rows(found, rows.get(name)), generate=not found.is_text)
            for name, found in sets.items()
        ),
        *holdout_probe(options, rows),
    ]


BENCHMARK = register(
    Benchmark(
        name="custom",
        title="your own forget and retain set",
        source="the measures of TOFU, arXiv:2401.06121, on other rows",
        version=2,
        probes=("forget", *UTILITY_PROBES, "holdout"),
        measures=(*FORGET_MEASURES, *UTILITY_MEASURES, *CLOSER_LOOK_UTILITY, *RETAIN_GAP),
        aggregates=(
            MODEL_UTILITY,
            FORGET_QUALITY,
            MODEL_UTILITY_CL,
            MODEL_UTILITY_RETAIN,
            forget_efficacy(),
            *loss_gap_aggregates("forget"),
            *loss_gap_aggregates("retain"),
            *attack_aggregates(),
        ),
        presets={},
        builder=build_probes,
        options={"holdout": HOLDOUT},
    )
)
