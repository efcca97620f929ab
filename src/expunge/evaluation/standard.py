"""The measures of question-answer benchmarks: those of TOFU, Closer Look and the attacks.

TOFU: arXiv:2401.06121. Closer Look: arXiv:2410.08109. Attacks as in open-unlearning,
arXiv:2506.12618.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.core.results import Better
from expunge.evaluation.aggregates import Aggregate
from expunge.evaluation.measures import Measure

UTILITY_PROBES = ("retain", "real_authors", "world_facts")


def _measure(
    probe: str,
    name: str,
    better: Better,
    unit: str,
    *,
    metric: str | None = None,
    **options: Any,
) -> Measure:
    return Measure(
        name=name,
        probe=probe,
        metric=metric or name,
        better=better,
        unit=unit,
        options=options,
    )


def forget_measures(probe: str = "forget") -> tuple[Measure, ...]:
    """What a model still knows of a set that is to be forgotten, and how it talks about it."""
    return (
        _measure(probe, "rouge_l_recall", "lower", "ROUGE-L recall"),
        _measure(probe, "probability", "lower", "probability per token"),
        _measure(
            probe,
            "truth_ratio",
            "higher",
            "min(wrong/right, right/wrong)",
            metric="truth_ratio_forget",
        ),
        _measure(probe, "exact_memorization", "lower", "share of tokens"),
        _measure(probe, "extraction_strength", "lower", "share of the answer"),
        # ROUGE recall rewards an answer that never ends; the length shows it.
        _measure(probe, "generated_tokens", "none", "tokens"),
    )


def utility_measures(probe: str, *, among_options: bool) -> tuple[Measure, ...]:
    """The three values of a probe that enter model utility.

    Args:
        probe: Name of the probe.
        among_options: Probability is relative to wrong options, as on real authors and world facts.
    """
    return (
        _measure(probe, "rouge_l_recall", "higher", "ROUGE-L recall"),
        _measure(
            probe,
            "probability",
            "higher",
            "probability among options" if among_options else "probability per token",
            metric="normalized_probability" if among_options else "probability",
        ),
        _measure(
            probe,
            "truth_ratio",
            "higher",
            "max(0, 1 - wrong/right)",
            metric="truth_ratio_utility",
        ),
    )


def closer_look_measures(
    probe: str, *, forget: bool = False, premise_generation: bool = False
) -> tuple[Measure, ...]:
    """What Closer Look adds on a probe: token entropy, cosine similarity, entailment score.

    Args:
        probe: Name of the probe.
        forget: The set is to be forgotten: similar and entailed is bad there.
        premise_generation: The premise of entailment is the generation, as on the forget set and
            everywhere in the real-world benchmark; else it is the true answer.
    """
    good: Better = "lower" if forget else "higher"
    entailment = "entailment_score" if premise_generation else "entailment_score_reference_first"
    return (
        _measure(probe, "token_entropy", "higher", "share of the largest entropy"),
        _measure(probe, "cosine_similarity", good, "cosine with the original answer"),
        _measure(probe, "entailment_score", good, "share entailed", metric=entailment),
    )


def forget_efficacy_parts(probe: str = "forget") -> tuple[Measure, ...]:
    """The five values of forget efficacy that are not among the measures, in their own form."""
    return (
        _measure(
            probe,
            "truth_ratio_closer_look",
            "lower",
            "1 - min(wrong/right, right/wrong)",
            metric="truth_ratio_closer_look",
        ),
    )


def loss_gap_measures(probe: str) -> tuple[Measure, ...]:
    """How far the loss of single samples is from the retain model's, in nats per token."""
    return (
        _measure(probe, "loss_gap", "closer_to_zero", "nats per token, signed"),
        _measure(probe, "absolute_loss_gap", "closer_to_zero", "nats per token"),
    )


def fluency_measures(probe: str = "forget") -> tuple[Measure, ...]:
    """Whether what is said on a probe is still language."""
    return (
        _measure(probe, "repetition", "lower", "share of repeated 4-grams"),
        _measure(probe, "perplexity", "lower", "perplexity under the base model"),
        _measure(probe, "clean_probability", "higher", "probability of not being gibberish"),
    )


FORGET_MEASURES: tuple[Measure, ...] = (
    *forget_measures(),
    *closer_look_measures("forget", forget=True, premise_generation=True),
    *forget_efficacy_parts(),
    *loss_gap_measures("forget"),
    *fluency_measures(),
)

UTILITY_MEASURES: tuple[Measure, ...] = tuple(
    measure
    for probe in UTILITY_PROBES
    for measure in utility_measures(probe, among_options=probe != "retain")
)

CLOSER_LOOK_UTILITY: tuple[Measure, ...] = tuple(
    measure for probe in UTILITY_PROBES for measure in closer_look_measures(probe)
)

RETAIN_GAP = loss_gap_measures("retain")

MODEL_UTILITY = Aggregate(
    name="model_utility",
    kind="harmonic_mean",
    over=tuple(measure.key for measure in UTILITY_MEASURES),
    better="higher",
    unit="harmonic mean of nine values",
)

MODEL_UTILITY_CL = Aggregate(
    name="model_utility_cl",
    kind="harmonic_mean",
    over=tuple(measure.key for measure in (*UTILITY_MEASURES, *CLOSER_LOOK_UTILITY)),
    better="higher",
    unit="harmonic mean of eighteen values",
)

MODEL_UTILITY_RETAIN = Aggregate(
    name="model_utility_retain",
    kind="harmonic_mean",
    over=tuple(
        measure.key
        for measure in (*UTILITY_MEASURES, *CLOSER_LOOK_UTILITY)
        if measure.probe == "retain"
    ),
    better="higher",
    unit="harmonic mean of six values",
)

FORGET_QUALITY = Aggregate(
    name="forget_quality",
    kind="forget_quality",
    samples=_measure("forget", "truth_ratio", "none", "wrong/right", metric="truth_ratio"),
    better="higher",
    unit="p-value",
)


def forget_efficacy(probe: str = "forget") -> Aggregate:
    """Closer Look's forget efficacy on a probe."""
    names = (
        "rouge_l_recall",
        "probability",
        "truth_ratio_closer_look",
        "cosine_similarity",
        "entailment_score",
    )
    return Aggregate(
        name="forget_efficacy",
        kind="one_minus_mean",
        over=tuple(f"{probe}/{name}" for name in names),
        better="higher",
        unit="one minus the mean of five values",
    )


def loss_gap_aggregates(probe: str) -> tuple[Aggregate, ...]:
    """Median and largest absolute loss gap of a probe; the signed mean is a measure."""
    samples = _measure(probe, "gap", "closer_to_zero", "nats", metric="absolute_loss_gap")
    return (
        Aggregate(
            name=f"{probe}_loss_gap_median",
            kind="median",
            samples=samples,
            better="closer_to_zero",
            unit="nats per token",
        ),
        Aggregate(
            name=f"{probe}_loss_gap_max",
            kind="max",
            samples=samples,
            better="closer_to_zero",
            unit="nats per token",
        ),
    )


# Name in results, metric, and what sets the published form apart from the metric's own defaults.
ATTACKS: tuple[tuple[str, str], ...] = (
    ("loss", "loss_score"),
    ("zlib", "zlib_score"),
    ("min_k", "min_k_score"),
    ("min_k_plus_plus", "min_k_plus_plus_score"),
    ("gradnorm", "gradnorm_score"),
    ("reference", "reference_score"),
)


def attack_aggregates(
    probe: str = "forget", against: str = "holdout", attacks: Sequence[tuple[str, str]] = ATTACKS
) -> tuple[Aggregate, ...]:
    """AUC of the six membership attacks, and PrivLeak from the Min-K% one."""
    aucs = tuple(
        Aggregate(
            name=f"mia_{name}",
            kind="auc",
            samples=_measure(probe, name, "none", "score", metric=metric),
            against=against,
            better="closer_to_half",
            unit="AUC",
        )
        for name, metric in attacks
    )
    return (*aucs, privleak(probe, against))


def privleak(probe: str = "forget", against: str = "holdout", **options: Any) -> Aggregate:
    """PrivLeak of MUSE from the Min-40% attack, in percent."""
    return Aggregate(
        name="privleak",
        kind="privleak",
        samples=_measure(probe, "min_k", "none", "score", metric="min_k_score", **options),
        against=against,
        better="closer_to_zero",
        unit="percent",
    )


CLOSER_LOOK_ONLY = frozenset(
    {
        "token_entropy",
        "cosine_similarity",
        "entailment_score",
        "truth_ratio_closer_look",
        "model_utility_cl",
        "model_utility_retain",
        "forget_efficacy",
    }
)
"""What TOFU's own tables do not have."""

FLUENCY = frozenset({"perplexity", "clean_probability", "repetition"})
