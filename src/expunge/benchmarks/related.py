"""Related knowledge: is a forgotten fact rebuilt from facts that imply it?

UIPE, arXiv:2503.04693, section 4. A folder of facts written by `expunge.data.related` gives the
rows: targets to forget, related facts that imply them, unrelated facts about other people, and
questions for the targets by way of related facts. The paper gives ROUGE-L on targets and related
facts, and on TruthfulQA for utility, without saying recall or F1: recall with stemmer is the first
here, as in TOFU, and F1 stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.benchmarks import Benchmark, Preset, register
from expunge.core.errors import InputError
from expunge.core.results import Better
from expunge.data.related import RelatedFacts, fact_id, load_related
from expunge.data.rows import Row, RowSet, row_set
from expunge.data.sources import load_rows
from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.measures import Measure
from expunge.evaluation.probes import Probe, first_rows
from expunge.evaluation.standard import forget_measures, utility_measures

NAME = "related_knowledge"
FORGET_PROBES = ("target", "related", "reconstruction")
TRUTHFUL_QA = "truthfulqa"
OPTIONS = {
    "folder": "folder of related facts: target.jsonl, related.jsonl, unrelated.jsonl and "
    "reconstruction.jsonl",
    TRUTHFUL_QA: "source of question-answer rows on which utility is measured, such as TruthfulQA",
}


def build_probes(
    forget: RowSet,
    retain: RowSet | None = None,
    *,
    rows: Mapping[str, int | None],
    options: Mapping[str, Any] | None = None,
) -> list[Probe]:
    """Probes target, related, unrelated and reconstruction, and truthfulqa if rows are given.

    All rows come from the folder, so that models which learned and unlearned different parts of it
    are asked the same. Only targets that are in the forget set count, with what belongs to them: a
    slice of the targets is measured as that slice.

    Args:
        forget: What is to be forgotten: targets of the folder, possibly related facts too.
        retain: Not read; the unrelated rows of the folder take its place.
        rows: First rows of each probe to use; None or absent: all.
        options: `folder` holds target.jsonl, related.jsonl, unrelated.jsonl and
            reconstruction.jsonl; `truthfulqa` is a source of question-answer rows for utility.

    Raises:
        InputError: No folder, or a forget set without any target of the folder.
    """
    chosen = options or {}
    if not chosen.get("folder"):
        raise InputError(f"{NAME} needs the option folder, a {OPTIONS['folder']}")
    facts = _asked(load_related(chosen["folder"]), forget, chosen["folder"])
    sets = {
        "target": facts.target,
        "related": facts.related,
        "unrelated": facts.unrelated,
        "reconstruction": facts.reconstruction,
    }
    if chosen.get(TRUTHFUL_QA) is not None:
        sets[TRUTHFUL_QA] = load_rows(chosen[TRUTHFUL_QA], name=TRUTHFUL_QA)
    return [
        Probe(name=name, rows=first_rows(found, rows.get(name)))
        for name, found in sets.items()
        if len(found)
    ]


def _asked(facts: RelatedFacts, forget: RowSet, folder: Any) -> RelatedFacts:
    """The facts whose target is in the forget set."""
    gone = {_identity(row) for row in forget}
    kept = {fact_id(row) for row in facts.target if _identity(row) in gone}
    if not kept:
        raise InputError(
            f"none of the {len(forget)} rows to forget ({forget.origin}) is a target of {folder}; "
            f"take {folder}/target.jsonl as the forget set, or the folder it came from"
        )

    def of_kept(rows: RowSet) -> RowSet:
        found = [row for row in rows if fact_id(row) in kept]
        if len(found) == len(rows):
            return rows
        return row_set(found, name=rows.name, origin=f"{rows.origin}, rows of forgotten targets")

    return RelatedFacts(
        target=of_kept(facts.target),
        related=of_kept(facts.related),
        unrelated=facts.unrelated,
        reconstruction=of_kept(facts.reconstruction),
    )


def _identity(row: Row) -> tuple[str, str]:
    return row.question.strip(), row.answer.strip()


def _f1(probe: str, better: Better) -> Measure:
    """ROUGE-L F1, the other reading of the paper's ROUGE-L."""
    return Measure(
        name="rouge_l_f1", probe=probe, metric="rouge_l_f1", better=better, unit="ROUGE-L F1"
    )


_UTILITY = utility_measures("unrelated", among_options=False)
_FORGET = tuple(
    measure for probe in FORGET_PROBES for measure in (*forget_measures(probe), _f1(probe, "lower"))
)
_TRUTHFUL_QA = Measure(
    name="rouge_l_recall",
    probe=TRUTHFUL_QA,
    metric="rouge_l_recall",
    better="higher",
    unit="ROUGE-L recall",
)

BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="forgotten facts that related facts imply, and questions that put them together",
        source="UIPE, arXiv:2503.04693, section 4, on generated facts",
        version=1,
        probes=("target", "related", "unrelated", "reconstruction", TRUTHFUL_QA),
        measures=(
            *_FORGET,
            *_UTILITY,
            _f1("unrelated", "higher"),
            _TRUTHFUL_QA,
            _f1(TRUTHFUL_QA, "higher"),
        ),
        aggregates=(
            Aggregate(
                name="unrelated_utility",
                kind="harmonic_mean",
                over=tuple(measure.key for measure in _UTILITY),
                better="higher",
                unit="harmonic mean of three values",
            ),
            Aggregate(
                name="forget_quality",
                kind="forget_quality",
                samples=Measure(
                    name="truth_ratio",
                    probe="target",
                    metric="truth_ratio",
                    better="none",
                    unit="wrong/right",
                ),
                better="higher",
                unit="p-value",
            ),
        ),
        presets={
            "short_answers": Preset(
                name="short_answers",
                title="at most 32 tokens per answer: the generated facts have a word or two",
                settings={"max_new_tokens": 32},
            ),
        },
        builder=build_probes,
        reader=load_related,
        options=OPTIONS,
    )
)
