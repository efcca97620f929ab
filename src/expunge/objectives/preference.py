"""Losses on log-likelihood ratios: NPO and its relatives, DPO, KTO, answer preservation.

S(x) is the sum of the negative log-likelihood over the labelled tokens of a row, S0(x) the same
under the reference model.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from expunge.models.outputs import TokenOutputs
from expunge.objectives.losses import Positive, loss


@loss(unit="sequence", reads={"ref_logps"})
def npo(out: TokenOutputs, *, beta: Positive = 0.1) -> Tensor:
    """Negative preference optimisation, [B]: gradient ascent that fades once a row is forgotten.

    `2/beta * softplus(-beta (S - S0))`, arXiv:2404.05868, equation 3. It starts at `2/beta ln 2`,
    falls to 0 and tends to sequence-sum gradient ascent as beta goes to 0.

    Args:
        out: The forget stream.
        beta: Inverse temperature; the gradient of a row has weight 2 sigmoid(-beta (S - S0)).
    """
    return 2 / beta * F.softplus(-beta * (out.nll() - out.ref_nll()))


@loss(unit="token", reads={"logits", "ref_logits"}, positions="all", predicts=False,
      batch_layout=True)  # fmt: skip
def npo_muse_as_released(out: TokenOutputs, *, beta: Positive = 0.1) -> Tensor:
    """What the MUSE baselines call NPO: raw logits compared one by one, [B, T].

    `2/beta softplus(-beta (reference logit - logit))`, averaged over batch, positions, padding and
    vocabulary; code of arXiv:2407.06460 (C-04). At the start every logit gets the same gradient,
    whatever the token: it asks for a shift that leaves the distribution as it is.

    Args:
        out: The forget stream.
        beta: Inverse temperature.
    """
    assert out.logits is not None, "npo_muse_as_released reads logits"
    assert out.ref_logits is not None, "npo_muse_as_released reads ref_logits"
    return (2 / beta * F.softplus(-beta * (out.ref_logits - out.logits))).mean(-1)


def _token_gap(out: TokenOutputs, **_: object) -> Tensor:
    """How much less likely each label token is than under the reference, in nats, [B, T]."""
    assert out.ref_logps is not None, "npo_batch_mean reads ref_logps"
    return out.ref_logps - out.logps


def _token_nll(out: TokenOutputs, **_: object) -> Tensor:
    return -out.logps


def _at_mean(values: Tensor, mean: Tensor, beta: float) -> Tensor:
    """Token values whose mean is `2/beta softplus(-beta mean)`, with the gradient of that mean.

    The loss is a function of one mean over all tokens of a step. Its tangent at that mean is a sum
    over tokens, which may be split among micro-batches and processes.
    """
    slope = -2 * (-beta * mean).sigmoid()
    return 2 / beta * F.softplus(-beta * mean) + slope * (values - mean)


@loss(unit="token", reads={"ref_logps"}, statistic=_token_gap)
def npo_batch_mean(out: TokenOutputs, mean_gap: Tensor, *, beta: Positive = 0.0225) -> Tensor:
    """NPO on the token mean of the whole step instead of on sequence sums, [B, T].

    `2/beta softplus(-beta (CE - CE0))`, the WMDP code of arXiv:2410.07163 (C-04).

    Args:
        out: The forget stream.
        mean_gap: CE - CE0 over the step.
        beta: Inverse temperature.
    """
    return _at_mean(_token_gap(out), mean_gap, beta)


@loss(unit="sequence")
def simnpo(
    out: TokenOutputs, *, beta: Positive = 4.5, delta: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """NPO without a reference, on the mean over the answer tokens, [B].

    `2/beta softplus(-beta (S/n - delta) + gamma)`, arXiv:2410.07163, equation 4; n counts the
    labels before the shift.

    Args:
        out: The forget stream.
        beta: Inverse temperature.
        delta: Margin inside the factor beta, called gamma in the released code (C-05).
        gamma: Margin of the paper, outside of it: gamma equals beta times delta.
    """
    mean = out.nll() / out.num_labels.clamp(min=1)
    return 2 / beta * F.softplus(gamma - beta * (mean - delta))


@loss(unit="token", reads={"logits"}, positions="all", predicts=False, batch_layout=True)
def simnpo_muse_as_released(
    out: TokenOutputs, *, beta: Positive = 0.7, gamma: float = 0.0
) -> Tensor:
    """What the SimNPO code runs on MUSE: raw logits one by one, [B, T].

    `2/beta softplus(-beta (-logit - gamma))`, averaged over batch, positions, padding and
    vocabulary; code of arXiv:2410.07163 (C-04).

    Args:
        out: The forget stream.
        beta: Inverse temperature.
        gamma: Margin.
    """
    assert out.logits is not None, "simnpo_muse_as_released reads logits"
    return (2 / beta * F.softplus(-beta * (-out.logits - gamma))).mean(-1)


@loss(unit="token", statistic=_token_nll)
def simnpo_batch_mean(out: TokenOutputs, mean_nll: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """SimNPO on the token mean of the whole step, [B, T].

    `2/beta softplus(-beta CE)`, the WMDP code of arXiv:2410.07163.

    Args:
        out: The forget stream.
        mean_nll: CE over the step.
        beta: Inverse temperature.
    """
    return _at_mean(_token_nll(out), mean_nll, beta)


@loss(unit="sequence", reads={"ref_logps"})
def dpo(
    forget: TokenOutputs,
    alternate: TokenOutputs,
    *,
    beta: Positive = 0.1,
    scale: Literal["2/beta", "1"] = "2/beta",
) -> Tensor:
    """Direct preference of an alternate answer over the true one, [B].

    `2/beta softplus(-beta ((S - S0)(true) - (S - S0)(alternate)))`, arXiv:2305.18290, equation 7,
    with the factor 2/beta of the unlearning codes. It starts at `2/beta ln 2`.

    Args:
        forget: The forget questions with their answers.
        alternate: The same questions with the preferred answer.
        beta: Inverse temperature.
        scale: Factor in front; `1` is that of the original paper and of TOFU's code (C-14).
    """
    log_ratio = (forget.nll() - forget.ref_nll()) - (alternate.nll() - alternate.ref_nll())
    factor = 2 / beta if scale == "2/beta" else 1.0
    return factor * F.softplus(-beta * log_ratio)


def _alternate_reward(_: TokenOutputs, alternate: TokenOutputs, **options: object) -> Tensor:
    """Log-likelihood ratio of the alternate answer to the reference, in nats, [B]."""
    return alternate.ref_nll() - alternate.nll()


@loss(unit="sequence", reads={"ref_logps"}, statistic=_alternate_reward)
def kto(
    forget: TokenOutputs,
    alternate: TokenOutputs,
    mean_reward: Tensor,
    *,
    beta: Positive = 0.1,
    link: Literal["sigmoid", "logsigmoid"] = "sigmoid",
) -> Tensor:
    """Kahneman-Tversky optimisation against the true answer, [B].

    `1 - 2/beta g(z - beta (S0 - S))` with z the mean log-ratio of the alternates over the step;
    the KTO variants in the code of arXiv:2404.05868.

    Args:
        forget: The forget questions with their answers.
        alternate: The same questions with rejections; only their mean is used, without gradient.
        mean_reward: z, the mean of S0 - S over the alternates of the step.
        beta: Inverse temperature.
        link: g, the sigmoid or its logarithm.
    """
    shift = mean_reward - beta * (forget.ref_nll() - forget.nll())
    value = shift.sigmoid() if link == "sigmoid" else F.logsigmoid(shift)
    return 1 - 2 / beta * value


@loss(unit="sequence")
def answer_preservation(
    retain: TokenOutputs, retain_alternate: TokenOutputs, *, beta: Positive = 0.1
) -> Tensor:
    """Keeps the gold answer of a retain question likelier than a rejection, [B].

    AP, arXiv:2410.08109, section 3.3: `1/beta softplus(-beta (S(q, y') - S(q, y)))`. Needs no
    reference model; it is `1/beta ln 2` when both are equally likely and falls to 0.

    Args:
        retain: Retain questions with their answers.
        retain_alternate: The same questions with a rejection.
        beta: Inverse temperature on the difference of sequence log-likelihoods.
    """
    return F.softplus(-beta * (retain_alternate.nll() - retain.nll())) / beta
