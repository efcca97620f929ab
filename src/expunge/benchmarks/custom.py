"""A user's own data: what can be measured on a forget and a retain set without more than that.

Rows with the fields `paraphrased_answer` and `perturbed_answer` (a list of wrong answers) have
truth ratios, and with a retain model a forget quality. Without them those are absent.
"""

from __future__ import annotations

from collections.abc import Mapping

from expunge.benchmarks import Benchmark, register
from expunge.data.rows import RowSet
from expunge.data.sources import load_rows
from expunge.evaluation.probes import Probe, first_rows
from expunge.evaluation.standard import (
    FORGET_MEASURES,
    FORGET_QUALITY,
    MODEL_UTILITY,
    UTILITY_MEASURES,
    UTILITY_PROBES,
)

GENERAL_PROBES = ("real_authors", "world_facts")


def build_probes(
    forget: RowSet, retain: RowSet | None, *, rows: Mapping[str, int | None]
) -> list[Probe]:
    """Probes forget and, if there is a retain set, retain.

    A check of general knowledge, TOFU's real authors and world facts, joins in when `rows` names
    them: `rows={"real_authors": None, "world_facts": 40}`.

    Args:
        forget: What is to be forgotten.
        retain: What is to be kept.
        rows: First rows of each probe to use; None: all.
    """
    sets = {"forget": forget}
    if retain is not None:
        sets["retain"] = retain
    for name in GENERAL_PROBES:
        if name in rows:
            sets[name] = load_rows(f"tofu:{name}_perturbed", name=name)
    return [
        # Plain text has no question, so there is nothing to answer.
        Probe(name=name, rows=first_rows(found, rows.get(name)), generate=not found.is_text)
        for name, found in sets.items()
    ]


BENCHMARK = register(
    Benchmark(
        name="custom",
        title="your own forget and retain set",
        source="the measures of TOFU, arXiv:2401.06121, on other rows",
        version=1,
        probes=("forget", *UTILITY_PROBES),
        measures=(*FORGET_MEASURES, *UTILITY_MEASURES),
        aggregates=(MODEL_UTILITY, FORGET_QUALITY),
        presets={},
        builder=build_probes,
    )
)
