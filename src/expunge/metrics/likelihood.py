"""Metrics from log-probabilities of given answers: probability and truth ratio.

Notation: A is the mean negative log-likelihood per answer token, end of turn included; the
length-normalised probability of an answer is exp(-A). Log-probabilities come as one sequence of
token values per sample; None, an empty sequence or a not-a-number in it makes the sample unscored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import InputError, did_you_mean
from expunge.metrics.registry import Values, metric

Logps = Sequence[float] | NDArray[np.floating]
"""Log-probabilities of the tokens of one answer, in nats."""

WrongMean = Literal["geometric", "arithmetic"]
"""How the probabilities of wrong answers are averaged, see `truth_ratio`."""

TOFU = "TOFU, arXiv:2401.06121, section 2.2"


def mean_nll(answer_logps: Sequence[Logps | None]) -> Values:
    """Mean negative log-likelihood per token, A, in nats: 0 or more; nan for an empty answer."""
    return np.array(
        [
            # 0 - x and not -x: a sure answer has a loss of 0.0, not -0.0, which may be divided by
            0.0 - np.mean(logps, dtype=np.float64) if logps is not None and len(logps) else np.nan
            for logps in answer_logps
        ],
        dtype=np.float64,
    )


@metric(
    title="Probability",
    reads=("answer_logps",),
    version=1,
    range=(0.0, 1.0),
    direction="higher; on the forget set lower",
    source=TOFU,
)
def probability(answer_logps: Sequence[Logps | None]) -> Values:
    """Length-normalised probability of the true answer, exp(-A), one per sample, 0..1."""
    return np.exp(-mean_nll(answer_logps))


@metric(
    title="Normalised probability",
    reads=("answer_logps", "perturbed_logps"),
    version=1,
    range=(0.0, 1.0),
    direction="higher",
    source=TOFU,
)
def normalized_probability(
    answer_logps: Sequence[Logps | None],
    perturbed_logps: Sequence[Sequence[Logps] | None],
    *,
    epsilon: float = 0.0,
) -> Values:
    """Share of the true answer among it and the wrong options, p / (p + sum p_i), 0..1.

    Args:
        answer_logps: Of the true answers.
        perturbed_logps: Of each sample's wrong options.
        epsilon: Added to the denominator (M-10); open-unlearning has 1e-10, the others 0.
    """
    right = mean_nll(answer_logps)
    out = np.full(len(right), np.nan)
    for i, wrong in enumerate(_wrong_nlls(perturbed_logps)):
        if len(wrong):
            # Relative to the best option, so that tiny probabilities do not underflow to 0/0.
            best = np.minimum(right[i], wrong.min())
            share = np.exp(best - right[i])
            total = share + np.exp(best - wrong).sum()
            if epsilon:
                with np.errstate(over="ignore"):
                    total += epsilon * np.exp(best)
            out[i] = share / total
    return out


@metric(
    title="Truth ratio, wrong over right",
    reads=("answer_logps", "paraphrase_logps", "perturbed_logps"),
    optional=("paraphrase_logps",),
    version=1,
    range=(0.0, float("inf")),
    direction="none; the forget quality test compares its distribution with the retain model's",
    source=TOFU,
)
def truth_ratio(
    answer_logps: Sequence[Logps | None],
    paraphrase_logps: Sequence[Logps | None] | None,
    perturbed_logps: Sequence[Sequence[Logps] | None],
    *,
    mean: WrongMean = "geometric",
    epsilon: float = 0.0,
) -> Values:
    """Probability of wrong answers over that of the right one, r, one per sample, 0 or more.

    `r = P_wrong / P_right` with length-normalised probabilities; 0 = the model knows the truth,
    1 = it is indifferent. The right answer is the paraphrase where a row has one, else the answer.

    Args:
        answer_logps: Of the true answers.
        paraphrase_logps: Of the paraphrased true answers; None if no row has one.
        perturbed_logps: Of each sample's wrong answers.
        mean: How the wrong answers' probabilities are averaged (M-01). `geometric`,
            exp(-mean A_i), is what published tables use (TOFU's aggregation script, NPO,
            open-unlearning); `arithmetic` is the formula of the TOFU paper and of its in-training
            evaluation.
        epsilon: Added to the denominator (M-10); open-unlearning has 1e-10, the others 0.
    """
    log_right, log_wrong = _log_right_and_wrong(
        answer_logps, paraphrase_logps, perturbed_logps, mean
    )
    # A collapsed model may give an infinite ratio; that is its value, not an error.
    with np.errstate(over="ignore"):
        if epsilon:
            return np.exp(log_wrong) / (np.exp(log_right) + epsilon)
        return np.exp(log_wrong - log_right)


@metric(
    title="Truth ratio, utility form",
    reads=("answer_logps", "paraphrase_logps", "perturbed_logps"),
    optional=("paraphrase_logps",),
    version=1,
    range=(0.0, 1.0),
    direction="higher",
    source=TOFU,
)
def truth_ratio_utility(
    answer_logps: Sequence[Logps | None],
    paraphrase_logps: Sequence[Logps | None] | None,
    perturbed_logps: Sequence[Sequence[Logps] | None],
    *,
    mean: WrongMean = "geometric",
    epsilon: float = 0.0,
) -> Values:
    """How much likelier the truth is than wrong answers, max(0, 1 - r), 0..1. See `truth_ratio`."""
    ratio = truth_ratio(answer_logps, paraphrase_logps, perturbed_logps, mean=mean, epsilon=epsilon)
    return np.maximum(0.0, 1.0 - ratio)


@metric(
    title="Truth ratio, forget form",
    reads=("answer_logps", "paraphrase_logps", "perturbed_logps"),
    optional=("paraphrase_logps",),
    version=1,
    range=(0.0, 1.0),
    direction="higher: 1 = wrong and right answers are equally likely",
    source=TOFU,
)
def truth_ratio_forget(
    answer_logps: Sequence[Logps | None],
    paraphrase_logps: Sequence[Logps | None] | None,
    perturbed_logps: Sequence[Sequence[Logps] | None],
    *,
    mean: WrongMean = "geometric",
    epsilon: float = 0.0,
) -> Values:
    """How indifferent the model is between truth and wrong answers, min(r, 1/r), 0..1.

    The convention of TOFU, NPO and open-unlearning (which adds `epsilon` to r in 1/r). Closer Look
    takes one minus it (M-08), see `truth_ratio_closer_look`. See `truth_ratio` for the arguments.
    """
    ratio = truth_ratio(answer_logps, paraphrase_logps, perturbed_logps, mean=mean, epsilon=epsilon)
    with np.errstate(divide="ignore"):
        return np.minimum(ratio, 1.0 / (ratio + epsilon))


@metric(
    title="Truth ratio, Closer Look's forget form",
    reads=("answer_logps", "paraphrase_logps", "perturbed_logps"),
    optional=("paraphrase_logps",),
    version=1,
    range=(0.0, 1.0),
    direction="lower: 0 = wrong and right answers are equally likely",
    source="Closer Look, arXiv:2410.08109; r of " + TOFU,
)
def truth_ratio_closer_look(
    answer_logps: Sequence[Logps | None],
    paraphrase_logps: Sequence[Logps | None] | None,
    perturbed_logps: Sequence[Sequence[Logps] | None],
    *,
    mean: WrongMean = "geometric",
    epsilon: float = 0.0,
) -> Values:
    """How far the model still tells truth from wrong answers, 1 - min(r, 1/r), 0..1.

    One minus `truth_ratio_forget` (M-08); the form that enters forget efficacy. See `truth_ratio`
    for the arguments.
    """
    return 1.0 - truth_ratio_forget(
        answer_logps, paraphrase_logps, perturbed_logps, mean=mean, epsilon=epsilon
    )


@metric(
    title="Truth ratio, probability form",
    reads=("answer_logps", "paraphrase_logps", "perturbed_logps"),
    optional=("paraphrase_logps",),
    version=1,
    range=(0.0, 1.0),
    direction="higher; on the forget set closer to the retain model",
    source="open-unlearning, arXiv:2506.12618, aggregator prob_mean",
)
def truth_ratio_probability(
    answer_logps: Sequence[Logps | None],
    paraphrase_logps: Sequence[Logps | None] | None,
    perturbed_logps: Sequence[Sequence[Logps] | None],
    *,
    mean: WrongMean = "geometric",
    epsilon: float = 0.0,
) -> Values:
    """Share of the right answer, P_right / (P_right + P_wrong), 0..1. See `truth_ratio`.

    `epsilon` is added to the denominator of the share.
    """
    log_right, log_wrong = _log_right_and_wrong(
        answer_logps, paraphrase_logps, perturbed_logps, mean
    )
    with np.errstate(over="ignore"):
        if epsilon:
            right = np.exp(log_right)
            return right / (right + np.exp(log_wrong) + epsilon)
        return 1.0 / (1.0 + np.exp(log_wrong - log_right))


@metric(
    title="Loss gap to the retain model, signed",
    reads=("answer_logps", "retain:answer_logps"),
    version=1,
    range=(float("-inf"), float("inf")),
    direction="closer to zero",
    source="EGUP, appendix figure; plain arithmetic",
)
def loss_gap(answer_logps: Sequence[Logps | None], retain_logps: Sequence[Logps | None]) -> Values:
    """A of the model minus A of the retain model on the same sample, in nats per token.

    Positive where the model finds the answer less likely than the retain model does; 0 is a
    perfect match. Gaps of both signs cancel in its mean, see `absolute_loss_gap`.

    Args:
        answer_logps: Of the true answers.
        retain_logps: Of the same answers under the retain model.
    """
    return mean_nll(answer_logps) - mean_nll(retain_logps)


@metric(
    title="Loss gap to the retain model",
    reads=("answer_logps", "retain:answer_logps"),
    version=1,
    range=(0.0, float("inf")),
    direction="closer to zero",
    source="EGUP, appendix figure; plain arithmetic",
)
def absolute_loss_gap(
    answer_logps: Sequence[Logps | None], retain_logps: Sequence[Logps | None]
) -> Values:
    """Size of the difference of A between the model and the retain model, in nats per token.

    0 or more, 0 is a perfect match. See `loss_gap`.
    """
    return np.abs(loss_gap(answer_logps, retain_logps))


def _log_right_and_wrong(
    answer_logps: Sequence[Logps | None],
    paraphrase_logps: Sequence[Logps | None] | None,
    perturbed_logps: Sequence[Sequence[Logps] | None],
    mean: WrongMean,
) -> tuple[Values, Values]:
    """Logarithms of P_right and P_wrong of every sample; nan where an answer is missing."""
    if mean not in get_args(WrongMean):
        raise InputError(
            f"the mean of wrong answers is {mean!r}. " + did_you_mean(mean, get_args(WrongMean))
        )
    right = mean_nll(answer_logps)
    if paraphrase_logps is not None:
        given = [logps is not None and len(logps) > 0 for logps in paraphrase_logps]
        right = np.where(given, mean_nll(paraphrase_logps), right)
    wrong = np.full(len(right), np.nan)
    for i, nlls in enumerate(_wrong_nlls(perturbed_logps)):
        if len(nlls):
            wrong[i] = -nlls.mean() if mean == "geometric" else _log_mean_exp(-nlls)
    return -right, wrong


def _wrong_nlls(perturbed_logps: Sequence[Sequence[Logps] | None]) -> list[Values]:
    """A of every wrong answer of every sample; a sample without any gets an empty array."""
    return [mean_nll(wrong) if wrong is not None else np.empty(0) for wrong in perturbed_logps]


def _log_mean_exp(values: Values) -> float:
    top = values.max()
    return float(top + np.log(np.mean(np.exp(values - top))))
