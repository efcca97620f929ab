"""Real-world individuals: forget people a model knows from pretraining, keep their neighbors.

Closer Look, arXiv:2410.08109. There is no fine-tuning and no retain model, so forget efficacy takes
the place of forget quality. The data are the user's, see `expunge.data.real_world`: the data
section trains on `forget.json` and `neighbor.json`, and the option `folder` says where the rows of
the evaluation are. Its neighbors are people who are not trained on either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from expunge.benchmarks import Aggregate, Benchmark, Preset, register
from expunge.core.errors import InputError
from expunge.data.real_world import evaluation_rows
from expunge.data.rows import RowSet, row_set
from expunge.evaluation.harness_tasks import GENERAL_TASKS
from expunge.evaluation.probes import Probe, first_rows
from expunge.evaluation.standard import (
    FLUENCY,
    closer_look_measures,
    fluency_measures,
    forget_efficacy,
    forget_efficacy_parts,
    forget_measures,
    utility_measures,
)

_OPTIONS = {
    "folder": "folder with forget, forget_perturbed, neighbor and neighbor_perturbed, each .json "
    "or .jsonl"
}


def build_probes(
    forget: RowSet,
    retain: RowSet | None,
    *,
    rows: Mapping[str, int | None],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Probe]:
    """Probes forget and neighbor.

    Their true answers are the golden ones; what the model said before unlearning goes along as
    `original_answer`. Of the forget rows those are taken that `forget` asks about, so that a single
    request of a continual run is measured on its own people.

    Args:
        forget: What is to be forgotten; only its questions are read.
        retain: Not read: the neighbors that are kept in training are not those that are measured.
        rows: First rows of each probe to use; None or absent: all.
        options: `folder` is the user's folder.

    Raises:
        InputError: No folder is named, it is damaged, or it has no row about what `forget` asks.
    """
    if not options.get("folder"):
        raise InputError(f"real_world needs evaluation.options.folder: {_OPTIONS['folder']}")
    found = evaluation_rows(options["folder"])
    sets = {"forget": _asked(found.forget, forget), "neighbor": found.neighbor}
    return [Probe(name=name, rows=first_rows(some, rows.get(name))) for name, some in sets.items()]


def _asked(rows: RowSet, forget: RowSet) -> RowSet:
    """Rows with a question of the forget set."""
    questions = {row.question.strip() for row in forget}
    kept = [row for row in rows if row.question.strip() in questions]
    if not kept:
        raise InputError(
            f"{rows.origin} has no question of the forget set ({forget.origin}); train on the "
            f"file forget.json of the same folder"
        )
    if len(kept) == len(rows):
        return rows
    return row_set(kept, name=rows.name, origin=f"{rows.origin}, rows to be forgotten")


FORGET = (
    *forget_measures(),
    *closer_look_measures("forget", forget=True, premise_generation=True),
    *forget_efficacy_parts(),
    *fluency_measures(),
)

NEIGHBOR = (
    *utility_measures("neighbor", among_options=False),
    *closer_look_measures("neighbor", premise_generation=True),
)

MODEL_UTILITY_CL = Aggregate(
    name="model_utility_cl",
    kind="harmonic_mean",
    over=tuple(measure.key for measure in NEIGHBOR),
    better="higher",
    unit="harmonic mean of six values",
)

BENCHMARK = register(
    Benchmark(
        name="real_world",
        title="real people to forget, their neighbors to keep; data of your own",
        source="Closer Look, arXiv:2410.08109",
        version=1,
        probes=("forget", "neighbor"),
        measures=(*FORGET, *NEIGHBOR),
        aggregates=(MODEL_UTILITY_CL, forget_efficacy()),
        presets={
            "real_world_cl": Preset(
                name="real_world_cl",
                title="Closer Look: all rows, 200 tokens in total",
                settings={"max_new_tokens": 200, "max_total_tokens": 200, "max_length": 200},
                leaves_out=FLUENCY,
            ),
        },
        builder=build_probes,
        options=_OPTIONS,
        reader=evaluation_rows,
        # Closer Look asks them with the beginning-of-sequence token.
        harness=tuple(replace(task, add_bos=True) for task in GENERAL_TASKS),
    )
)
