"""Metrics that compare a generated answer with the true one, word by word: ROUGE.

Computed by the rouge-score package (0.1.2 is what every compared paper used). It lower-cases,
keeps runs of Latin letters and digits, and stems words longer than three letters. A reference
without any such run, say in Chinese, cannot be scored: it is nan, not 0. How long an answer may get
is a setting of the evaluation (M-07), and recall never falls when it gets longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from expunge.metrics.registry import Values, metric

_SOURCE = "Lin 2004, ROUGE; TOFU, arXiv:2401.06121, section 2.2"
_DIRECTION = "higher; on the forget set lower, ideally near the retain model's"


class Overlap(NamedTuple):
    """Recall and F1 of common words (1) and of the longest common subsequence (L), 0..1."""

    rouge1_recall: float
    rouge1_f1: float
    rouge_l_recall: float
    rouge_l_f1: float


UNSCORED = Overlap(np.nan, np.nan, np.nan, np.nan)


@metric(
    title="ROUGE-1 recall",
    reads=("answer", "generation"),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source=_SOURCE,
)
def rouge1_recall(
    answer: Sequence[str], generation: Sequence[str | None], *, stemmer: bool = True
) -> Values:
    """Share of the true answer's words that the generated answer contains, 0..1.

    Args:
        answer: True answers.
        generation: Generated answers; "" scores 0, None is unscored.
        stemmer: Compare word stems (M-06): TOFU, Closer Look and open-unlearning do, MUSE does not.
    """
    return _overlaps(answer, generation, stemmer, lambda found: found.rouge1_recall)


@metric(
    title="ROUGE-1 F1",
    reads=("answer", "generation"),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source=_SOURCE,
)
def rouge1_f1(
    answer: Sequence[str], generation: Sequence[str | None], *, stemmer: bool = True
) -> Values:
    """Harmonic mean of ROUGE-1 recall and precision, 0..1. See `rouge1_recall`."""
    return _overlaps(answer, generation, stemmer, lambda found: found.rouge1_f1)


@metric(
    title="ROUGE-L recall",
    reads=("answer", "generation"),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source=_SOURCE,
)
def rouge_l_recall(
    answer: Sequence[str], generation: Sequence[str | None], *, stemmer: bool = True
) -> Values:
    """Share of the true answer's words that the generated answer contains in order, 0..1.

    Length of the longest common subsequence of words over the number of words of the true answer.
    It does not see wrong words in between, so an answer that never stops loses nothing.
    See `rouge1_recall` for the arguments.
    """
    return _overlaps(answer, generation, stemmer, lambda found: found.rouge_l_recall)


@metric(
    title="ROUGE-L F1",
    reads=("answer", "generation"),
    version=1,
    range=(0.0, 1.0),
    direction=_DIRECTION,
    source="Lin 2004, ROUGE; MUSE, arXiv:2407.06460 (times 100, without stemmer)",
)
def rouge_l_f1(
    answer: Sequence[str], generation: Sequence[str | None], *, stemmer: bool = True
) -> Values:
    """Harmonic mean of ROUGE-L recall and precision, 0..1. See `rouge1_recall`.

    The number of MUSE's VerbMem and KnowMem is 100 times its mean with `stemmer=False` (M-06).
    """
    return _overlaps(answer, generation, stemmer, lambda found: found.rouge_l_f1)


@metric(
    title="Generated tokens",
    reads=("generation_tokens",),
    version=1,
    range=(0.0, float("inf")),
    direction="none; recall rewards rambling, so look at both",
    source="count",
)
def generated_tokens(generation_tokens: Sequence[int | None]) -> Values:
    """Length of the generated answer in tokens, without the token that ended it."""
    return np.array([np.nan if n is None else n for n in generation_tokens], dtype=np.float64)


def _overlaps(
    answer: Sequence[str],
    generation: Sequence[str | None],
    stemmer: bool,
    pick: Callable[[Overlap], float],
) -> Values:
    pairs = zip(answer, generation, strict=True)
    scores = [
        UNSCORED if generated is None else overlap(reference, generated, stemmer)
        for reference, generated in pairs
    ]
    return np.array([pick(score) for score in scores], dtype=np.float64)


@lru_cache(maxsize=16384)
def overlap(reference: str, generated: str, stemmer: bool = True) -> Overlap:
    """All ROUGE values of one pair; nan where the reference has no word that ROUGE can see."""
    scorer = _scorer(stemmer)
    if not scorer._tokenizer.tokenize(reference):
        return UNSCORED
    found = scorer.score(reference, generated)
    one, longest = found["rouge1"], found["rougeL"]
    return Overlap(one.recall, one.fmeasure, longest.recall, longest.fmeasure)


@cache
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
