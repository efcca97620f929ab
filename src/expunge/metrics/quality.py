"""Metrics of what a model says by itself: fluent, natural, free of repetition."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from expunge.core.errors import InputError
from expunge.metrics.registry import Values, metric


@metric(
    title="Clean text",
    reads=("clean_probability",),
    version=1,
    range=(0.0, 1.0),
    direction="higher",
    source="classifier madhurjindal/autonlp-Gibberish-Detector-492513457",
)
def clean_probability(clean_probability: Sequence[float | None]) -> Values:
    """Probability of the class "clean" that a gibberish classifier gives a generation, 0..1.

    None, where there was nothing to judge, is unscored.
    """
    return np.array(clean_probability, dtype=np.float64)


@metric(
    title="Perplexity under the base model",
    reads=("generation_base_nll",),
    version=1,
    range=(1.0, float("inf")),
    direction="lower; text that repeats itself is low too, so look at repetition as well",
    source="exp of the mean negative log-likelihood per token, judged by the base model",
)
def perplexity(generation_base_nll: Sequence[float | None]) -> Values:
    """How surprising a generation is to the base model, exp(A), 1 or more.

    Args:
        generation_base_nll: A of the generation under the base model, in nats per token; None is
            unscored.
    """
    # A collapsed model may overflow; infinite is its value, not an error.
    with np.errstate(over="ignore"):
        return np.exp(np.array(generation_base_nll, dtype=np.float64))


@metric(
    title="Repetition",
    reads=("generation_ids",),
    version=1,
    range=(0.0, 1.0),
    direction="lower",
    source="seq-rep-n of Welleck et al., arXiv:1908.04319, section 3.2",
)
def repetition(generation_ids: Sequence[Sequence[Hashable] | None], *, n: int = 4) -> Values:
    """Share of the n-grams of a generation that repeat an earlier one, 0..1.

    `1 - distinct / total`: 0 when all differ. A generation of fewer than n tokens is unscored.

    Args:
        generation_ids: Tokens per generation; None is unscored.
        n: Tokens per n-gram.
    """
    if n < 1:
        raise InputError(f"n is {n}; an n-gram has at least 1 token")
    out = np.full(len(generation_ids), np.nan)
    for i, tokens in enumerate(generation_ids):
        grams = list(zip(*(tokens[k:] for k in range(n)), strict=False)) if tokens else []
        if grams:
            out[i] = 1.0 - len(set(grams)) / len(grams)
    return out
