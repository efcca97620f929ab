"""Published TOFU evaluation logs: their aggregates, checked against those of the authors' code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from expunge.metrics.aggregate import forget_quality, harmonic_mean
from expunge.metrics.likelihood import (
    loss_gap,
    normalized_probability,
    probability,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_utility,
)
from expunge.metrics.registry import Values

RELATIVE = 1e-9
ABSOLUTE = 1e-12  # for values that are 0 or nearly so
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
            outcome = difference([found[_standard(key)] for key in values], values.values())
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


def as_logps(nlls: Iterable[float]) -> list[list[float]]:
    """Stored mean losses as log-probabilities of answers of one token, which have that mean."""
    return [[-float(nll)] for nll in nlls]


def log_columns(log: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Log-probabilities of true, paraphrased and wrong answers of a stored log."""
    wrong = [as_logps(row) for row in log["average_perturb_loss"]]
    return as_logps(log["avg_gt_loss"]), as_logps(log["avg_paraphrased_loss"]), wrong


def _check_pair(pair: Mapping[str, Any], logs: _Logs) -> GoldenCase:
    def ratios(name: str, mean: Any) -> Values:
        answer, right, wrong = log_columns(logs[name]["eval_log_forget.json"])
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
    outcome = difference(expected.values(), [pair[key] for key in expected], absolute=0.0)
    return GoldenCase(f"forget quality: {pair['model']} against {pair['retain']}", outcome)


def _check_gap(gap: Mapping[str, Any], logs: _Logs) -> GoldenCase:
    nlls = [as_logps(logs[gap[side]][gap["set"]]["avg_gt_loss"]) for side in ("model", "retrained")]
    absolute = np.abs(loss_gap(*nlls))
    found = {
        "mean_abs_gap": absolute.mean(),
        "median_abs_gap": np.median(absolute),
        "max_abs_gap": absolute.max(),
    }
    outcome = difference(found.values(), [gap[key] for key in found])
    return GoldenCase(f"loss gap: {gap['model']}, {gap['set']}", outcome)


def difference(
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
