"""Metrics of meaning, from the judgements of another model: similarity and entailment.

The judgements are columns that a separate pass adds to a stored table; here they become values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.metrics.overlap import rouge_l_recall
from expunge.metrics.registry import Values, metric

ENTAILMENT = "entailment"
"""The label that counts; what a classifier calls its others makes no difference."""
NONE = "none"
"""Label of a generation that has next to no word in common with the true answer."""

_CLOSER_LOOK = "Closer Look, arXiv:2410.08109"
_DIRECTION = "higher; on the forget set lower"


@metric(
    title="Cosine similarity",
    reads=("generation_similarity",),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source=_CLOSER_LOOK,
)
def cosine_similarity(generation_similarity: Sequence[float | None]) -> Values:
    """Cosine of the sentence embeddings of generation and original answer, max(0, cos), 0..1.

    Args:
        generation_similarity: Cosines, -1..1; None is unscored. Whether the original answer is a
            stored text or what the initial model says is decided by the pass that measures them
            (M-04).
    """
    # The cosine of a text with itself may exceed 1 by rounding.
    return np.clip(np.array(generation_similarity, dtype=np.float64), 0.0, 1.0)


@metric(
    title="Entailment score, generation first",
    reads=("nli_generation_first", "answer", "generation"),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source=_CLOSER_LOOK,
)
def entailment_score(
    nli_generation_first: Sequence[str | None],
    answer: Sequence[str],
    generation: Sequence[str | None],
    *,
    min_recall: float = 0.1,
) -> Values:
    """1 where the generation entails the reference, else 0.

    Premise = generation, hypothesis = reference: Closer Look's way on forget sets and on both sets
    of its real-world benchmark, see `entailment_metric`. Not the extraction strength, which
    open-unlearning abbreviates ES as well.

    Args:
        nli_generation_first: Labels of a classifier, such as entailment, neutral and contradiction;
            None is unscored.
        answer: True answers.
        generation: Generated answers.
        min_recall: A generation with a lower ROUGE-L recall entails nothing, whatever the
            classifier says; 0 lets the classifier decide alone. It also decides where ROUGE sees no
            word in the true answer.
    """
    return _entailed(nli_generation_first, answer, generation, min_recall)


@metric(
    title="Entailment score, reference first",
    reads=("nli_reference_first", "answer", "generation"),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source=_CLOSER_LOOK,
)
def entailment_score_reference_first(
    nli_reference_first: Sequence[str | None],
    answer: Sequence[str],
    generation: Sequence[str | None],
    *,
    min_recall: float = 0.1,
) -> Values:
    """1 where the reference entails the generation, else 0.

    Premise = reference, hypothesis = generation: Closer Look's way on the sets to keep of TOFU. See
    `entailment_score` for the arguments.
    """
    return _entailed(nli_reference_first, answer, generation, min_recall)


def entailment_metric(*, forget: bool, tofu: bool) -> str:
    """Name of the entailment metric that Closer Look uses on a set.

    Args:
        forget: It is the forget set.
        tofu: It belongs to TOFU (single or continual), not to the real-world benchmark.
    """
    scored = entailment_score_reference_first if tofu and not forget else entailment_score
    return scored.__name__


def final_labels(
    labels: Sequence[str | None],
    answer: Sequence[str],
    generation: Sequence[str | None],
    *,
    min_recall: float = 0.1,
) -> list[str | None]:
    """Labels with those of generations of too low a ROUGE-L recall made "none".

    See `entailment_score` for the arguments.
    """
    recalls = rouge_l_recall(answer, generation)
    return [
        NONE if label is not None and recall < min_recall else label
        for label, recall in zip(labels, recalls, strict=True)
    ]


def _entailed(
    labels: Sequence[str | None],
    answer: Sequence[str],
    generation: Sequence[str | None],
    min_recall: float,
) -> Values:
    final = final_labels(labels, answer, generation, min_recall=min_recall)
    return np.array([np.nan if label is None else label == ENTAILMENT for label in final], float)
