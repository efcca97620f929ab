"""Values over many samples, each with its interval: means, medians, AUCs, forget quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from expunge.core.results import ForgetQuality, NullBand
from expunge.metrics.bootstrap import (
    LEVEL,
    SEED,
    percentile_interval,
    resampled_aucs,
    resampled_maxima,
    resampled_means,
    resampled_medians,
)
from expunge.metrics.equivalence import (
    DEFAULT_MARGIN,
    Excess,
    KsTest,
    decide,
    decide_by_band,
    distance_bounds,
    excess_over_band,
    few_samples_warning,
    ks_test,
    middle,
    null_band,
)
from expunge.metrics.privacy import attack_auc, privacy_leakage
from expunge.metrics.registry import Values

MAXIMUM_NOTE: Final = (
    "The largest value seen; more questions can only raise it, so its interval has no honest upper "
    "end beyond the value itself."
)


class Estimate(NamedTuple):
    """A value over samples with what chance leaves open.

    Attributes:
        value: The value; nan if no sample could be scored.
        low: Lower end of the 95% interval; nan with fewer than two samples.
        high: Upper end of it.
        n: Samples that entered.
        unscored: Samples left out because they are nan.
        two_sided: Distance from the ideal value, whichever side the value is on; None for a value
            with one bad side.
        note: What must be read with the value.
    """

    value: float
    low: float
    high: float
    n: int
    unscored: int
    two_sided: float | None = None
    note: str | None = None


Mean = Estimate
"""The estimate of a mean."""


def mean_with_interval(values: Values) -> Estimate:
    """Mean of the scored samples with a percentile bootstrap interval over samples.

    The signed mean of differences is this too: positive and negative ones cancel out.

    Args:
        values: One per sample; nan where a sample could not be scored.
    """
    scored = values[~np.isnan(values)]
    replicates = resampled_means(scored[:, None])[:, 0] if len(scored) > 1 else None
    return _estimate(float(scored.mean()) if len(scored) else np.nan, replicates, values)


def median_with_interval(values: Values) -> Estimate:
    """Median of the scored samples with a percentile bootstrap interval over samples.

    Args:
        values: One per sample; nan where a sample could not be scored.
    """
    scored = values[~np.isnan(values)]
    replicates = resampled_medians(scored) if len(scored) > 1 else None
    return _estimate(float(np.median(scored)) if len(scored) else np.nan, replicates, values)


def max_with_interval(values: Values) -> Estimate:
    """Largest scored sample, with a bootstrap interval that ends at the value itself.

    The lower end says how much of the maximum hangs on single samples. There is no upper end beyond
    what was seen: drawing samples anew never finds a larger one, and `note` says so.

    Args:
        values: One per sample; nan where a sample could not be scored.
    """
    scored = values[~np.isnan(values)]
    replicates = resampled_maxima(scored) if len(scored) > 1 else None
    found = _estimate(float(scored.max()) if len(scored) else np.nan, replicates, values)
    return found._replace(note=MAXIMUM_NOTE)


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean, n / (1/x_1 + ... + 1/x_n); 0 as soon as one value is 0.

    The model utility of TOFU (arXiv:2401.06121, section 2.2) is that of nine values: ROUGE-L
    recall, probability and truth ratio on retain set, real authors and world facts. Closer Look
    (arXiv:2410.08109) takes eighteen, adding token entropy, cosine similarity and entailment, and
    six on its retain or neighbour set.

    Args:
        values: At least one number, none of them negative.

    Raises:
        ValueError: No values, or one is negative or not a number.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not (array >= 0).all():
        raise ValueError(f"a harmonic mean needs values of 0 or more, not {list(values)}")
    if (array == 0).any():
        return 0.0
    return float(array.size / (1.0 / array).sum())


def harmonic_mean_interval(groups: Mapping[str, Values]) -> tuple[float, float]:
    """95% bootstrap interval of a harmonic mean of means.

    Args:
        groups: Per-sample values by set of samples, [n, k] each; sets are drawn independently.

    Returns:
        Lower and upper end; nan if any set has fewer than two samples.
    """
    if any(len(values) < 2 for values in groups.values()):
        return np.nan, np.nan
    return percentile_interval(resampled_harmonic_means(groups))


def resampled_harmonic_means(groups: Mapping[str, Values]) -> Values:
    """Harmonic means of means over drawn samples, [REPLICATES]; see `harmonic_mean_interval`."""
    # Independent sets need different draws even when they have the same size.
    means = np.concatenate(
        [resampled_means(values, seed=SEED + k) for k, values in enumerate(groups.values())],
        axis=1,
    )
    with np.errstate(divide="ignore"):
        harmonic: Values = means.shape[1] / (1.0 / means).sum(axis=1)
    return harmonic


def forget_efficacy(forget_values: Sequence[float]) -> float:
    """One minus the mean of the memory measures of the forget set, 0..1, higher is better.

    Closer Look, arXiv:2410.08109: of ROUGE-L recall, probability, one minus the truth ratio
    in forget form, cosine similarity and entailment score.
    """
    return float(1.0 - np.mean(forget_values))


def forget_efficacy_with_interval(columns: Values) -> Estimate:
    """`forget_efficacy` from samples, with a percentile bootstrap interval over them.

    All measures of a sample are drawn together: an answer that is still known raises most of them.

    Args:
        columns: One memory measure per column, [n, k]; nan where a sample has no such value. A
            sample counts as unscored when it lacks any of them; its other values still enter.
    """
    complete = ~np.isnan(columns).any(axis=1)
    n, unscored = int(complete.sum()), int((~complete).sum())
    if not len(columns) or np.isnan(columns).all(axis=0).any():
        return Estimate(np.nan, np.nan, np.nan, n, unscored)
    value = forget_efficacy(np.nanmean(columns, axis=0).tolist())
    if len(columns) < 2:
        return Estimate(value, np.nan, np.nan, n, unscored)
    replicates = 1.0 - resampled_means(columns).mean(axis=1)
    return Estimate(value, *percentile_interval(replicates), n, unscored)


def auc_with_interval(forget_scores: Values, holdout_scores: Values) -> Estimate:
    """`attack_auc` with a percentile bootstrap interval over both sets, 0..1.

    `two_sided` is 2 |AUC - 1/2|, 0..1: an AUC below one half gives the forget set away as well,
    since whoever knows that it looks less familiar than unseen text only has to turn the attack
    round. Where one set lies wholly above the other every draw does too; the interval then is the
    exact one for min(n, m) independent pairs that all came out the same way.

    Args:
        forget_scores: Membership scores of the forget set, higher = less likely a member; nan is
            left out.
        holdout_scores: The same of the holdout set.
    """
    forget, holdout = _scored(forget_scores), _scored(holdout_scores)
    n = len(forget) + len(holdout)
    unscored = len(forget_scores) + len(holdout_scores) - n
    value = attack_auc(forget, holdout)
    if math.isnan(value):
        return Estimate(value, np.nan, np.nan, n, unscored)
    low, high = np.nan, np.nan
    if min(len(forget), len(holdout)) > 1:
        low, high = percentile_interval(resampled_aucs(forget, holdout))
        edge = _least_separated(value, len(forget), len(holdout))
        low, high = min(low, edge), max(high, edge)
    return Estimate(value, low, high, n, unscored, two_sided=2.0 * abs(value - 0.5))


def privleak_with_interval(
    forget_scores: Values,
    holdout_scores: Values,
    retain: tuple[Values, Values] | float,
    *,
    epsilon: float = 0.0,
) -> Estimate:
    """`privacy_leakage` with a percentile bootstrap interval, in percent.

    Negative: the forget set still looks like training data. Positive: it looks less familiar than
    to a model that never saw it, which gives it away as well; `two_sided` is the absolute value.
    Rows of the forget and of the holdout set are drawn independently of each other, but together
    for the two models, which scored the same rows.

    Args:
        forget_scores: Membership scores of the forget set, higher = less likely a member.
        holdout_scores: The same of the holdout set.
        retain: The retain model's scores of the same rows of both sets, or its AUC where only that
            is known (published constants; open-unlearning takes 0.5); it then has no uncertainty.
        epsilon: Added to the denominator; open-unlearning has 1e-10.

    Returns:
        The value is nan where nothing could be scored, or where the retain model's AUC is 1, so
        that a relative change says nothing.

    Raises:
        ValueError: The retain model has scores of another number of rows.
    """
    forget, holdout = forget_scores[:, None], holdout_scores[:, None]
    if not isinstance(retain, int | float):
        if (len(retain[0]), len(retain[1])) != (len(forget_scores), len(holdout_scores)):
            raise ValueError("the retain model must have scores of the same rows")
        forget = np.stack([forget_scores, retain[0]], axis=1)
        holdout = np.stack([holdout_scores, retain[1]], axis=1)
    total = len(forget) + len(holdout)
    forget, holdout = _complete(forget), _complete(holdout)
    n = len(forget) + len(holdout)
    absent = Estimate(np.nan, np.nan, np.nan, n, total - n)
    if not len(forget) or not len(holdout):
        return absent
    pairs = list(zip(forget.T, holdout.T, strict=True))
    aucs = [attack_auc(*pair) for pair in pairs]
    retain_auc = float(retain) if isinstance(retain, int | float) else aucs[1]
    if 1.0 - retain_auc + epsilon == 0:
        return absent
    value = privacy_leakage(aucs[0], retain_auc, epsilon=epsilon)
    low, high = np.nan, np.nan
    if min(len(forget), len(holdout)) > 1:
        drawn = [resampled_aucs(*pair) for pair in pairs]
        replicates = _leakages(drawn[0], drawn[1] if len(drawn) > 1 else retain_auc, epsilon)
        low, high = percentile_interval(replicates)
        edge = _least_separated(aucs[0], len(forget), len(holdout))
        limit = privacy_leakage(edge, retain_auc, epsilon=epsilon)
        low, high = min(low, limit), max(high, limit)
    return Estimate(value, low, high, n, total - n, two_sided=abs(value))


def forget_quality(
    truth_ratios: Values, *retain_truth_ratios: Values, margin: float | None = None
) -> ForgetQuality:
    """How well the forget truth ratios of a model fit those of the retain model.

    Two-sided two-sample Kolmogorov-Smirnov test (TOFU, arXiv:2401.06121, section 2.2): p-value
    0..1, 1 = the test sees no difference at all; D 0..1, 0 = the same distribution. Exact at the
    sizes of TOFU, which makes the p-value a step function of D. It depends on the order of
    the values only, so any strictly monotone map of both sides changes nothing.

    Beside the test stand a 95% interval of the true distance and a verdict, for which see
    `expunge.metrics.equivalence`:

    - one retain model, or a given margin: whether the true distance is within the margin;
    - several retain models (seeds) and no margin: whether the model is as close to them as they
      are to each other, by the same questions. The test is then that against the retain model at
      the median distance, of two middle ones the further.

    A model that is among the retain models is at distance 0 from itself, which says nothing.

    Args:
        truth_ratios: Of the evaluated model on the forget set; nan is left out.
        retain_truth_ratios: Of each retain model on the same rows; one array or several.
        margin: Tolerated true distance, 0..1. None: what the retain models say, or 0.1 with one.

    Raises:
        ValueError: No retain model, or several that do not have the same rows, or a margin outside
            0..1.
    """
    if not retain_truth_ratios:
        raise ValueError("forget quality needs the truth ratios of a retain model")
    if margin is not None and not 0 <= margin <= 1:
        raise ValueError(f"a margin is a distance between 0 and 1, not {margin}")
    several = len(retain_truth_ratios) > 1
    if several and len({len(truth_ratios), *map(len, retain_truth_ratios)}) > 1:
        raise ValueError("several retain models must have truth ratios of the same rows")
    x, ys = _scored(truth_ratios), [_scored(values) for values in retain_truth_ratios]
    if not len(x) or not all(map(len, ys)):
        which = "evaluated" if not len(x) else "retain"
        reason = f"no truth ratio of the {which} model could be computed"
        return ForgetQuality(n=len(x), m=min(map(len, ys)), reason=reason)
    tests = [ks_test(x, y) for y in ys]
    distances = [test.statistic for test in tests]
    itself = [np.array_equal(truth_ratios, y, equal_nan=True) for y in retain_truth_ratios]
    chosen = itself.index(True) if any(itself) else middle(distances)
    n, m = len(x), len(ys[chosen])
    band = null_band(retain_truth_ratios) if several else None
    found = _tested(tests[chosen], n, m).model_copy(
        update={"distances": distances, "null_band": band}
    )
    if any(itself):
        return found.model_copy(update={"low": 0.0, "high": 0.0, "upper_bound": 0.0})
    excess = excess_over_band(truth_ratios, retain_truth_ratios) if band else None
    verdict = _verdict(tests[chosen].statistic, n, m, band, excess, margin)
    return found.model_copy(update={**verdict, "warning": few_samples_warning(n, m)})


def _tested(test: KsTest, n: int, m: int) -> ForgetQuality:
    """The test and the bounds of the distance."""
    p, distance = test.p_value, test.statistic
    log10_p = math.log10(p) if p > 0 else _log10_p_underflow(distance, n, m)
    bounds = distance_bounds(distance, n, m)
    return ForgetQuality(
        p_value=p,
        statistic=distance,
        n=n,
        m=m,
        log10_p=log10_p,
        low=bounds.low,
        high=bounds.high,
        upper_bound=bounds.upper,
    )


def _verdict(
    distance: float,
    n: int,
    m: int,
    band: NullBand | None,
    excess: Excess | None,
    margin: float | None,
) -> dict[str, Any]:
    """The fields of a `ForgetQuality` that say what is concluded, and with which margin."""
    found: dict[str, Any] = {}
    if excess is not None and not math.isnan(excess.value):
        found = {
            "excess": excess.value,
            "excess_low": excess.low,
            "excess_high": excess.high,
        }
    if band is not None and excess is not None and margin is None:
        limit, origin, decision = band.highest, "retain models", decide_by_band(excess)
    else:
        limit = DEFAULT_MARGIN if margin is None else margin
        origin = "default" if margin is None else "given"
        decision = decide(distance, limit, n, m)
    return {
        **found,
        "margin": limit,
        "margin_origin": origin,
        "verdict": decision.verdict,
        "rows_needed": decision.rows_needed,
    }


def _estimate(value: float, replicates: Values | None, values: Values) -> Estimate:
    low, high = (np.nan, np.nan) if replicates is None else percentile_interval(replicates)
    n = int((~np.isnan(values)).sum())
    return Estimate(value, low, high, n, len(values) - n)


def _scored(values: Values) -> Values:
    return values[~np.isnan(values)]


def _complete(columns: Values) -> Values:
    return columns[~np.isnan(columns).any(axis=1)]


def _least_separated(auc: float, n: int, m: int) -> float:
    """The AUC nearest to 1/2 that sets of this size may have although they came out separated.

    Drawing samples anew cannot show it: two sets that do not overlap never will. Of min(n, m)
    independent pairs all came out in order, which for an AUC of a happens with a ** min(n, m); it
    is the a where this is 2.5% (the exact interval of Clopper and Pearson). An AUC strictly between
    0 and 1 is its own.
    """
    limit: float = ((1.0 - LEVEL) / 2.0) ** (1.0 / min(n, m))
    return {1.0: limit, 0.0: 1.0 - limit}.get(auc, auc)


def _leakages(aucs: Values, retain_aucs: Values | float, epsilon: float) -> Values:
    """`privacy_leakage` of drawn AUCs; nan where the retain model's is 1."""
    outside = 1.0 - np.broadcast_to(np.asarray(retain_aucs, dtype=np.float64), aucs.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 100.0 * ((1.0 - aucs) - outside) / (outside + epsilon)
    return np.where(np.isfinite(found), found, np.nan)


def _log10_p_underflow(distance: float, n: int, m: int) -> float:
    """Leading term of log10 p where p is below the smallest double (from about n = 520 at D = 1).

    For n = m the exact first term 2 C(2n, n - nD) / C(2n, n), whose successors are smaller by
    hundreds of orders of magnitude there; for n != m the asymptotic 2 exp(-2 D^2 nm / (n + m)).
    """
    from scipy.special import gammaln

    if n != m:
        log_p = np.log(2.0) - 2.0 * distance**2 * n * m / (n + m)
    else:
        h = round(distance * n)
        log_p = np.log(2.0) + 2 * gammaln(n + 1) - gammaln(n - h + 1) - gammaln(n + h + 1)
    return float(log_p / np.log(10.0))
