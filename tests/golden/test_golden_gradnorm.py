"""The golden check of gradient norms: a model whose gradients are known in closed form."""

import json

import numpy as np
import pytest

from expunge.run.verify import verify

V = 5


def closed_form(table, bias, ids, labels, p):
    """Logits W[token] + b: the gradient of the mean NLL with respect to logits is softmax - onehot.

    Each position adds its share to b and to the row of W of the token before the label.
    """
    places = [t for t, label in enumerate(labels) if label != -100][:-1]
    to_table, to_bias = np.zeros_like(table), np.zeros_like(bias)
    for t in places:
        logits = table[ids[t - 1]] + bias
        share = np.exp(logits) / np.exp(logits).sum()
        share[labels[t]] -= 1
        to_table[ids[t - 1]] += share / len(places)
        to_bias += share / len(places)
    return np.mean([(np.abs(g) ** p).sum() ** (1 / p) for g in (to_table, to_bias)])


def content(orders):
    generator = np.random.default_rng(0)
    table, bias = generator.normal(size=(V, V)), generator.normal(size=V)
    inputs = {}
    for side, count in (("forget", 3), ("holdout", 4)):
        ids = generator.integers(0, V, (count, 6))
        labels = np.where(np.arange(6) < generator.integers(1, 4, (count, 1)), -100, ids)
        labels[0, 5] = -100  # padding
        inputs[side] = {
            "input_ids": ids.tolist(),
            "labels": labels.tolist(),
            "logits": (table[ids] + bias).tolist(),
        }
    # A single label leaves nothing to score: open-unlearning gives 0.
    inputs["forget"]["labels"][1] = [-100] * 5 + [inputs["forget"]["input_ids"][1][5]]
    results = {}
    for p in orders:
        scores = {
            side: [
                closed_form(table, bias, *row, p) if sum(x != -100 for x in row[1]) > 1 else 0.0
                for row in zip(rows["input_ids"], rows["labels"], strict=True)
            ]
            for side, rows in inputs.items()
        }
        pairs = [(f < h) + (f == h) / 2 for f in scores["forget"] for h in scores["holdout"]]
        results[f"mia_gradnorm[p={p}]"] = {"p": p, **scores, "auc": float(np.mean(pairs))}
    group = {
        "group": "token_level",
        "inputs": inputs,
        "gradnorm_model": {"W": table.tolist(), "b": bias.tolist()},
        "results": results,
    }
    return {"header": {}, "groups": [group]}


def check(tmp_path, stored):
    (tmp_path / "metrics.json").write_text(json.dumps(stored))
    return list(verify([tmp_path]))


def test_any_order_agrees(tmp_path):
    results = check(tmp_path, content([1, 2, 3.5]))
    assert [result.outcome for result in results] == ["passed"] * 3


@pytest.mark.parametrize("where", ["forget", "holdout", "auc"])
def test_a_difference_is_a_failure(tmp_path, where):
    stored = content([2])
    result = stored["groups"][0]["results"]["mia_gradnorm[p=2]"]
    if where == "auc":
        result["auc"] += 1e-6
    else:
        result[where][-1] += 1e-6
    (found,) = check(tmp_path, stored)
    assert found.outcome == "failed"


def test_scores_beside_row_construction_are_checked_too(tmp_path):
    """A case with a prompt and with ROUGE values gives a line for each."""
    history = {
        "prompt": "Question: a?\nAnswer: b\n\nQuestion: c d?\nAnswer: ",
        "gt": "e f",
        "response": " e g",
        "rougeL": 0.5,
        "rougeL_recall": 0.5,
        "rouge1": 0.5,
        "rouge1_recall": 0.5,
    }
    case = {
        "group": "knowmem_prompt",
        "icl": [["a?", "b"]],
        "question": "c d?",
        "raw_generation": " e g\n\nmore Question: ",
        "history": [history],
        "report": {"mean_rougeL": 0.5, "max_rougeL": 0.25},
    }
    header = {"toy_tokenizer": "characters", "ALPHABET": "abc"}
    stored = {"header": header, "sources": {"muse": [case]}}
    results = check(tmp_path, stored)
    outcomes = {result.case: result.outcome for result in results}
    assert outcomes.pop("muse [0] knowmem_prompt: max_rougeL") == "failed"
    assert len(outcomes) == 6
    assert set(outcomes.values()) == {"passed"}
    case["raw_generation"] = " e g more"
    assert "response: ' e g more' instead of ' e g'" in check(tmp_path, stored)[0].detail
