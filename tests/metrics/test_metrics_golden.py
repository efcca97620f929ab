"""The checks against golden vectors pass what is right and report what is not."""

import copy
import json
import math

import numpy as np
import pytest

from expunge.metrics.golden import check_metric_group, check_published
from expunge.metrics.published import difference, tofu_log_values

HEADER = {"suggested_tolerance": "relative 1e-6 for membership scores, 1e-9 otherwise"}


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


def token_group():
    """Two rows of four logits each; the last label of each is the end of turn."""
    logits = [[[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]] * 2
    labels = [[-100, 0, 1, 2], [-100, -100, 0, 1]]
    # Label at t is scored by the logits at t - 1.
    first = [log_softmax(logits[0][t - 1])[labels[0][t]] for t in (1, 2, 3)]
    second = [log_softmax(logits[1][t - 1])[labels[1][t]] for t in (2, 3)]
    losses = [-sum(row) / len(row) for row in (first, second)]
    probs = [math.exp(-loss) for loss in losses]
    return {
        "group": "token_level",
        "inputs": {"forget": {"logits": logits, "labels": labels}},
        "results": {
            "probability": {
                "per_sample": [
                    {"prob": p, "avg_loss": loss} for p, loss in zip(probs, losses, strict=True)
                ],
                "agg": sum(probs) / 2,
            },
            "tokenwise_logprobs": {"per_sample": [first[:-1], second[:-1]]},
            # Row 0: argmax 0, 1 = labels 0, 1. Row 1: argmax 1 is not 0.
            "exact_memorization": {"per_sample": [1.0, 0.0], "agg": 0.5},
            "extraction_strength": {"per_sample": [1.0, 1.0], "agg": 1.0},
            "mia_gradnorm[p=2]": {"p": 2},
        },
    }


def outcomes(group):
    return {case.name: case.outcome for case in check_metric_group(group, HEADER)}


def test_token_level_group_agrees():
    found = outcomes(token_group())
    skipped = found.pop("token_level: mia_gradnorm[p=2]")
    assert skipped.startswith("not supported: ")
    assert len(found) == 4
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    "path", [("probability", "agg"), ("exact_memorization", "agg"), ("extraction_strength", "agg")]
)
def test_a_wrong_value_is_reported(path):
    group = token_group()
    name, field = path
    group["results"][name][field] *= 1 + 1e-8
    assert "should be" in outcomes(group)[f"token_level: {name}"]


def test_the_header_sets_the_tolerance():
    group = token_group()
    group["results"]["probability"]["agg"] *= 1 + 1e-8
    (case, *_) = check_metric_group(group, {"suggested_tolerance": "relative 1e-7"})
    assert case.outcome is None
    (case, *_) = check_metric_group(group, {})
    assert case.outcome is not None


def test_unknown_groups_are_not_supported():
    (case,) = check_metric_group({"group": "astrology"}, HEADER)
    assert not case.supported
    assert case.name == "astrology"


def test_differences_of_tiny_p_values_count():
    assert difference([1.1e-21], [1e-21], absolute=0.0) is not None
    assert difference([1.1e-21], [1e-21]) is None  # a value that is meant to be 0
    assert difference([None], [0.5]) is not None
    assert difference([0.5], [0.5, 0.5]) == "1 values should be 2"


def a_log(seed, n):
    generator = np.random.default_rng(seed)
    return {
        "avg_gt_loss": generator.uniform(0.1, 3, n).tolist(),
        "avg_paraphrased_loss": generator.uniform(0.1, 3, n).tolist(),
        "average_perturb_loss": generator.uniform(0.1, 3, (n, 3)).tolist(),
        "rougeL_recall": generator.uniform(0, 1, n).tolist(),
    }


@pytest.fixture
def published(tmp_path):
    """Two logs in the published form and expected values by formulas on probabilities."""
    files = [
        "eval_log.json",
        "eval_real_author_wo_options.json",
        "eval_real_world_wo_options.json",
        "eval_log_forget.json",
    ]
    logs = {
        name: {file: a_log(10 * k + i, 6) for i, file in enumerate(files)}
        for k, name in enumerate(["a.json", "b.json"])
    }
    for name, content in logs.items():
        (tmp_path / name).write_text(json.dumps({"logs": content}))
    gaps = np.abs(
        np.subtract(*(logs[n]["eval_log.json"]["avg_gt_loss"] for n in ("a.json", "b.json")))
    )
    expected = {
        "model_utility": {"a.json": {"arithmetic": arithmetic_summary(logs["a.json"])}},
        "forget_quality_pairs": [],
        "loss_gap": [
            {
                "model": "a.json",
                "retrained": "b.json",
                "set": "eval_log.json",
                "mean_abs_gap": gaps.mean(),
                "median_abs_gap": float(np.median(gaps)),
                "max_abs_gap": gaps.max(),
            }
        ],
    }
    return expected, tmp_path


def arithmetic_summary(log):
    """TOFU's in-training summary, by hand."""
    labels = {
        "eval_real_author_wo_options.json": "Real Authors",
        "eval_real_world_wo_options.json": "Real World",
        "eval_log.json": "Retain",
        "eval_log_forget.json": "Forget",
    }
    summary = {}
    for file, label in labels.items():
        columns = {key: np.array(values) for key, values in log[file].items()}
        p, wrong = np.exp(-columns["avg_gt_loss"]), np.exp(-columns["average_perturb_loss"])
        r = wrong.mean(1) / np.exp(-columns["avg_paraphrased_loss"])
        share = p / (p + wrong.sum(1))
        summary[f"{label} ROUGE"] = columns["rougeL_recall"].mean()
        summary[f"{label} Probability"] = (share if label.startswith("Real") else p).mean()
        ratio = np.minimum(r, 1 / r) if label == "Forget" else np.maximum(0, 1 - r)
        summary[f"{label} Truth Ratio"] = ratio.mean()
    utility = [value for key, value in summary.items() if not key.startswith("Forget")]
    summary["Model Utility"] = 9 / sum(1 / value for value in utility)
    return summary


def test_published_logs_agree(published):
    expected, folder = published
    cases = check_published(expected, folder)
    assert [case.outcome for case in cases] == [None, None]


def test_published_differences_are_reported(published):
    expected, folder = published
    wrong = copy.deepcopy(expected)
    wrong["model_utility"]["a.json"]["arithmetic"]["Model Utility"] += 1e-6
    wrong["loss_gap"][0]["max_abs_gap"] += 1e-6
    assert all("should be" in case.outcome for case in check_published(wrong, folder))


def test_geometric_summary_names(published):
    _, folder = published
    logs = json.loads((folder / "a.json").read_text())["logs"]
    found = tofu_log_values(logs, mean="geometric")
    assert "Prob. Real World" in found
    assert len(found) == 13
