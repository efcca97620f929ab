"""Published TOFU evaluation logs: their aggregates, checked against those of the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from expunge.metrics.aggregate import forget_quality, harmonic_mean
from expunge.metrics.golden_cases import (
    ABSOLUTE,
    NOT_SUPPORTED,
    GoldenCase,
    as_logps,
    difference,
    unchecked,
)
from expunge.metrics.likelihood import (
    WrongMean,
    absolute_loss_gap,
    loss_gap,
    normalized_probability,
    probability,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_utility,
)
from expunge.metrics.registry import Values


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
            label = f"model utility: {name}, {mean}"
            cases += _check_entry(label, partial(_utility, name, mean, values, logs), values)
    for pair in expected["forget_quality_pairs"]:
        label = f"forget quality: {pair['model']} against {pair['retain']}"
        # A p-value of 1e-21 must agree to its digits: only the relative difference counts.
        cases += _check_entry(label, partial(_pair, pair, logs), pair, absolute=0.0)
    for gap in expected["loss_gap"]:
        label = f"loss gap: {gap['model']} against {gap['retrained']}, {gap['set']}"
        cases += _check_entry(label, partial(_gap, gap, logs), gap)
    known = ("header", "model_utility", "forget_quality_pairs", "loss_gap")
    return [*cases, *unchecked(expected, known)]


def _check_entry(
    label: str,
    compute: Callable[[], Mapping[str, Any] | str],
    stored: Mapping[str, Any],
    absolute: float = ABSOLUTE,
) -> list[GoldenCase]:
    """One case for all numbers of an entry that are computed, and one for each that is not."""
    try:
        found = compute()
    except FileNotFoundError as error:
        found = f"there is no log {error.filename}"
    if isinstance(found, str):
        return [GoldenCase(label, NOT_SUPPORTED + found)]
    keys = [key for key in stored if key in found]
    ours, theirs = [found[key] for key in keys], [stored[key] for key in keys]
    outcome = difference(ours, theirs, absolute=absolute)
    missing = [case._replace(name=f"{label}: {case.name}") for case in unchecked(stored, found)]
    return [GoldenCase(label, outcome), *missing]


def tofu_log_values(logs: Mapping[str, Mapping[str, Any]], *, mean: WrongMean) -> dict[str, float]:
    """The aggregates of a TOFU evaluation log, by the names of its geometric summary.

    Args:
        logs: Per-sample numbers by log file name, as in eval_log_aggregated.json.
        mean: Mean of the wrong answers in the truth ratio, `geometric` or `arithmetic`.
    """
    values: dict[str, float] = {}
    for file, label in TOFU_SETS.items():
        log = logs[file]
        answer, right, wrong = log_columns(log)
        share = label in ("Real Authors", "Real World")
        prob = normalized_probability(answer, wrong) if share else probability(answer)
        form = truth_ratio_forget if label == "Forget" else truth_ratio_utility
        values[f"ROUGE {label}"] = float(np.mean(log["rougeL_recall"]))
        values[f"Prob. {label}"] = float(prob.mean())
        values[f"Truth Ratio {label}"] = float(form(answer, right, wrong, mean=mean).mean())
    utility = [value for key, value in values.items() if not key.endswith("Forget")]
    values["Model Utility"] = harmonic_mean(utility)
    return values


TOFU_SETS = {
    "eval_real_author_wo_options.json": "Real Authors",
    "eval_real_world_wo_options.json": "Real World",
    "eval_log.json": "Retain",
    "eval_log_forget.json": "Forget",
}


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
    for label in TOFU_SETS.values():
        if key.startswith(label + " "):
            kind = key.removeprefix(label + " ")
            return f"{'Prob.' if kind == 'Probability' else kind} {label}"
    return key


def log_columns(log: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Log-probabilities of true, paraphrased and wrong answers of a stored log."""
    wrong = [as_logps(row) for row in log["average_perturb_loss"]]
    return as_logps(log["avg_gt_loss"]), as_logps(log["avg_paraphrased_loss"]), wrong


def _utility(
    name: str, mean: Any, stored: Mapping[str, Any], logs: _Logs
) -> dict[str, float] | str:
    """What the summary of a log holds, under the names that it has there."""
    if mean not in get_args(WrongMean):
        return f"no truth ratio has a mean called {mean}"
    values = tofu_log_values(logs[name], mean=mean)
    return {key: values[_standard(key)] for key in stored if _standard(key) in values}


def _pair(pair: Mapping[str, Any], logs: _Logs) -> dict[str, Any]:
    def ratios(name: str, mean: WrongMean) -> Values:
        answer, right, wrong = log_columns(logs[name]["eval_log_forget.json"])
        return truth_ratio(answer, right, wrong, mean=mean)

    x, y = (ratios(pair[side], "geometric") for side in ("model", "retain"))
    test = forget_quality(x, y)
    arithmetic = forget_quality(*(ratios(pair[side], "arithmetic") for side in ("model", "retain")))
    return {
        "forget_quality": test.p_value,
        "ks_statistic": test.statistic,
        "log10_p": test.log10_p,
        "n": test.n,
        "m": test.m,
        "check_inverted_orientation": forget_quality(1.0 / x, 1.0 / y).p_value,
        "check_log": forget_quality(np.log(x), np.log(y)).p_value,
        "arithmetic_mean_variant": arithmetic.p_value,
    }


_STATISTICS: dict[str, Callable[[Values], np.floating[Any]]] = {
    "mean": np.mean,
    "median": np.median,
    "max": np.max,
    "min": np.min,
}


def _gap(gap: Mapping[str, Any], logs: _Logs) -> dict[str, float]:
    """Statistics of the gaps that an entry asks for: "median_abs_gap", "mean_signed_gap"."""
    losses = [
        as_logps(logs[gap[side]][gap["set"]]["avg_gt_loss"]) for side in ("model", "retrained")
    ]
    found = {}
    for key in gap:
        words = key.split("_")
        statistic = next((_STATISTICS[word] for word in words if word in _STATISTICS), None)
        if statistic is not None:
            compute = absolute_loss_gap if "abs" in words else loss_gap
            found[key] = float(statistic(compute(*losses)))
    return found
