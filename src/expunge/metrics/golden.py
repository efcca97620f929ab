"""Golden vectors of the metrics: numbers that the authors' own code gave on stored inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.metrics.aggregate import forget_efficacy, forget_quality, harmonic_mean
from expunge.metrics.golden_cases import (
    NOT_SUPPORTED,
    GoldenCase,
    Tokens,
    Tolerance,
    as_logps,
    tokens_of,
    tolerance_of,
    unchecked,
)
from expunge.metrics.golden_data import knowmem_scores, muse_privleak, muse_scores, tofu_losses
from expunge.metrics.likelihood import (
    mean_nll,
    normalized_probability,
    probability,
    truth_ratio,
    truth_ratio_closer_look,
    truth_ratio_forget,
    truth_ratio_probability,
    truth_ratio_utility,
)
from expunge.metrics.memorization import exact_memorization, extraction_strength, token_entropy
from expunge.metrics.overlap import overlap
from expunge.metrics.privacy import (
    attack_auc,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    privacy_leakage,
    reference_score,
    zlib_score,
)
from expunge.metrics.published import TOFU_SETS, check_published, log_columns
from expunge.metrics.registry import Values, metrics
from expunge.metrics.semantics import entailment_metric, final_labels

__all__ = ["NOT_SUPPORTED", "GoldenCase", "check_metric_group", "check_published", "has_metrics"]

OU_EPSILON = 1e-10

ModelScores = Callable[[Mapping[str, Any], Mapping[str, Any], str], Values]
"""Scores that need a model: from a group, one of its results, and "forget" or "holdout"."""


def has_metrics(name: str) -> bool:
    """Whether there is a check for groups of that name."""
    return name in _GROUPS or name == _TOKEN_LEVEL


def check_metric_group(
    group: Mapping[str, Any],
    header: Mapping[str, Any],
    models: Mapping[str, ModelScores] | None = None,
) -> list[GoldenCase]:
    """Check one group of a metrics file.

    Args:
        group: An entry of the file's `groups`.
        header: The file's header; its `suggested_tolerance` is used: the smallest number in it, and
            the largest for membership scores, some of which went through float32.
        models: How to compute the scores that need a model, by name such as "mia_gradnorm"; those
            that are not here are reported as not supported.
    """
    name, tolerance = str(group["group"]), tolerance_of(header)
    if name == _TOKEN_LEVEL:
        cases = list(_token_level(group, tolerance, models or {}))
    elif name in _GROUPS:
        cases = list(_GROUPS[name](group, tolerance))
    else:
        return [GoldenCase(name, NOT_SUPPORTED + "no check knows this group")]
    return [GoldenCase(f"{name}: {case.name}", case.outcome) for case in cases]


# Token level ------------------------------------------------------------------------------------

_TOKEN_LEVEL = "token_level"


def _token_level(
    group: Mapping[str, Any], tolerance: Tolerance, models: Mapping[str, ModelScores]
) -> Iterator[GoldenCase]:
    sides = {side: tokens_of(rows) for side, rows in group["inputs"].items()}
    for key, result in group["results"].items():
        kind = key.partition("[")[0]
        known: tuple[str, ...] = ("per_sample", "agg")
        if kind.startswith("mia_"):
            known = (*sides, "auc", "k", "p", *(f"texts_{side}" for side in sides))
            outcome = _check_attack(tolerance, kind, result, group, sides, models)
        elif kind in _TOKEN_CHECKS:
            outcome = _TOKEN_CHECKS[kind](tolerance, result, sides["forget"])
        else:
            outcome = NOT_SUPPORTED + "no check knows this function"
        yield GoldenCase(key, outcome)
        for missing in unchecked(result, known):
            yield missing._replace(name=f"{key} {missing.name}")


def _check_probability(
    tolerance: Tolerance, result: Mapping[str, Any], tokens: Tokens
) -> str | None:
    found = probability(tokens.logps)
    expected = [row["prob"] for row in result["per_sample"]] + [result["agg"]]
    losses = [row["avg_loss"] for row in result["per_sample"]]
    return tolerance.agree([*found, found.mean()], expected) or tolerance.agree(
        mean_nll(tokens.logps), losses
    )


def _check_logps(tolerance: Tolerance, result: Mapping[str, Any], tokens: Tokens) -> str | None:
    rows = zip(tokens.logps, result["per_sample"], strict=True)
    differences = [tolerance.agree(ours[:-1], theirs) for ours, theirs in rows]
    return next((text for text in differences if text), None)


_TokenCheck = Callable[[Tolerance, Mapping[str, Any], Tokens], str | None]


def _check_memory(compute: Callable[[Sequence[Any]], Values], *, empty: float) -> _TokenCheck:
    """Check of a metric of greedy matches.

    Args:
        compute: The metric.
        empty: What open-unlearning gives an answer without tokens, which we leave unscored.
    """

    def check(tolerance: Tolerance, result: Mapping[str, Any], tokens: Tokens) -> str | None:
        found = compute(tokens.greedy)
        found = np.where(np.isnan(found), empty, found)
        expected = [*result["per_sample"], result["agg"]]
        return tolerance.agree([*found, np.nanmean(found)], expected)

    return check


_TOKEN_CHECKS: dict[str, _TokenCheck] = {
    "probability": _check_probability,
    "tokenwise_logprobs": _check_logps,
    "exact_memorization": _check_memory(exact_memorization, empty=np.nan),
    "extraction_strength": _check_memory(
        lambda match: extraction_strength(match, floor=True), empty=0.0
    ),
}


def _check_attack(
    tolerance: Tolerance,
    kind: str,
    result: Mapping[str, Any],
    group: Mapping[str, Any],
    sides: Mapping[str, Tokens],
    models: Mapping[str, ModelScores],
) -> str | None:
    scores: dict[str, Values] = {}
    for side, tokens in sides.items():
        if kind == "mia_loss":
            scores[side] = loss_score(tokens.logps)
        elif kind == "mia_min_k":
            scores[side] = _or_zero(min_k_score(tokens.logps, share=result["k"]))
        elif kind == "mia_min_k_plus_plus":
            columns = (tokens.logps, tokens.means, tokens.variances)
            scores[side] = _or_zero(min_k_plus_plus_score(*columns, share=result["k"]))
        elif kind == "mia_reference":
            other = tokens_of(group["inputs"][side], "ref_logits")
            scores[side] = reference_score(tokens.logps, other.logps)
        elif kind == "mia_zlib":
            scores[side] = zlib_score(tokens.logps, result[f"texts_{side}"])
        elif kind in models:
            scores[side] = _or_zero(models[kind](group, result, side))
        else:
            return NOT_SUPPORTED + "there is no way to compute it here"
    auc = attack_auc(scores["forget"], scores["holdout"])
    found = [value for side in sides for value in scores[side]]
    expected = [value for side in sides for value in result[side]]
    return tolerance.agree(found, expected, relative=tolerance.attacks) or tolerance.agree(
        [auc], [result["auc"]]
    )


def _or_zero(scores: Values) -> Values:
    """Open-unlearning gives 0 to an answer without tokens, which we leave unscored."""
    return np.where(np.isnan(scores), 0.0, scores)


# Ratios and aggregates --------------------------------------------------------------------------


def _truth_ratios(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    inputs = group["inputs"]
    right = as_logps(inputs["correct_avg_loss"])
    wrong = [as_logps(row) for row in inputs["wrong_avg_loss"]]
    raw = truth_ratio(right, None, wrong, epsilon=OU_EPSILON)
    forms = {
        "closer_to_1_better": (raw, truth_ratio_forget),
        "true_better": (raw, truth_ratio_utility),
        "prob_mean": (None, truth_ratio_probability),
    }
    results = group["results"]
    for form, (per_sample, compute) in forms.items():
        result = results.get("truth_ratio", {}).get(form)
        if result is None:
            continue
        values = compute(right, None, wrong, epsilon=OU_EPSILON)
        shown = values if per_sample is None else per_sample
        outcome = tolerance.agree([*shown, values.mean()], [*result["per_sample"], result["agg"]])
        yield GoldenCase(f"truth_ratio {form}", outcome)
    result = results.get("probability_w_options")
    if result is not None:
        values = normalized_probability(right, wrong, epsilon=OU_EPSILON)
        outcome = tolerance.agree([*values, values.mean()], [*result["per_sample"], result["agg"]])
        yield GoldenCase("probability_w_options", outcome)
    yield from unchecked(results.get("truth_ratio", {}), forms)
    yield from unchecked(results, ("truth_ratio", "probability_w_options"))


def _aggregates(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    for function, result in group["results"].items():
        check = _AGGREGATES.get(function)
        for i, case in enumerate(result.get("cases", ())):
            unknown = NOT_SUPPORTED + "no check knows this function"
            outcome = unknown if check is None else check(case, tolerance)
            yield GoldenCase(f"{function} {i}", outcome)
        yield from unchecked(result, ("cases",))


def _check_harmonic(case: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    return tolerance.agree([harmonic_mean(case["values"])], [case["value"]])


def _check_ks(case: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    test = forget_quality(np.array(case["unlearned"]), np.array(case["retain"]))
    return tolerance.agree([test.p_value], [case["pvalue"]], absolute=0.0)


def _check_privleak(case: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    reference = 0.5 if case["ref_auc"] is None else case["ref_auc"]
    found = privacy_leakage(case["auc"], reference, epsilon=OU_EPSILON)
    # The unflipped version has the same form in AUC itself.
    turned = privacy_leakage(case["auc"], reference, epsilon=OU_EPSILON, positive="holdout")
    return tolerance.agree([found, turned], [case["privleak"], case["rel_diff"]])


_AGGREGATES: dict[str, Callable[[Mapping[str, Any], Tolerance], str | None]] = {
    "hm_aggregate": _check_harmonic,
    "ks_test": _check_ks,
    "privleak": _check_privleak,
}


# Generations ------------------------------------------------------------------------------------


def _rouge(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    pairs = list(zip(group["reference"], group["generated"], strict=True))
    for column, (field, stemmer) in _ROUGE_COLUMNS.items():
        if column in group:
            found = [getattr(overlap(*pair, stemmer), field) for pair in pairs]
            yield GoldenCase(column, tolerance.agree(found, group[column]))
    yield from unchecked(group, (*_ROUGE_COLUMNS, "source_row"))


_ROUGE_COLUMNS = {
    f"{kind}_{value}{ending}": (f"{kind.replace('L', '_l')}_{value}", not ending)
    for kind in ("rouge1", "rougeL")
    for value in ("recall", "f1")
    for ending in ("", "_nostem")
}


def _entropies(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    if group["tokenizer"] != "split on whitespace":
        why = f"unknown tokenizer: {group['tokenizer']}"
        yield GoldenCase("normalised", NOT_SUPPORTED + why)
        return
    tokens = [text.split() for text in group["texts"]]
    found = {
        # The entropy of a single repeated token is 0 up to rounding in the original.
        "normalised": token_entropy(tokens),
        "raw_bits": token_entropy(tokens, normalize=False),
    }
    for key, values in found.items():
        if key in group:
            yield GoldenCase(key, tolerance.agree(values, group[key]))
    yield from unchecked(group, found)


# Entailment -------------------------------------------------------------------------------------

ToyRule = Callable[[str, str], str]
"""The label of a premise and a hypothesis."""

_TOY_RULE = re.compile(
    r"entailment when at least (\d+)% of the distinct lower-cased whitespace words of the "
    r"hypothesis occur in the premise, else neutral when any do, else contradiction"
)


def _toy_rule(text: str) -> ToyRule | None:
    """The rule that stands in for a classifier, as the file words it; None for another one."""
    match = _TOY_RULE.search(text)
    if match is None:
        return None
    percent = int(match[1])

    def label(premise: str, hypothesis: str) -> str:
        words = set(hypothesis.lower().split())
        shared = len(words & set(premise.lower().split()))
        if shared and 100 * shared >= percent * len(words):
            return "entailment"
        return "neutral" if shared else "contradiction"

    return label


def _entailment(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    rule = _toy_rule(group["nli"])
    for number, case in enumerate(group["cases"]):
        name = f"[{number}] {case['eval_task']} tofu={case['tofu']}"
        if rule is None:
            yield GoldenCase(name, NOT_SUPPORTED + f"unknown rule: {group['nli']}")
        else:
            yield GoldenCase(name, _check_entailment(group, case, rule, tolerance))
        for missing in unchecked(case, ("score",)):
            yield missing._replace(name=f"{name} {missing.name}")
    recalls = "rougeL_recall"
    if recalls in group:
        pairs = zip(group["reference"], group["generated"], strict=True)
        found = [overlap(*pair).rouge_l_recall for pair in pairs]
        yield GoldenCase(recalls, tolerance.agree(found, group[recalls]))
    yield from unchecked(group, (recalls, "cases"))


def _check_entailment(
    group: Mapping[str, Any], case: Mapping[str, Any], rule: ToyRule, tolerance: Tolerance
) -> str | None:
    """Who is the premise, the labels, those that are forced to none, and the score."""
    reference, generated = group["reference"], group["generated"]
    forget = "forget" in case["eval_task"]
    metric = metrics.get(entailment_metric(forget=forget, tofu=case["tofu"]))
    column = metric.reads[0]
    generation_first = column == "nli_generation_first"
    pairs = zip(generated, reference, strict=True)
    labels = [rule(*(pair if generation_first else pair[::-1])) for pair in pairs]
    for what, found, expected in (
        ("premise", "generated" if generation_first else "reference", case["premise_is"]),
        ("labels", labels, case["nli_labels"]),
        ("final labels", final_labels(labels, reference, generated), case["final_labels"]),
    ):
        if found != expected:
            return f"{what}: {found} should be {expected}"
    scores = metric({column: labels, "answer": reference, "generation": generated})
    return tolerance.agree([scores.mean()], [case["score"]])


# Closer Look's summary --------------------------------------------------------------------------


def _closer_look(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    for case in group["cases"]:
        values: dict[str, float] = {}
        for file in case["sets"]:
            values |= _closer_look_set(TOFU_SETS[file], group["inputs"][file])
        utility = [value for key, value in values.items() if not key.startswith("Forget")]
        retain = [value for key, value in values.items() if key.startswith("Retain")]
        memory = [
            value
            for key, value in values.items()
            if key.startswith("Forget") and not key.endswith("Token Entropy")
        ]
        values["Model Utility Retain"] = harmonic_mean(retain)
        values["Model Utility"] = harmonic_mean(utility)
        values["Forget Efficacy"] = forget_efficacy(memory)
        expected = case["result"]
        outcome = tolerance.agree([values.get(key) for key in expected], expected.values())
        yield GoldenCase(case["name"], outcome)


def _closer_look_set(label: str, log: Mapping[str, Any]) -> dict[str, float]:
    answer, right, wrong = log_columns(log)
    share = label in ("Real Authors", "Real World")
    prob = normalized_probability(answer, wrong) if share else probability(answer)
    if label == "Forget":
        ratio = truth_ratio_closer_look(answer, right, wrong).mean()
    else:
        ratio = truth_ratio_utility(answer, right, wrong).mean()
    entailed = [kind == "entailment" for kind in log["entailment_labels"]]
    return {
        f"{label} ROUGE": float(np.mean(log["rougeL_recall"])),
        f"{label} Probability": float(prob.mean()),
        f"{label} Truth Ratio": float(ratio),
        f"{label} Token Entropy": float(np.mean(log["token_entropy"])),
        f"{label} Cosine Similarity": float(np.mean(log["cosine_similarity"])),
        f"{label} Entailment Score": float(np.mean(entailed)),
    }


_GROUPS: dict[str, Callable[[Mapping[str, Any], Tolerance], Iterator[GoldenCase]]] = {
    "truth_ratio": _truth_ratios,
    "aggregates": _aggregates,
    "rouge": _rouge,
    "token_entropy": _entropies,
    "entailment_score": _entailment,
    "aggregation": _closer_look,
    "paraphrase_vs_perturbed_losses": tofu_losses,
    "knowmem_prompt": knowmem_scores,
    "muse_mia_scores": muse_scores,
    "muse_privleak": muse_privleak,
}
