"""Both evaluations of perf/ give the same values; what is counted and what is refused."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from expunge.testing.tiny import tiny_model, tiny_tokenizer

PERF = Path(__file__).resolve().parents[2] / "perf"


@pytest.fixture
def perf(monkeypatch):
    """Imports a module of perf/ by name; none of them stays loaded."""
    monkeypatch.syspath_prepend(str(PERF))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == PERF:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model that does not repeat one token for ever."""
    tokenizer = tiny_tokenizer("smollm2")
    model = tiny_model(tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_command_compares_and_writes(perf, folder, tmp_path, capsys):
    evaluation = perf("evaluation")
    options = ["--rows", "2", "--model", str(folder), "--max-new-tokens", "4"]
    path = tmp_path / "result.json"
    code = evaluation.main([*options, "--precision", "fp32", "--output", str(path)])
    found = json.loads(path.read_text())
    (work,) = found["works"]
    assert work["agreement"]["problems"] == []
    assert code == 0
    assert work["counts"]
    assert len(work["agreement"]["largest"]) == 4 * 3 + 2 + 2 * 4
    assert work["ratio"]["n"] == 1
    (naive,), (ours,) = work["seconds"]["naive"], work["seconds"]["ours"]
    assert len(naive) == 4 * 3 + 2 + 4 + 1
    assert set(ours) == {"tokenising", "scoring answers", "generating answers", "metrics", "total"}
    assert str(folder) not in json.dumps(found["works"])
    assert "values agree" in capsys.readouterr().out


def side(evaluation, value, text="a"):
    return evaluation.Side(
        seconds={"x": 1.0},
        values={"forget/probability": [0.5, value], "forget/rouge_l_recall": [1.0, value]},
        texts={"forget": ["same", text]},
    )


def test_values_too_far_apart_do_not_count(perf):
    evaluation = perf("evaluation")
    found = evaluation.compare(side(evaluation, 0.5), side(evaluation, 0.5 + 1e-3))
    assert found.largest["forget/probability"] == pytest.approx(1e-3 / 1.5)
    assert any("forget/probability" in problem for problem in found.problems)
    assert not evaluation.compare(side(evaluation, 0.5), side(evaluation, 0.5 + 1e-5)).problems


def test_where_texts_part_their_rouge_is_not_compared(perf):
    evaluation = perf("evaluation")
    one = side(evaluation, 0.5)
    one.values["forget/rouge_l_recall"] = [1.0, 0.9]
    found = evaluation.compare(one, side(evaluation, 0.5, text="b"))
    assert found.problems == []
    assert found.texts == 0.5
    assert evaluation.compare(one, side(evaluation, 0.5)).problems


def test_a_missing_metric_or_a_lone_nan_is_a_difference(perf):
    evaluation = perf("evaluation")
    one, other = side(evaluation, float("nan")), side(evaluation, 0.5)
    assert evaluation.compare(one, other).problems
    assert not evaluation.compare(one, side(evaluation, float("nan"))).problems
    del other.values["forget/probability"]
    assert "one side alone" in evaluation.compare(one, other).problems[0]


def test_memory_is_judged_by_both_stages(perf):
    memory = perf("evaluation_memory")
    point = {
        "scoring_mib": 10.0,
        "scoring_bound_mib": 11.0,
        "generating_mib": 5.0,
        "generating_bound_mib": 6.0,
    }
    assert memory.is_bounded(point)
    assert not memory.is_bounded({**point, "generating_mib": 7.0})
    assert not memory.is_bounded({**point, "scoring_mib": 12.0})


def test_memory_of_one_size(perf):
    memory = perf("evaluation_memory")
    size = memory.Size(vocabulary=2048, length=8, rows=2, new_tokens=2)
    found = memory.in_own_process(size)
    assert found["vocabulary"] == 2048
    assert memory.is_bounded(found)
