"""The measures of question-answer benchmarks in the manner of TOFU (arXiv:2401.06121)."""

from __future__ import annotations

from expunge.evaluation.measures import Aggregate, Measure

UTILITY_PROBES = ("retain", "real_authors", "world_facts")

FORGET_MEASURES: tuple[Measure, ...] = (
    Measure(
        name="rouge_l_recall",
        probe="forget",
        metric="rouge_l_recall",
        better="lower",
        unit="ROUGE-L recall",
    ),
    Measure(
        name="probability",
        probe="forget",
        metric="probability",
        better="lower",
        unit="probability per token",
    ),
    Measure(
        name="truth_ratio",
        probe="forget",
        metric="truth_ratio_forget",
        better="higher",
        unit="min(wrong/right, right/wrong)",
    ),
    Measure(
        name="exact_memorization",
        probe="forget",
        metric="exact_memorization",
        better="lower",
        unit="share of tokens",
    ),
    Measure(
        name="extraction_strength",
        probe="forget",
        metric="extraction_strength",
        better="lower",
        unit="share of the answer",
    ),
    # ROUGE recall rewards an answer that never ends; the length shows it.
    Measure(
        name="generated_tokens",
        probe="forget",
        metric="generated_tokens",
        better="none",
        unit="tokens",
    ),
)


def utility_measures(probe: str, *, among_options: bool) -> tuple[Measure, ...]:
    """The three values of a probe that enter model utility.

    Args:
        probe: Name of the probe.
        among_options: Probability is relative to wrong options, as on real authors and world facts.
    """
    return (
        Measure(
            name="rouge_l_recall",
            probe=probe,
            metric="rouge_l_recall",
            better="higher",
            unit="ROUGE-L recall",
        ),
        Measure(
            name="probability",
            probe=probe,
            metric="normalized_probability" if among_options else "probability",
            better="higher",
            unit="probability among options" if among_options else "probability per token",
        ),
        Measure(
            name="truth_ratio",
            probe=probe,
            metric="truth_ratio_utility",
            better="higher",
            unit="max(0, 1 - wrong/right)",
        ),
    )


UTILITY_MEASURES: tuple[Measure, ...] = tuple(
    measure
    for probe in UTILITY_PROBES
    for measure in utility_measures(probe, among_options=probe != "retain")
)

MODEL_UTILITY = Aggregate(
    name="model_utility",
    kind="harmonic_mean",
    over=tuple(measure.key for measure in UTILITY_MEASURES),
    better="higher",
    unit="harmonic mean of nine values",
)

FORGET_QUALITY = Aggregate(
    name="forget_quality",
    kind="forget_quality",
    samples=Measure(
        name="truth_ratio",
        probe="forget",
        metric="truth_ratio",
        better="none",
        unit="wrong/right",
    ),
    better="higher",
    unit="p-value",
)
