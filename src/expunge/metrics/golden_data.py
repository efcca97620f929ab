"""Golden numbers stored beside those of row construction: TOFU's losses, MUSE's scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from expunge.metrics.golden_cases import (
    NOT_SUPPORTED,
    GoldenCase,
    Tolerance,
    as_logps,
    tokens_of,
    unchecked,
)
from expunge.metrics.likelihood import mean_nll, truth_ratio
from expunge.metrics.overlap import overlap
from expunge.metrics.privacy import (
    attack_auc,
    loss_score,
    lowercase_ratio_score,
    min_k_score,
    privacy_leakage,
    reference_ratio_score,
    zlib_score,
)
from expunge.metrics.registry import Values


def tofu_losses(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    """Losses of a paraphrase and of wrong answers from logits, and their truth ratio."""
    right = tokens_of(group["paraphrase"]).logps
    stored = group["perturbed"]
    wrong = [
        tokens_of({"logits": logits, "labels": labels}).logps
        for logits, labels in zip(stored["logits"], stored["labels"], strict=True)
    ]
    found: dict[str, Any] = {
        "avg_paraphrased_loss": mean_nll(right),
        "average_perturb_loss": np.concatenate([mean_nll(rows) for rows in wrong]),
        "truth_ratio": truth_ratio(right, None, wrong),
        "paraphrased_loss": [-row.sum() for row in right],
        "perturb_loss": [-row.sum() for rows in wrong for row in rows],
        "num_token_paraphrased": [len(row) for row in right],
        "num_token_perturb": [len(row) for rows in wrong for row in rows],
    }
    result = group["result"]
    for key, values in found.items():
        if key in result:
            expected = _flat(result[key][str(row)] for row in range(len(right)))
            yield GoldenCase(key, tolerance.agree(values, expected))
    yield from unchecked(result, found)


def _flat(rows: Iterator[Any]) -> list[Any]:
    return [value for row in rows for value in (row if isinstance(row, list) else [row])]


def knowmem_scores(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    """ROUGE of MUSE's answers, F1 and recall without stemmer, and their mean and maximum."""
    pairs = [(entry["gt"], entry["response"]) for entry in group["history"]]
    scores = [overlap(*pair, False) for pair in pairs]
    means: dict[str, Any] = {}
    for column, field in _MUSE_ROUGE.items():
        values = [getattr(score, field) for score in scores]
        expected = [entry[column] for entry in group["history"]]
        yield GoldenCase(column, tolerance.agree(values, expected))
        means |= {f"mean_{column}": np.mean(values), f"max_{column}": np.max(values)}
    report = group["report"]
    for key, value in means.items():
        if key in report:
            yield GoldenCase(key, tolerance.agree([value], [report[key]]))
    yield from unchecked(report, means)
    for entry in group["history"]:
        yield from unchecked(entry, _MUSE_ROUGE)


_MUSE_ROUGE = {
    "rougeL": "rouge_l_f1",
    "rougeL_recall": "rouge_l_recall",
    "rouge1": "rouge1_f1",
    "rouge1_recall": "rouge1_recall",
}


def muse_scores(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    """Membership scores of plain texts, all tokens counted."""
    for number, case in enumerate(group["cases"]):
        for key, expected in case["scores"].items():
            yield GoldenCase(f"[{number}] {key}", _check_muse_score(key, case, expected, tolerance))
        # Inputs, and the loss that is the first score as well.
        known = {"token_logprobs", "lower_mean_loss", "ref_mean_loss", "mean_loss", "scores"}
        if "mean_loss" in case:
            loss = mean_nll([case["token_logprobs"]])
            yield GoldenCase(f"[{number}] mean_loss", tolerance.agree(loss, [case["mean_loss"]]))
        for missing in unchecked(case, known):
            yield missing._replace(name=f"[{number}] {missing.name}")


def _check_muse_score(
    key: str, case: Mapping[str, Any], expected: Any, tolerance: Tolerance
) -> str | None:
    logps = [case["token_logprobs"]]
    lowest = re.fullmatch(r"Min-(\d+(?:\.\d+)?)%", key)
    found: Values
    if lowest is not None:
        share = float(lowest[1]) / 100
        if int(share * len(logps[0])) == 0 and not np.isfinite(_number(expected)):
            return None  # the mean of no token; we take one
        found = min_k_score(logps, share=share, drop_last=False)
    elif key == "PPL":
        found = loss_score(logps)
    elif key == "PPL/ref":
        found = reference_ratio_score(logps, as_logps([case["ref_mean_loss"]]))
    elif key == "PPL/lower":
        found = lowercase_ratio_score(logps, [case["lower_mean_loss"]])
    elif key == "PPL/zlib":
        found = zlib_score(logps, [case["text"]])
    else:
        return NOT_SUPPORTED + "no check knows this score"
    return tolerance.agree(found, [expected])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def muse_privleak(group: Mapping[str, Any], tolerance: Tolerance) -> Iterator[GoldenCase]:
    """AUCs in MUSE's orientation, 1 = the holdout set looks like training data, and PrivLeak."""
    for case in group["cases"]:
        sides = {
            side: np.array(values)
            for key, values in case.items()
            for side in ("forget", "holdout")
            if key.startswith(f"{side}_") and isinstance(values, list)
        }
        auc = 1.0 - attack_auc(sides["forget"], sides["holdout"])
        found = {
            "auc_forget_holdout": auc,
            "privleak": privacy_leakage(auc, case["auc_retrain_constant"], positive="holdout"),
        }
        for key, value in found.items():
            yield GoldenCase(f"{case['corpus']} {key}", tolerance.agree([value], [case[key]]))
        inputs = [key for key, value in case.items() if isinstance(value, list)]
        yield from unchecked(case, [*found, *inputs, "auc_retrain_constant"])
