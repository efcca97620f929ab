"""Golden vectors of the metrics: numbers that the authors' own code gave on stored inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from expunge.metrics.aggregate import forget_efficacy, forget_quality, harmonic_mean
from expunge.metrics.likelihood import (
    mean_nll,
    normalized_probability,
    probability,
    truth_ratio,
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
from expunge.metrics.published import (
    NOT_SUPPORTED,
    RELATIVE,
    TOFU_SETS,
    GoldenCase,
    as_logps,
    check_published,
    difference,
    log_columns,
)
from expunge.metrics.registry import Values

__all__ = ["NOT_SUPPORTED", "GoldenCase", "check_metric_group", "check_published"]

OU_EPSILON = 1e-10


def check_metric_group(group: Mapping[str, Any], header: Mapping[str, Any]) -> list[GoldenCase]:
    """Check one group of a metrics file.

    Args:
        group: An entry of the file's `groups`.
        header: The file's header; its `suggested_tolerance` is used: the smallest number in it, and
            the largest for membership scores, some of which went through float32.
    """
    name = str(group["group"])
    check = _GROUPS.get(name)
    if check is None:
        why = _WHY_NOT.get(name, "no check knows this group")
        return [GoldenCase(name, NOT_SUPPORTED + why)]
    cases = check(group, _tolerance(header))
    return [GoldenCase(f"{name}: {case.name}", case.outcome) for case in cases]


class _Tolerance(NamedTuple):
    """Relative differences that are let pass, for all values and for membership scores."""

    values: float
    attacks: float

    def agree(self, found: Iterable[Any], expected: Iterable[Any], **options: float) -> str | None:
        """None if all values agree, else the worst difference."""
        return difference(found, expected, **{"relative": self.values, **options})


def _tolerance(header: Mapping[str, Any]) -> _Tolerance:
    stated = re.findall(r"\d+(?:\.\d+)?e-\d+", str(header.get("suggested_tolerance", "")))
    numbers = [float(number) for number in stated] or [RELATIVE]
    return _Tolerance(min(numbers), max(numbers))


_WHY_NOT = {"entailment_score": "needs labels of an entailment classifier"}


class _Tokens(NamedTuple):
    """What a teacher-forced pass stores of some sequences."""

    logps: list[Values]
    greedy: list[Any]
    means: list[Values]
    variances: list[Values]


def _tokens(rows: Mapping[str, Any], logits_key: str = "logits") -> _Tokens:
    """Log-probabilities of the labelled tokens and what goes with them, from full logits."""
    found = _Tokens([], [], [], [])
    for logits, labels in zip(rows[logits_key], rows["labels"], strict=True):
        scores = np.asarray(logits, dtype=np.float64)
        scores = scores - scores.max(-1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        places = [t for t in range(1, len(labels)) if labels[t] != -100]
        at = log_p[[t - 1 for t in places]]
        tokens = np.array([labels[t] for t in places], dtype=int)
        mean = (np.exp(at) * at).sum(-1)
        found.logps.append(at[np.arange(len(tokens)), tokens])
        found.greedy.append(at.argmax(-1) == tokens)
        found.means.append(mean)
        found.variances.append((np.exp(at) * at**2).sum(-1) - mean**2)
    return found


def _token_level(group: Mapping[str, Any], tolerance: _Tolerance) -> Iterator[GoldenCase]:
    sides = {side: _tokens(rows) for side, rows in group["inputs"].items()}
    for key, result in group["results"].items():
        kind, _, option = key.partition("[")
        if kind == "mia_gradnorm":
            why = "a gradient norm is no function of stored outputs"
            yield GoldenCase(key, NOT_SUPPORTED + why)
        elif kind.startswith("mia_"):
            yield GoldenCase(
                key, _check_attack(tolerance, kind, option, result, group["inputs"], sides)
            )
        elif kind in _TOKEN_CHECKS:
            yield GoldenCase(key, _TOKEN_CHECKS[kind](tolerance, result, sides["forget"]))
        else:
            yield GoldenCase(key, NOT_SUPPORTED + "no check knows this function")


def _check_probability(
    tolerance: _Tolerance, result: Mapping[str, Any], tokens: _Tokens
) -> str | None:
    found = probability(tokens.logps)
    expected = [row["prob"] for row in result["per_sample"]] + [result["agg"]]
    losses = [row["avg_loss"] for row in result["per_sample"]]
    return tolerance.agree([*found, found.mean()], expected) or tolerance.agree(
        mean_nll(tokens.logps), losses
    )


def _check_logps(tolerance: _Tolerance, result: Mapping[str, Any], tokens: _Tokens) -> str | None:
    rows = zip(tokens.logps, result["per_sample"], strict=True)
    differences = [tolerance.agree(ours[:-1], theirs) for ours, theirs in rows]
    return next((text for text in differences if text), None)


_TokenCheck = Callable[[_Tolerance, Mapping[str, Any], _Tokens], str | None]


def _check_memory(
    compute: Callable[[Sequence[Any]], Values],
) -> _TokenCheck:
    def check(tolerance: _Tolerance, result: Mapping[str, Any], tokens: _Tokens) -> str | None:
        found = compute(tokens.greedy)
        return tolerance.agree([*found, found.mean()], [*result["per_sample"], result["agg"]])

    return check


_TOKEN_CHECKS: dict[str, _TokenCheck] = {
    "probability": _check_probability,
    "tokenwise_logprobs": _check_logps,
    "exact_memorization": _check_memory(exact_memorization),
    "extraction_strength": _check_memory(lambda match: extraction_strength(match, floor=True)),
}


def _check_attack(
    tolerance: _Tolerance,
    kind: str,
    option: str,
    result: Mapping[str, Any],
    inputs: Mapping[str, Any],
    sides: Mapping[str, _Tokens],
) -> str | None:
    scores: dict[str, Values] = {}
    for side, tokens in sides.items():
        if kind == "mia_loss":
            scores[side] = loss_score(tokens.logps)
        elif kind == "mia_min_k":
            scores[side] = min_k_score(tokens.logps, share=result["k"])
        elif kind == "mia_min_k_plus_plus":
            scores[side] = min_k_plus_plus_score(*_without_greedy(tokens), share=result["k"])
        elif kind == "mia_reference":
            other = _tokens(inputs[side], "ref_logits")
            scores[side] = reference_score(tokens.logps, other.logps)
        elif kind == "mia_zlib":
            scores[side] = zlib_score(tokens.logps, result[f"texts_{side}"])
        else:
            return NOT_SUPPORTED + f"no check knows {kind} {option}".rstrip()
    auc = attack_auc(scores["forget"], scores["holdout"])
    found = [*scores["forget"], *scores["holdout"]]
    expected = [*result["forget"], *result["holdout"]]
    return tolerance.agree(found, expected, relative=tolerance.attacks) or tolerance.agree(
        [auc], [result["auc"]]
    )


def _without_greedy(tokens: _Tokens) -> tuple[list[Values], list[Values], list[Values]]:
    return tokens.logps, tokens.means, tokens.variances


def _truth_ratios(group: Mapping[str, Any], tolerance: _Tolerance) -> Iterator[GoldenCase]:
    inputs = group["inputs"]
    right = as_logps(inputs["correct_avg_loss"])
    wrong = [as_logps(row) for row in inputs["wrong_avg_loss"]]
    raw = truth_ratio(right, None, wrong, epsilon=OU_EPSILON)
    forms = {
        "closer_to_1_better": (raw, truth_ratio_forget),
        "true_better": (raw, truth_ratio_utility),
        "prob_mean": (None, truth_ratio_probability),
    }
    for form, result in group["results"]["truth_ratio"].items():
        if form not in forms:
            continue  # the name of the function
        per_sample, compute = forms[form]
        values = compute(right, None, wrong, epsilon=OU_EPSILON)
        shown = values if per_sample is None else per_sample
        outcome = tolerance.agree([*shown, values.mean()], [*result["per_sample"], result["agg"]])
        yield GoldenCase(f"truth_ratio {form}", outcome)
    result = group["results"]["probability_w_options"]
    values = normalized_probability(right, wrong, epsilon=OU_EPSILON)
    outcome = tolerance.agree([*values, values.mean()], [*result["per_sample"], result["agg"]])
    yield GoldenCase("probability_w_options", outcome)


def _aggregates(group: Mapping[str, Any], tolerance: _Tolerance) -> Iterator[GoldenCase]:
    results = group["results"]
    for i, case in enumerate(results.get("hm_aggregate", {}).get("cases", ())):
        outcome = tolerance.agree([harmonic_mean(case["values"])], [case["value"]])
        yield GoldenCase(f"hm_aggregate {i}", outcome)
    for i, case in enumerate(results.get("ks_test", {}).get("cases", ())):
        test = forget_quality(np.array(case["unlearned"]), np.array(case["retain"]))
        yield GoldenCase(
            f"ks_test {i}", tolerance.agree([test.p_value], [case["pvalue"]], absolute=0.0)
        )
    for i, case in enumerate(results.get("privleak", {}).get("cases", ())):
        reference = 0.5 if case["ref_auc"] is None else case["ref_auc"]
        found = privacy_leakage(case["auc"], reference, epsilon=OU_EPSILON)
        # The unflipped version has the same form in AUC itself.
        unflipped = privacy_leakage(1.0 - case["auc"], 1.0 - reference, epsilon=OU_EPSILON)
        outcome = tolerance.agree([found, unflipped], [case["privleak"], case["rel_diff"]])
        yield GoldenCase(f"privleak {i}", outcome)


def _rouge(group: Mapping[str, Any], tolerance: _Tolerance) -> Iterator[GoldenCase]:
    pairs = list(zip(group["reference"], group["generated"], strict=True))
    for column, expected in group.items():
        match = _ROUGE_COLUMNS.get(column)
        if match is not None:
            field, stemmer = match
            found = [getattr(overlap(*pair, stemmer), field) for pair in pairs]
            yield GoldenCase(column, tolerance.agree(found, expected))


_ROUGE_COLUMNS = {
    f"{kind}_{value}{ending}": (f"{kind.replace('L', '_l')}_{value}", not ending)
    for kind in ("rouge1", "rougeL")
    for value in ("recall", "f1")
    for ending in ("", "_nostem")
}


def _entropies(group: Mapping[str, Any], tolerance: _Tolerance) -> Iterator[GoldenCase]:
    if group["tokenizer"] != "split on whitespace":
        why = f"unknown tokenizer: {group['tokenizer']}"
        yield GoldenCase("normalised", NOT_SUPPORTED + why)
        return
    found = token_entropy([text.split() for text in group["texts"]])
    # The entropy of a single repeated token is 0 up to rounding in the original.
    yield GoldenCase("normalised", tolerance.agree(found, group["normalised"]))


def _closer_look(group: Mapping[str, Any], tolerance: _Tolerance) -> Iterator[GoldenCase]:
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
        ratio = 1.0 - truth_ratio_forget(answer, right, wrong).mean()
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


_GROUPS: dict[str, Callable[[Mapping[str, Any], _Tolerance], Iterator[GoldenCase]]] = {
    "token_level": _token_level,
    "truth_ratio": _truth_ratios,
    "aggregates": _aggregates,
    "rouge": _rouge,
    "token_entropy": _entropies,
    "aggregation": _closer_look,
}
