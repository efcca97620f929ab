"""Membership scores of single samples, how well they tell two sets apart, and privacy leakage.

Every score is signed like a loss: a higher value means that the sample is less likely a member of
the training data. Definitions as in open-unlearning (arXiv:2506.12618) and MUSE (arXiv:2407.06460).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expunge.metrics.likelihood import Logps, mean_nll
from expunge.metrics.registry import Values, metric

_SOURCE = "open-unlearning, arXiv:2506.12618"
_DIRECTION = "none; its AUC against a holdout set should be near the retain model's"


@metric(
    title="Loss attack",
    reads=("answer_logps",),
    version=1,
    range=(0.0, float("inf")),
    direction=_DIRECTION,
    source="Yeom et al., arXiv:1709.01604; as in " + _SOURCE,
)
def loss_score(answer_logps: Sequence[Logps | None]) -> Values:
    """Mean negative log-likelihood per token, end of turn included, in nats."""
    return mean_nll(answer_logps)


@metric(
    title="Zlib attack",
    reads=("answer_logps", "answer"),
    version=1,
    range=(0.0, float("inf")),
    direction=_DIRECTION,
    source="Carlini et al., arXiv:2012.07805; as in " + _SOURCE,
)
def zlib_score(answer_logps: Sequence[Logps | None], answer: Sequence[str]) -> Values:
    """Mean negative log-likelihood per token over the compressed length of the answer in bytes."""
    sizes = np.array([len(zlib.compress(text.encode())) for text in answer], dtype=np.float64)
    return mean_nll(answer_logps) / sizes


@metric(
    title="Min-K% attack",
    reads=("answer_logps",),
    version=1,
    range=(0.0, float("inf")),
    direction=_DIRECTION,
    source="Shi et al., arXiv:2310.16789; as in " + _SOURCE,
)
def min_k_score(
    answer_logps: Sequence[Logps | None], *, share: float = 0.4, drop_last: bool = True
) -> Values:
    """Minus the mean of the smallest token log-probabilities, in nats.

    Args:
        answer_logps: Log-probabilities per answer; one without tokens is unscored.
        share: Share k of the tokens that enters, at least one token.
        drop_last: Leave out the last token, the end of the turn, as open-unlearning does (C-16).
    """
    return _lowest(answer_logps, share, drop_last)


def min_k_plus_plus_score(
    answer_logps: Sequence[Logps | None],
    token_means: Sequence[Logps | None],
    token_variances: Sequence[Logps | None],
    *,
    share: float = 0.4,
    drop_last: bool = True,
) -> Values:
    """Minus the mean of the smallest standardised token log-probabilities (arXiv:2404.02936).

    Args:
        answer_logps: Log-probabilities of the answer tokens.
        token_means: Mean of log p over the vocabulary under p, at each of them.
        token_variances: Variance of log p over the vocabulary under p, at each of them.
        share: Share k of the tokens that enters, at least one token.
        drop_last: Leave out the last token, the end of the turn, as open-unlearning does (C-16).
    """
    standardised = [
        None
        if logps is None or means is None or variances is None
        else (np.asarray(logps) - means) / np.sqrt(np.maximum(variances, 1e-6))
        for logps, means, variances in zip(answer_logps, token_means, token_variances, strict=True)
    ]
    return _lowest(standardised, share, drop_last)


def reference_score(
    answer_logps: Sequence[Logps | None], calibration_logps: Sequence[Logps | None]
) -> Values:
    """Mean negative log-likelihood minus that of a calibration model, in nats per token."""
    return mean_nll(answer_logps) - mean_nll(calibration_logps)


def attack_auc(forget_scores: Values, holdout_scores: Values) -> float:
    """Probability that a forget sample looks more like a member than a holdout sample, 0..1.

    1: the forget set is clearly recognised; 0.5: no better than a coin; ties count one half.
    nan if either side has no scored sample.
    """
    from scipy.stats import rankdata

    forget = forget_scores[~np.isnan(forget_scores)]
    holdout = holdout_scores[~np.isnan(holdout_scores)]
    n, m = len(forget), len(holdout)
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.concatenate([forget, holdout]))
    above = ranks[n:].sum() - m * (m + 1) / 2
    return float(above / (n * m))


def privacy_leakage(auc: float, retain_auc: float, *, epsilon: float = 0.0) -> float:
    """PrivLeak of MUSE (arXiv:2407.06460, C3), in percent; 0 is ideal.

    Negative: under-unlearning, forget data still looks like training data. Positive: forget data
    looks less familiar than to the retain model.

    Args:
        auc: `attack_auc` of the evaluated model.
        retain_auc: `attack_auc` of the retain model.
        epsilon: Added to the denominator; open-unlearning has 1e-10.
    """
    outside, retain_outside = 1.0 - auc, 1.0 - retain_auc
    return 100.0 * (outside - retain_outside) / (retain_outside + epsilon)


def _lowest(rows: Sequence[Logps | None], share: float, drop_last: bool) -> Values:
    out = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        values: NDArray[np.float64] = np.asarray(() if row is None else row, dtype=np.float64)
        values = np.sort(values[:-1] if drop_last else values)
        if len(values):
            out[i] = -values[: max(1, int(share * len(values)))].mean()
    return out
