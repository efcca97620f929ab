"""TOFU: forget invented authors, keep the other ones, real authors and world facts.

arXiv:2401.06121. Nine values make the model utility; forget quality compares truth ratios on the
forget set with those of a model that never saw it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from expunge.benchmarks import HOLDOUT, Benchmark, Preset, holdout_probe, register
from expunge.data.rows import Row, RowSet, row_set
from expunge.data.sources import load_rows
from expunge.data.tofu import load_tofu
from expunge.evaluation.probes import PERTURBED, Probe, first_rows, with_fields
from expunge.evaluation.standard import (
    CLOSER_LOOK_ONLY,
    CLOSER_LOOK_UTILITY,
    FLUENCY,
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

# Together they hold every row for which wrong answers exist: authors 1-20 and 181-200.
_PERTURBED_SPLITS = ("retain_perturbed", "forget10_perturbed")


@cache
def _perturbed_fields() -> dict[tuple[str, str], Mapping[str, Any]]:
    """Paraphrase and wrong answers by question and answer."""
    rows = [row for split in _PERTURBED_SPLITS for row in load_tofu(split)]
    return {
        (row["question"].strip(), row["answer"].strip()): {
            name: value for name, value in row.items() if name not in ("question", "answer")
        }
        for row in rows
    }


def build_probes(
    forget: RowSet,
    retain: RowSet | None,
    *,
    rows: Mapping[str, int | None],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Probe]:
    """Probes forget, retain, real_authors and world_facts, and holdout if it is named.

    TOFU rows get their paraphrase and wrong answers, whatever slice of whatever split they come
    from; other rows keep what fields they have. The retain probe consists of those retain rows that
    have wrong answers (the first 400 of `full`), as in TOFU, or of all retain rows if none has.

    Args:
        forget: What is to be forgotten.
        retain: What is to be kept; None for `retain_perturbed` without rows that are to be
            forgotten.
        rows: First rows of each probe to use; None or absent: all.
        options: `holdout` is a source of rows for attacks.
    """
    sets = {
        "forget": with_fields(forget, _perturbed_fields()),
        "retain": _retain_rows(forget, retain),
        "real_authors": load_rows("tofu:real_authors_perturbed", name="real_authors"),
        "world_facts": load_rows("tofu:world_facts_perturbed", name="world_facts"),
    }
    return [
        *(
            Probe(name=name, rows=first_rows(found, rows.get(name)), generate=not found.is_text)
            for name, found in sets.items()
        ),
        *holdout_probe(options, rows),
    ]


def _retain_rows(forget: RowSet, retain: RowSet | None) -> RowSet:
    if retain is None:
        known = load_rows("tofu:retain_perturbed", name="retain")
        gone = {(row.question.strip(), row.answer.strip()) for row in forget}

        def kept(row: Row) -> bool:
            return (row.question.strip(), row.answer.strip()) not in gone

        return row_set(filter(kept, known), name="retain", origin=known.origin)
    completed = with_fields(retain, _perturbed_fields())
    measurable = [row for row in completed if row.fields.get(PERTURBED)]
    if not measurable or len(measurable) == len(completed):
        return completed
    origin = f"{retain.origin}, rows with wrong answers"
    return row_set(measurable, name="retain", origin=origin)


BENCHMARK = register(
    Benchmark(
        name="tofu",
        title="invented authors to forget and to keep, real authors, world facts",
        source="TOFU, arXiv:2401.06121; Closer Look, arXiv:2410.08109",
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
        presets={
            "tofu_classic": Preset(
                name="tofu_classic",
                title="TOFU, NPO, SimNPO, EGUP: first 300 rows, 200 tokens in total",
                rows=dict.fromkeys(("forget", *UTILITY_PROBES), 300),
                settings={"max_new_tokens": 200, "max_total_tokens": 200, "max_length": 200},
                leaves_out=CLOSER_LOOK_ONLY | FLUENCY,
            ),
            "tofu_cl": Preset(
                name="tofu_cl",
                title="Closer Look: as tofu_classic, eighteen utility values, forget efficacy "
                "instead of forget quality",
                rows=dict.fromkeys(("forget", *UTILITY_PROBES), 300),
                settings={"max_new_tokens": 200, "max_total_tokens": 200, "max_length": 200},
                leaves_out=FLUENCY | {"forget_quality"},
            ),
            "tofu_ou": Preset(
                name="tofu_ou",
                title="open-unlearning: all rows, 200 new tokens, epsilon in ratios",
                settings={"max_new_tokens": 200, "max_length": 512},
                options={"epsilon": 1e-10, "floor": True},
                leaves_out=CLOSER_LOOK_ONLY | FLUENCY,
            ),
        },
        builder=build_probes,
        options={"holdout": HOLDOUT},
    )
)
