"""Golden vectors of the metrics: numbers that the authors' own code gave on stored inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from expunge.metrics.aggregate import forget_efficacy, forget_quality, harmonic_mean
from expunge.metrics.likelihood import (
    loss_gap,
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
from expunge.metrics.registry import Values

RELATIVE = 1e-9
FLOAT32 = 1e-6  # for values that the original passed through float32; stated in the header
ABSOLUTE = 1e-12  # for values that are 0 or nearly so
OU_EPSILON = 1e-10
NOT_SUPPORTED = "not supported: "


class GoldenCase(NamedTuple):
    """Outcome of one case.

    Attributes:
        name: Group, function and what else tells the case apart.
        outcome: None when it agrees; else the difference, or "not supported: " and why.
    """

    name: str
    outcome: str | None

    @property
    def supported(self) -> bool:
        """The case could be checked."""
        return self.outcome is None or not self.outcome.startswith(NOT_SUPPORTED)


def check_metric_group(group: Mapping[str, Any], header: Mapping[str, Any]) -> list[GoldenCase]:
    """Check one group of a metrics file.

    Args:
        group: An entry of the file's `groups`.
        header: The file's header. Its tolerance is the default here: relative 1e-6 for membership
            scores, some of which went through float32, and 1e-9 for all else.
    """
    name = str(group["group"])
    check = _GROUPS.get(name)
    if check is None:
        why = _WHY_NOT.get(name, "no check knows this group")
        return [GoldenCase(name, NOT_SUPPORTED + why)]
    return [GoldenCase(f"{name}: {case.name}", case.outcome) for case in check(group)]


def check_published(expected: Mapping[str, Any], logs_folder: Path | str) -> list[GoldenCase]:
    """Check the published TOFU runs: model utility, forget quality of all pairs, loss gaps.

    Args:
        expected: Content of tofu_published_expected.json.
        logs_folder: Folder with the per-sample logs it names.
    """
    logs = _Logs(Path(logs_folder))
    cases: list[GoldenCase] = []
    for name, variants in expected["model_utility"].items():
        for mean, values in variants.items():
            found = tofu_log_values(logs[name], mean=mean)
            outcome = _difference([found[_standard(key)] for key in values], values.values())
            cases.append(GoldenCase(f"model utility: {name}, {mean}", outcome))
    for pair in expected["forget_quality_pairs"]:
        cases.append(_check_pair(pair, logs))
    for gap in expected["loss_gap"]:
        cases.append(_check_gap(gap, logs))
    return cases


def tofu_log_values(logs: Mapping[str, Mapping[str, Any]], *, mean: Any) -> dict[str, float]:
    """The aggregates of a TOFU evaluation log, by the names of its geometric summary.

    Args:
        logs: Per-sample numbers by log file name, as in eval_log_aggregated.json.
        mean: Mean of the wrong answers in the truth ratio, `geometric` or `arithmetic`.
    """
    values: dict[str, float] = {}
    for file, label in _TOFU_SETS.items():
        log = logs[file]
        answer, right, wrong = _log_columns(log)
        share = label in ("Real Authors", "Real World")
        prob = normalized_probability(answer, wrong) if share else probability(answer)
        form = truth_ratio_forget if label == "Forget" else truth_ratio_utility
        values[f"ROUGE {label}"] = float(np.mean(log["rougeL_recall"]))
        values[f"Prob. {label}"] = float(prob.mean())
        values[f"Truth Ratio {label}"] = float(form(answer, right, wrong, mean=mean).mean())
    utility = [value for key, value in values.items() if not key.endswith("Forget")]
    values["Model Utility"] = harmonic_mean(utility)
    return values


_TOFU_SETS = {
    "eval_real_author_wo_options.json": "Real Authors",
    "eval_real_world_wo_options.json": "Real World",
    "eval_log.json": "Retain",
    "eval_log_forget.json": "Forget",
}

_WHY_NOT = {"entailment_score": "needs labels of an entailment classifier"}


class _Logs:
    """Published logs, read once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        if name not in self._read:
            text = (self._folder / name).read_text(encoding="utf-8")
            self._read[name] = json.loads(text)["logs"]
        logs: Mapping[str, Mapping[str, Any]] = self._read[name]
        return logs


def _standard(key: str) -> str:
    """The geometric summary's name for a key of either: "Retain ROUGE" -> "ROUGE Retain"."""
    for label in _TOFU_SETS.values():
        if key.startswith(label + " "):
            kind = key.removeprefix(label + " ")
            return f"{'Prob.' if kind == 'Probability' else kind} {label}"
    return key


def _as_logps(nlls: Iterable[float]) -> list[list[float]]:
    """Stored means as answers of one token, which have that mean."""
    return [[-float(nll)] for nll in nlls]


def _log_columns(log: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    wrong = [_as_logps(row) for row in log["average_perturb_loss"]]
    return _as_logps(log["avg_gt_loss"]), _as_logps(log["avg_paraphrased_loss"]), wrong


def _check_pair(pair: Mapping[str, Any], logs: _Logs) -> GoldenCase:
    def ratios(name: str, mean: Any) -> Values:
        answer, right, wrong = _log_columns(logs[name]["eval_log_forget.json"])
        return truth_ratio(answer, right, wrong, mean=mean)

    x, y = (ratios(pair[side], "geometric") for side in ("model", "retain"))
    test = forget_quality(x, y)
    arithmetic = forget_quality(*(ratios(pair[side], "arithmetic") for side in ("model", "retain")))
    expected = {
        "forget_quality": test.p_value,
        "ks_statistic": test.statistic,
        "n": test.n,
        "m": test.m,
        "check_inverted_orientation": forget_quality(1.0 / x, 1.0 / y).p_value,
        "check_log": forget_quality(np.log(x), np.log(y)).p_value,
        "arithmetic_mean_variant": arithmetic.p_value,
    }
    # A p-value of 1e-21 must agree to its digits: only the relative difference counts.
    outcome = _difference(expected.values(), [pair[key] for key in expected], absolute=0.0)
    return GoldenCase(f"forget quality: {pair['model']} against {pair['retain']}", outcome)


def _check_gap(gap: Mapping[str, Any], logs: _Logs) -> GoldenCase:
    nlls = [
        _as_logps(logs[gap[side]][gap["set"]]["avg_gt_loss"]) for side in ("model", "retrained")
    ]
    absolute = np.abs(loss_gap(*nlls))
    found = {
        "mean_abs_gap": absolute.mean(),
        "median_abs_gap": np.median(absolute),
        "max_abs_gap": absolute.max(),
    }
    outcome = _difference(found.values(), [gap[key] for key in found])
    return GoldenCase(f"loss gap: {gap['model']}, {gap['set']}", outcome)


def _difference(
    found: Iterable[Any],
    expected: Iterable[Any],
    *,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> str | None:
    """None if all numbers agree, else the worst of them."""
    ours = np.array([np.nan if x is None else x for x in found], dtype=np.float64)
    theirs = np.array(list(expected), dtype=np.float64)
    if ours.shape != theirs.shape:
        return f"{len(ours)} values should be {len(theirs)}"
    slack = relative * np.abs(theirs) + absolute
    excess = np.where(np.isnan(ours), np.inf, np.abs(ours - theirs) - slack)
    worst = int(excess.argmax())
    if excess[worst] <= 0:
        return None
    return f"value {worst} is {float(ours[worst])!r}, should be {float(theirs[worst])!r}"


# Groups -----------------------------------------------------------------------------------------


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


def _token_level(group: Mapping[str, Any]) -> Iterator[GoldenCase]:
    sides = {side: _tokens(rows) for side, rows in group["inputs"].items()}
    for key, result in group["results"].items():
        kind, _, option = key.partition("[")
        if kind == "mia_gradnorm":
            why = "a gradient norm is no function of stored outputs"
            yield GoldenCase(key, NOT_SUPPORTED + why)
        elif kind.startswith("mia_"):
            yield GoldenCase(key, _check_attack(kind, option, result, group["inputs"], sides))
        elif kind in _TOKEN_CHECKS:
            yield GoldenCase(key, _TOKEN_CHECKS[kind](result, sides["forget"]))
        else:
            yield GoldenCase(key, NOT_SUPPORTED + "no check knows this function")


def _check_probability(result: Mapping[str, Any], tokens: _Tokens) -> str | None:
    found = probability(tokens.logps)
    expected = [row["prob"] for row in result["per_sample"]] + [result["agg"]]
    losses = [row["avg_loss"] for row in result["per_sample"]]
    return _difference([*found, found.mean()], expected) or _difference(
        mean_nll(tokens.logps), losses
    )


def _check_logps(result: Mapping[str, Any], tokens: _Tokens) -> str | None:
    rows = zip(tokens.logps, result["per_sample"], strict=True)
    differences = [_difference(ours[:-1], theirs) for ours, theirs in rows]
    return next((text for text in differences if text), None)


def _check_memory(
    compute: Callable[[Sequence[Any]], Values],
) -> Callable[[Mapping[str, Any], _Tokens], str | None]:
    def check(result: Mapping[str, Any], tokens: _Tokens) -> str | None:
        found = compute(tokens.greedy)
        return _difference([*found, found.mean()], [*result["per_sample"], result["agg"]])

    return check


_TOKEN_CHECKS: dict[str, Callable[[Mapping[str, Any], _Tokens], str | None]] = {
    "probability": _check_probability,
    "tokenwise_logprobs": _check_logps,
    "exact_memorization": _check_memory(exact_memorization),
    "extraction_strength": _check_memory(lambda match: extraction_strength(match, floor=True)),
}


def _check_attack(
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
    return _difference(found, expected, relative=FLOAT32) or _difference([auc], [result["auc"]])


def _without_greedy(tokens: _Tokens) -> tuple[list[Values], list[Values], list[Values]]:
    return tokens.logps, tokens.means, tokens.variances


def _truth_ratios(group: Mapping[str, Any]) -> Iterator[GoldenCase]:
    inputs = group["inputs"]
    right = _as_logps(inputs["correct_avg_loss"])
    wrong = [_as_logps(row) for row in inputs["wrong_avg_loss"]]
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
        outcome = _difference([*shown, values.mean()], [*result["per_sample"], result["agg"]])
        yield GoldenCase(f"truth_ratio {form}", outcome)
    result = group["results"]["probability_w_options"]
    values = normalized_probability(right, wrong, epsilon=OU_EPSILON)
    outcome = _difference([*values, values.mean()], [*result["per_sample"], result["agg"]])
    yield GoldenCase("probability_w_options", outcome)


def _aggregates(group: Mapping[str, Any]) -> Iterator[GoldenCase]:
    results = group["results"]
    for i, case in enumerate(results.get("hm_aggregate", {}).get("cases", ())):
        outcome = _difference([harmonic_mean(case["values"])], [case["value"]])
        yield GoldenCase(f"hm_aggregate {i}", outcome)
    for i, case in enumerate(results.get("ks_test", {}).get("cases", ())):
        test = forget_quality(np.array(case["unlearned"]), np.array(case["retain"]))
        yield GoldenCase(
            f"ks_test {i}", _difference([test.p_value], [case["pvalue"]], absolute=0.0)
        )
    for i, case in enumerate(results.get("privleak", {}).get("cases", ())):
        reference = 0.5 if case["ref_auc"] is None else case["ref_auc"]
        found = privacy_leakage(case["auc"], reference, epsilon=OU_EPSILON)
        # The unflipped version has the same form in AUC itself.
        unflipped = privacy_leakage(1.0 - case["auc"], 1.0 - reference, epsilon=OU_EPSILON)
        outcome = _difference([found, unflipped], [case["privleak"], case["rel_diff"]])
        yield GoldenCase(f"privleak {i}", outcome)


def _rouge(group: Mapping[str, Any]) -> Iterator[GoldenCase]:
    pairs = list(zip(group["reference"], group["generated"], strict=True))
    for column, expected in group.items():
        match = _ROUGE_COLUMNS.get(column)
        if match is not None:
            field, stemmer = match
            found = [getattr(overlap(*pair, stemmer), field) for pair in pairs]
            yield GoldenCase(column, _difference(found, expected))


_ROUGE_COLUMNS = {
    f"{kind}_{value}{ending}": (f"{kind.replace('L', '_l')}_{value}", not ending)
    for kind in ("rouge1", "rougeL")
    for value in ("recall", "f1")
    for ending in ("", "_nostem")
}


def _entropies(group: Mapping[str, Any]) -> Iterator[GoldenCase]:
    if group["tokenizer"] != "split on whitespace":
        why = f"unknown tokenizer: {group['tokenizer']}"
        yield GoldenCase("normalised", NOT_SUPPORTED + why)
        return
    found = token_entropy([text.split() for text in group["texts"]])
    # The entropy of a single repeated token is 0 up to rounding in the original.
    yield GoldenCase("normalised", _difference(found, group["normalised"]))


def _closer_look(group: Mapping[str, Any]) -> Iterator[GoldenCase]:
    for case in group["cases"]:
        values: dict[str, float] = {}
        for file in case["sets"]:
            values |= _closer_look_set(_TOFU_SETS[file], group["inputs"][file])
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
        outcome = _difference([values.get(key) for key in expected], expected.values())
        yield GoldenCase(case["name"], outcome)


def _closer_look_set(label: str, log: Mapping[str, Any]) -> dict[str, float]:
    answer, right, wrong = _log_columns(log)
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


_GROUPS: dict[str, Callable[[Mapping[str, Any]], Iterator[GoldenCase]]] = {
    "token_level": _token_level,
    "truth_ratio": _truth_ratios,
    "aggregates": _aggregates,
    "rouge": _rouge,
    "token_entropy": _entropies,
    "aggregation": _closer_look,
}
