"""Metrics of verbatim memory, from whether each answer token is the model's own first choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from expunge.metrics.registry import Values, metric

Match = Sequence[bool] | NDArray[np.bool_]
"""For every answer token, in order: greedy decoding would have produced it there."""


@metric(
    title="Exact memorisation",
    reads=("answer_greedy",),
    version=1,
    range=(0.0, 1.0),
    direction="lower, ideally near the retain model's",
    source="Tirumala et al., arXiv:2205.10770; as in open-unlearning, arXiv:2506.12618",
)
def exact_memorization(answer_greedy: Sequence[Match | None], *, drop_last: bool = True) -> Values:
    """Share of answer tokens that greedy decoding would produce after the true ones before, 0..1.

    Args:
        answer_greedy: Matches per answer; None or an empty answer is unscored.
        drop_last: Leave out the last token, the end of the turn, as open-unlearning does (M-09,
            C-16).
    """
    matches = _matches(answer_greedy, drop_last)
    return np.array([match.mean() if len(match) else np.nan for match in matches])


@metric(
    title="Extraction strength",
    reads=("answer_greedy",),
    version=1,
    range=(0.0, 1.0),
    direction="lower, ideally near the retain model's",
    source="Carlini et al., arXiv:2012.07805; as in open-unlearning, arXiv:2506.12618",
)
def extraction_strength(
    answer_greedy: Sequence[Match | None], *, drop_last: bool = True, floor: bool = False
) -> Values:
    """Share of the answer that greedy decoding recovers from the shortest sufficient prefix, 0..1.

    1 when no prefix is needed, 0 when even the last token is missed.

    Args:
        answer_greedy: Matches per answer; None or an empty answer is unscored.
        drop_last: Leave out the last token, the end of the turn, as open-unlearning does (M-09,
            C-16).
        floor: Give 1/n instead of 0 when the last token is missed, as open-unlearning's loop does
            (M-05).
    """
    matches = _matches(answer_greedy, drop_last)
    out = np.full(len(matches), np.nan)
    for i, match in enumerate(matches):
        if len(match):
            misses = np.flatnonzero(~match)
            needed = misses[-1] + 1 if misses.size else 0
            if floor:
                needed = min(needed, len(match) - 1)
            out[i] = 1.0 - needed / len(match)
    return out


@metric(
    title="Token entropy",
    reads=("generation_ids",),
    version=1,
    range=(0.0, 1.0),
    direction="higher",
    source="Closer Look, arXiv:2410.08109",
)
def token_entropy(
    generation_ids: Sequence[Sequence[Hashable] | None], *, normalize: bool = True
) -> Values:
    """Entropy of the token frequencies of a generation over its largest possible value, 0..1.

    `-sum f log f / log(number of tokens)`: 1 when all tokens differ, lower the more it repeats
    itself, 0 for at most one token. nan where nothing was generated.

    Args:
        generation_ids: Tokens per generation; None is unscored.
        normalize: Divide by the largest possible value; else the result is in bits, 0 or more.
    """
    out = np.full(len(generation_ids), np.nan)
    for i, tokens in enumerate(generation_ids):
        if tokens is None:
            continue
        out[i] = 0.0
        if len(tokens) > 1:
            shares = np.array(list(Counter(tokens).values())) / len(tokens)
            # max: a single repeated token gives -0.0
            bits = max(0.0, -(shares * np.log2(shares)).sum())
            # min: rounding may leave the entropy of different tokens a hair above its maximum
            out[i] = min(1.0, bits / np.log2(len(tokens))) if normalize else bits
    return out


def _matches(answer_greedy: Sequence[Match | None], drop_last: bool) -> list[NDArray[np.bool_]]:
    stop = -1 if drop_last else None
    return [
        np.asarray(() if match is None else match, dtype=bool)[:stop] for match in answer_greedy
    ]
