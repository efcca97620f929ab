"""Names of open-unlearning's metrics (arXiv:2506.12618) and what they are here.

One table serves reading and writing. The per-sample numbers of a metric go to a column of the
probe's table; its mean, or the aggregate, is the score of the benchmark that has the same metric on
the same probe. Keys of scores are looked up in the benchmark, never spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.measures import Measure

TEXTS: Final = {"question": "input", "answer": "ground_truth", "generation": "generation"}
"""Our text columns by the name of the text in open-unlearning's ROUGE entries."""

OVERLAPS: Final = {
    "rouge1_recall": "rouge1_recall",
    "rouge_l_recall": "rougeL_recall",
    "rouge_l_f1": "rougeL_f1",
}
"""Our ROUGE metrics by the name of the value in open-unlearning's ROUGE entries."""

Kind = Literal["losses", "rouge", "value", "ratio", "attack", "aggregate"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A metric of open-unlearning.

    Attributes:
        name: Its name there.
        kind: How its samples look: `losses` {prob, avg_loss}; `rouge`; `value` {score} or {prob};
            `ratio` {score}, wrong over right; `attack` the same for forget and holdout set;
            `aggregate` none.
        probe: Our probe; "" for an aggregate.
        metric: Our metric whose mean its `agg_value` is; for an attack the score behind the AUC;
            "" for what is only an ingredient of others.
        column: Column of its losses.
        field: Name of the number in a sample's entry.
        aggregate: Kind of our aggregate, for attacks and aggregates.
        against: Probe of the samples that an attack holds against those of `probe`.
    """

    name: str
    kind: Kind
    probe: str = ""
    metric: str = ""
    column: str = ""
    field: str = "score"
    aggregate: str = ""
    against: str = ""


SETS: Final = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
"""Our probes by the prefix of open-unlearning's TOFU metrics."""

AMONG_OPTIONS: Final = ("real_authors", "world_facts")
"""Probes whose probability is relative to wrong options."""

ATTACKS: Final = {
    "mia_loss": "loss_score",
    "mia_zlib": "zlib_score",
    "mia_min_k": "min_k_score",
    "mia_min_k_plus_plus": "min_k_plus_plus_score",
    "mia_reference": "reference_score",
    "mia_gradnorm": "gradnorm_score",
}
"""Our membership scores by the name of open-unlearning's attack."""


GIVEN_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "min_k_score": {"share": 0.4},
    "min_k_plus_plus_score": {"share": 0.4},
    **{metric: {"stemmer": True} for metric in OVERLAPS},
}
"""Options that open-unlearning's values are computed with, where ours may differ."""


def _tofu() -> Iterator[Known]:
    for prefix, probe in SETS.items():
        qa = f"{prefix}_Q_A"
        share = probe in AMONG_OPTIONS
        yield Known(
            name=f"{qa}_Prob",
            kind="losses",
            probe=probe,
            metric="" if share else "probability",
            column="answer_logps",
            field="prob",
        )
        for name, column in (("PARA", "paraphrase_logps"), ("PERT", "perturbed_logps")):
            yield Known(
                name=f"{qa}_{name}_Prob", kind="losses", probe=probe, column=column, field="prob"
            )
        if share:
            metric = "normalized_probability"
            yield Known(
                name=f"{qa}_Prob_normalised", kind="value", probe=probe, metric=metric, field="prob"
            )
        yield Known(
            name=f"{qa}_ROUGE",
            kind="rouge",
            probe=probe,
            metric="rouge_l_recall",
            field="rougeL_recall",
        )
        form = "truth_ratio_forget" if probe == "forget" else "truth_ratio_utility"
        # On its own the metric is spelled Truth_Ratio; inside forget quality it is in lower case.
        names = ["forget_truth_ratio"] if probe == "forget" else []
        for name in (*names, f"{prefix}_Truth_Ratio"):
            yield Known(name=name, kind="ratio", probe=probe, metric=form)
    yield Known(
        name="forget_Q_A_gibberish", kind="value", probe="forget", metric="clean_probability"
    )
    yield from _shared(words="forget", forget="forget", holdout="holdout")
    yield Known(name="forget_quality", kind="aggregate", aggregate="forget_quality")
    yield Known(name="model_utility", kind="aggregate", aggregate="harmonic_mean")


def _muse() -> Iterator[Known]:
    for name, probe in (
        ("forget_verbmem_ROUGE", "verbmem"),
        ("forget_knowmem_ROUGE", "knowmem_forget"),
        ("retain_knowmem_ROUGE", "knowmem_retain"),
    ):
        yield Known(name=name, kind="rouge", probe=probe, metric="rouge_l_f1", field="rougeL_f1")
    yield from _shared(words="verbmem", forget="privleak_forget", holdout="privleak_holdout")


def _shared(*, words: str, forget: str, holdout: str) -> Iterator[Known]:
    """Metrics that both benchmarks have, by the probes that they are taken on."""
    for name in ("exact_memorization", "extraction_strength"):
        yield Known(name=name, kind="value", probe=words, metric=name)
    for name, metric in ATTACKS.items():
        yield Known(
            name=name,
            kind="attack",
            probe=forget,
            metric=metric,
            aggregate="auc",
            against=holdout,
        )
    yield Known(name="privleak", kind="aggregate", aggregate="privleak")


Family = Literal["tofu", "muse"]
"""Whose evaluation a file is of; some names mean other questions in the other."""

KNOWN: Final[Mapping[Family, Mapping[str, Known]]] = {
    "tofu": {item.name: item for item in _tofu()},
    "muse": {item.name: item for item in _muse()},
}
"""Every metric of open-unlearning that has a counterpart here, by its name there."""


def family_of(names: Iterable[str]) -> Family:
    """Which evaluation has metrics of these names."""
    only_muse = {*KNOWN["muse"]} - {*KNOWN["tofu"]}
    return "muse" if only_muse & {*names} else "tofu"


def family_of_benchmark(name: str) -> Family:
    """Which evaluation of open-unlearning a benchmark of ours answers to."""
    return "muse" if name == "muse" else "tofu"


def counterpart(
    known: Known, measures: Iterable[Measure], aggregates: Iterable[Aggregate]
) -> Measure | Aggregate | None:
    """What a benchmark calls a metric of open-unlearning; None where it does not have it.

    Args:
        known: The metric.
        measures: Those of the benchmark.
        aggregates: Those of the benchmark.
    """
    if not known.aggregate:
        return next(
            (m for m in measures if (m.probe, m.metric) == (known.probe, known.metric)), None
        )
    found = [item for item in aggregates if item.kind == known.aggregate]
    if known.kind == "attack":
        found = [item for item in found if item.samples and _same_attack(known, item.samples)]
    # A benchmark may have several utilities; the nine values of TOFU go by this name everywhere.
    same_name = [item for item in found if item.name == known.name]
    return next(iter(same_name or (found if known.name != "model_utility" else ())), None)


def _same_attack(known: Known, samples: Measure) -> bool:
    """open-unlearning takes a share of 0.4 of the tokens, our own default; MUSE has others too."""
    share = GIVEN_OPTIONS.get(known.metric, {}).get("share")
    same = samples.options.get("share", share) == share
    return same and (samples.metric, samples.probe) == (known.metric, known.probe)


def key_of(found: Measure | Aggregate) -> str:
    """Its key in results."""
    return found.key if isinstance(found, Measure) else found.name


def scale_of(found: Measure | Aggregate) -> float:
    """What a value of open-unlearning is multiplied by here: 100 where a benchmark has percent.

    PrivLeak is in percent on both sides.
    """
    return found.scale if isinstance(found, Measure) else 1.0
