"""The checks against golden vectors pass what is right and report what is not."""

import copy
import json
import math
import zlib

import numpy as np
import pytest
from scipy.stats import ks_2samp

from expunge.metrics.golden import check_metric_group, check_published
from expunge.metrics.golden_cases import difference, has_numbers, unchecked
from expunge.metrics.published import tofu_log_values

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


def test_a_model_score_is_computed_by_who_can():
    group = token_group()
    group["inputs"]["holdout"] = group["inputs"]["forget"]
    scores = {"forget": [1.0, 2.0], "holdout": [3.0, 4.0]}
    group["results"] = {"mia_gradnorm[p=2]": {"p": 2, **scores, "auc": 1.0}}

    def model_scores(given, result, side):
        assert given is group
        return np.array(scores[side]) * (result["p"] / 2)

    def check():
        (case,) = check_metric_group(group, HEADER, {"mia_gradnorm": model_scores})
        return case.outcome

    assert check() is None
    group["results"]["mia_gradnorm[p=2]"]["p"] = 3
    assert "should be" in check()


def test_answers_without_tokens_are_as_open_unlearning_counts_them():
    """Nothing but an end of turn: extraction strength and Min-K 0, memorisation left out."""
    group = token_group()
    inputs = group["inputs"]["forget"]
    inputs["logits"].append(inputs["logits"][0])
    inputs["labels"].append([-100, -100, -100, 1])
    group["inputs"]["holdout"] = copy.deepcopy(inputs)
    lowest = [-min(row) for row in group["results"]["tokenwise_logprobs"]["per_sample"]]
    scores = [*lowest, 0.0]
    group["results"] = {
        "exact_memorization": {"per_sample": [1.0, 0.0, None], "agg": 0.5},
        "extraction_strength": {"per_sample": [1.0, 1.0, 0.0], "agg": 2 / 3},
        "mia_min_k[0.1]": {"k": 0.1, "forget": scores, "holdout": scores, "auc": 0.5},
    }
    assert set(outcomes(group).values()) == {None}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("results", "probability", "median"), "token_level: probability median"),
        (("results", "zeta"), "token_level: zeta"),
    ],
)
def test_no_stored_number_is_passed_over(path, name):
    group = token_group()
    place = group
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = {"per_sample": [0.5]}
    assert outcomes(group)[name].startswith("not supported")


def test_unchecked_values_are_those_with_numbers():
    values = {"a": 1, "b": "text", "c": [{"d": [2.0]}], "e": True, "f": None, "g": [], "h": 3}
    assert [case.name for case in unchecked(values, ("h",))] == ["a", "c"]
    assert not has_numbers({"a": ["text", None, False]})


RULE = (
    "entailment when at least {}% of the distinct lower-cased whitespace words of the hypothesis "
    "occur in the premise, else neutral when any do, else contradiction"
)


def entailment_group():
    """Reference "a b c d" against "A b", "x", "d d d d e" with a rule of 50%.

    Generation as premise: 2/4 of the reference's words, none, 1/4. Reference as premise: 2/2 of the
    generation's words, none, 1/2. ROUGE-L recall: 2/4, 0, 1/4; the second is forced to none.
    """
    generated, reference = ["A b", "x", "d d d d e"], ["a b c d"] * 3
    first = ["entailment", "contradiction", "neutral"]
    second = ["entailment", "contradiction", "entailment"]

    def case(task, tofu, premise, verdicts, score):
        final = [verdicts[0], "none", verdicts[2]]
        names = ("eval_task", "tofu", "premise_is", "nli_labels", "final_labels", "score")
        return dict(zip(names, (task, tofu, premise, verdicts, final, score), strict=True))

    return {
        "group": "entailment_score",
        "nli": RULE.format(50),
        "generated": generated,
        "reference": reference,
        "rougeL_recall": [0.5, 0, 0.25],
        "cases": [
            case("eval_log_forget", True, "generated", first, 1 / 3),
            case("eval_real_author_wo_options", True, "reference", second, 2 / 3),
            case("eval_log", False, "generated", first, 1 / 3),
        ],
    }


def test_entailment_wiring_agrees():
    found = outcomes(entailment_group())
    assert len(found) == 4
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["cases"][1].update(premise_is="generated"), "premise"),
        (lambda g: g["cases"][0]["nli_labels"].reverse(), "labels"),
        (lambda g: g["cases"][0]["final_labels"].reverse(), "final labels"),
        (lambda g: g["cases"][2].update(score=0.5), "should be 0.5"),
        (lambda g: g["rougeL_recall"].reverse(), "should be"),
        (lambda g: g.update(nli=RULE.format(60)), None),  # 50% is too little for the last row
        (lambda g: g.update(nli="a coin"), "unknown rule"),
        (lambda g: g.update(bleu=[0.5]), "no check knows this value"),
    ],
)
def test_a_wrong_entailment_value_is_reported(change, message):
    group = entailment_group()
    change(group)
    wrong = [outcome for outcome in outcomes(group).values() if outcome]
    assert wrong
    assert any((message or "labels") in outcome for outcome in wrong)


def tofu_group():
    """Two rows with two wrong answers each; every loss from softmax by hand."""
    logits = np.random.default_rng(3).normal(size=(2, 3, 4, 5)).tolist()
    labels = [[-100, 1, 2, -100], [-100, -100, 4, 0], [-100, 3, -100, -100]]
    right, wrong = {}, {}
    for row in range(2):
        sums, counts = [], []
        for answer in range(3):
            places = [t for t in range(4) if labels[answer][t] != -100]
            table = logits[row][answer]
            logps = [log_softmax(table[t - 1])[labels[answer][t]] for t in places]
            sums.append(-sum(logps))
            counts.append(len(places))
        means = [total / count for total, count in zip(sums, counts, strict=True)]
        right[str(row)] = (sums[0], counts[0], means[0])
        wrong[str(row)] = (sums[1:], counts[1:], means[1:])
    return {
        "group": "paraphrase_vs_perturbed_losses",
        "paraphrase": {"logits": [row[0] for row in logits], "labels": [labels[0]] * 2},
        "perturbed": {"logits": [row[1:] for row in logits], "labels": [labels[1:]] * 2},
        "result": {
            "paraphrased_loss": {row: value[0] for row, value in right.items()},
            "num_token_paraphrased": {row: value[1] for row, value in right.items()},
            "avg_paraphrased_loss": {row: value[2] for row, value in right.items()},
            "perturb_loss": {row: value[0] for row, value in wrong.items()},
            "num_token_perturb": {row: value[1] for row, value in wrong.items()},
            "average_perturb_loss": {row: value[2] for row, value in wrong.items()},
            "truth_ratio": {
                row: math.exp(right[row][2] - sum(wrong[row][2]) / 2) for row in ("0", "1")
            },
        },
    }


def test_losses_of_paraphrase_and_wrong_answers_agree():
    found = outcomes(tofu_group())
    assert len(found) == 7
    assert set(found.values()) == {None}


@pytest.mark.parametrize("key", list(tofu_group()["result"]))
def test_every_wrong_loss_is_reported(key):
    group = tofu_group()
    value = group["result"][key]["1"]
    group["result"][key]["1"] = [value[0], value[1] + 1] if isinstance(value, list) else value + 1
    assert "should be" in outcomes(group)[f"paraphrase_vs_perturbed_losses: {key}"]


def muse_group():
    """Tokens -1 to -5; A = 3. Lower-cased 6, calibration model 2. Min-40%: -5 and -4."""
    size = len(zlib.compress(b"some text"))
    scores = {"PPL": 3.0, "PPL/ref": 1.5, "PPL/lower": 0.5, "PPL/zlib": 3.0 / size}
    scores |= {"Min-20%": 5.0, "Min-40%": 4.5, "Min-100%": 3.0}
    case = {
        "text": "some text",
        "token_logprobs": [-1.0, -2.0, -3.0, -4.0, -5.0],
        "mean_loss": 3.0,
        "lower_mean_loss": 6.0,
        "ref_mean_loss": 2.0,
        "scores": scores,
    }
    return {"group": "muse_mia_scores", "cases": [case]}


def test_membership_scores_of_muse_agree():
    found = outcomes(muse_group())
    assert len(found) == 8
    assert set(found.values()) == {None}


@pytest.mark.parametrize("key", list(muse_group()["cases"][0]["scores"]))
def test_every_wrong_membership_score_is_reported(key):
    group = muse_group()
    group["cases"][0]["scores"][key] += 1e-6
    assert "should be" in outcomes(group)[f"muse_mia_scores: [0] {key}"]


def test_min_k_of_no_token_is_the_one_difference_to_muse():
    """floor(0.1 * 5) = 0 tokens: MUSE's mean of nothing is not a number, ours is of one token."""
    group = muse_group()
    group["cases"][0]["scores"] = {"Min-10%": math.nan, "Min-20%": math.nan, "Zeta": 1.0}
    found = outcomes(group)
    assert found["muse_mia_scores: [0] Min-10%"] is None
    assert "should be nan" in found["muse_mia_scores: [0] Min-20%"]
    assert found["muse_mia_scores: [0] Zeta"].startswith("not supported")


def test_privacy_leakage_of_muse():
    """Scores 1, 3 against 2, 4: forget is below in 3 of 4 pairs, so MUSE's AUC is 1/4.

    Against 1/2: 100 * (1/4 - 1/2) / (1/2) = -50.
    """
    case = {
        "corpus": "poems",
        "forget_min20": [1.0, 3.0],
        "holdout_min20": [2.0, 4.0],
        "auc_forget_holdout": 0.25,
        "auc_retrain_constant": 0.5,
        "privleak": -50.0,
    }
    group = {"group": "muse_privleak", "cases": [case]}
    assert list(outcomes(group).values()) == [None, None]
    case["privleak"] = 50.0
    assert "should be" in outcomes(group)["muse_privleak: poems privleak"]


def test_unknown_groups_are_not_supported():
    (case,) = check_metric_group({"group": "astrology"}, HEADER)
    assert not case.supported
    assert case.name == "astrology"


def test_differences_of_tiny_p_values_count():
    assert difference([1.1e-21], [1e-21], absolute=0.0) is not None
    assert difference([1.1e-21], [1e-21]) is None  # a value that is meant to be 0
    assert difference([None], [0.5]) is not None
    assert difference([0.5], [0.5, 0.5]) == "1 values should be 2"


def test_missing_and_infinite_values_agree_with_their_like_only():
    assert difference([None, math.nan, math.inf], [math.nan, None, math.inf]) is None
    assert difference([0.5], [None]) is not None
    assert difference([math.inf], [-math.inf]) is not None
    assert difference([1.0], [math.inf]) is not None
    assert difference([], []) is None


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
    signed = np.subtract(*(logs[n]["eval_log.json"]["avg_gt_loss"] for n in ("a.json", "b.json")))
    gaps = np.abs(signed)
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
                "mean_signed_gap": signed.mean(),
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


@pytest.mark.parametrize(
    "key", ["mean_abs_gap", "median_abs_gap", "max_abs_gap", "mean_signed_gap"]
)
def test_published_differences_are_reported(published, key):
    expected, folder = published
    wrong = copy.deepcopy(expected)
    wrong["model_utility"]["a.json"]["arithmetic"]["Model Utility"] += 1e-6
    wrong["loss_gap"][0][key] += 1e-6
    assert all("should be" in case.outcome for case in check_published(wrong, folder))


def pair_of(x, y):
    """Stored numbers of a pair of truth ratios, by scipy."""
    p = ks_2samp(x, y)
    return {
        "n": len(x),
        "m": len(y),
        "forget_quality": p.pvalue,
        "ks_statistic": p.statistic,
        "check_inverted_orientation": p.pvalue,
        "check_log": p.pvalue,
    }


def test_published_pairs_are_checked_number_by_number(published):
    expected, folder = published
    logs = {n: json.loads((folder / n).read_text())["logs"] for n in ("a.json", "b.json")}
    ratios = [
        np.exp(
            np.array(log["eval_log_forget.json"]["avg_paraphrased_loss"])
            - np.mean(log["eval_log_forget.json"]["average_perturb_loss"], axis=1)
        )
        for log in logs.values()
    ]
    pair = {"model": "a.json", "retain": "b.json", **pair_of(*ratios)}
    stored = {**expected, "model_utility": {}, "loss_gap": [], "forget_quality_pairs": [pair]}
    (case,) = check_published(stored, folder)
    assert case.outcome is None
    for key in pair_of(*ratios):
        (wrong,) = check_published(
            {**stored, "forget_quality_pairs": [{**pair, key: pair[key] + 0.01}]}, folder
        )
        assert "should be" in wrong.outcome


def test_what_cannot_be_checked_is_said(published):
    expected, folder = published
    stored = copy.deepcopy(expected)
    utility = stored["model_utility"]["a.json"]
    utility["arithmetic"]["KL"] = 0.5
    utility["harmonic"] = {"Model Utility": 0.5}
    stored["loss_gap"].append({**stored["loss_gap"][0], "model": "c.json"})
    stored["calibration"] = {"a.json": 0.5}
    said = {case.name: case.outcome for case in check_published(stored, folder)}
    skipped = {name: outcome for name, outcome in said.items() if outcome}
    assert all(outcome.startswith("not supported") for outcome in skipped.values())
    assert set(skipped) == {
        "model utility: a.json, arithmetic: KL",
        "model utility: a.json, harmonic",
        "loss gap: c.json against b.json, eval_log.json",
        "calibration",
    }
    assert "c.json" in skipped["loss gap: c.json against b.json, eval_log.json"]


def test_geometric_summary_names(published):
    _, folder = published
    logs = json.loads((folder / "a.json").read_text())["logs"]
    found = tofu_log_values(logs, mean="geometric")
    assert "Prob. Real World" in found
    assert len(found) == 13
