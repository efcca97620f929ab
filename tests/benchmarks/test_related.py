"""Related knowledge: which rows are asked, which way is good, and numbers from a tiny model."""

import json

import pytest

from expunge.benchmarks import Evidence, benchmarks
from expunge.benchmarks.related import BENCHMARK, build_probes
from expunge.core.errors import InputError
from expunge.data import load_rows, make_template
from expunge.data.related import SETS, fact_id, generate_related, plan_arms, write_related
from expunge.data.rows import row_set
from expunge.evaluation.runner import run_probes
from expunge.evaluation.tables import ProbeTable
from expunge.testing.tiny import tiny_model, tiny_tokenizer

FACTS = generate_related(4, 3, seed=0)


@pytest.fixture
def folder(tmp_path):
    write_related(tmp_path, FACTS)
    return tmp_path


def probes_of(forget, folder, **more):
    found = build_probes(
        forget, None, rows=more.pop("rows", {}), options={"folder": folder, **more}
    )
    return {probe.name: probe.rows for probe in found}


def test_probes_hold_the_files(folder):
    probes = probes_of(FACTS.target, folder)
    assert list(probes) == list(SETS)
    for name in SETS:
        assert probes[name].fingerprint == getattr(FACTS, name).fingerprint


def test_every_arm_is_asked_the_same(folder):
    asked = [
        {name: rows.fingerprint for name, rows in probes_of(arm.forget, folder).items()}
        for arm in plan_arms(FACTS)
    ]
    assert asked[0] == asked[1] == asked[2]


def test_a_slice_of_the_targets_is_measured_as_that_slice(folder):
    probes = probes_of(FACTS.target[1:3], folder)
    for name, number in (("target", 2), ("related", 6), ("reconstruction", 2)):
        assert len(probes[name]) == number
        assert {fact_id(row) for row in probes[name]} == {"t0001", "t0002"}
        assert "rows of forgotten targets" in probes[name].origin
    assert len(probes["unrelated"]) == len(FACTS.unrelated)


def test_row_limits_and_truthfulqa(folder, tmp_path):
    path = tmp_path / "truthful.jsonl"
    path.write_text(json.dumps({"question": "Do fish drink?", "answer": "Some do."}) + "\n")
    probes = probes_of(FACTS.target, folder, truthfulqa=path, rows={"unrelated": 5, "target": None})
    assert (len(probes["unrelated"]), len(probes["target"])) == (5, 4)
    assert [row.answer for row in probes["truthfulqa"]] == ["Some do."]
    assert set(probes) == set(BENCHMARK.probes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "needs the option folder, a folder of related facts: target.jsonl"),
        ({"folder": ""}, "needs the option folder"),
        ({"folder": "/nowhere"}, "no folder of related facts"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(InputError, match=message):
        build_probes(FACTS.target, None, rows={}, options=options)


def test_a_forget_set_from_elsewhere_is_refused(folder):
    other = load_rows([{"question": "q?", "answer": "a"}], name="forget")
    with pytest.raises(InputError, match="none of the 1 rows to forget"):
        probes_of(other, folder)
    with pytest.raises(InputError, match="is a target of"):
        probes_of(row_set(FACTS.related, name="forget", origin="related"), folder)


def test_options_are_declared(folder):
    assert not BENCHMARK.check_options({"folder": "x", "truthfulqa": "y"})
    assert "Did you mean folder" in str(BENCHMARK.check_options({"foldr": "x"})[0])
    found = benchmarks.get("related_knowledge").build_probes(
        FACTS.target, rows={"related": 2}, options={"folder": folder, "margin": 0.1}
    )
    assert [len(probe.rows) for probe in found] == [4, 2, 16, 4]


def test_directions():
    """Forgotten is good on targets, related facts and reconstruction; kept is good elsewhere."""
    better = {measure.key: measure.better for measure in BENCHMARK.measures}
    for probe in ("target", "related", "reconstruction"):
        for name in ("rouge_l_recall", "rouge_l_f1", "probability"):
            assert better[f"{probe}/{name}"] == "lower"
        # 1 = wrong and right answers are equally likely.
        assert better[f"{probe}/truth_ratio"] == "higher"
    for name in ("rouge_l_recall", "rouge_l_f1", "probability", "truth_ratio"):
        assert better[f"unrelated/{name}"] == "higher"
    assert better["truthfulqa/rouge_l_recall"] == better["truthfulqa/rouge_l_f1"] == "higher"


def test_a_word_said_or_not_said():
    """By hand: of two one-word answers one is said among four words: recall 1/2, F1 (2/5 + 0)/2."""
    table = ProbeTable(
        probe="reconstruction",
        columns={
            "answer": ["Vilosis.", "Tanovia."],
            "generation": ["The illness is Vilosis.", "Nobody knows."],
        },
    )
    scores = BENCHMARK.score_tables({"reconstruction": table}).scores
    assert scores["reconstruction/rouge_l_recall"].value == pytest.approx(1 / 2)
    assert scores["reconstruction/rouge_l_f1"].value == pytest.approx((2 / 5) / 2)
    assert scores["reconstruction/probability"].value is None
    assert scores["target/rouge_l_recall"].value is None


def test_end_to_end(folder):
    tokenizer = tiny_tokenizer("smollm2", texts=[row.question for row in FACTS.related])
    template = make_template(tokenizer, "auto")
    limits = {"related": 3, "unrelated": 3}
    probes = build_probes(FACTS.target, None, rows=limits, options={"folder": folder})
    settings = BENCHMARK.settings("short_answers", max_new_tokens=4)
    tables, retain = (
        run_probes(tiny_model(tokenizer, seed=seed), tokenizer, template, probes, settings)
        for seed in (0, 1)
    )
    scores = BENCHMARK.score_tables(Evidence(tables=tables, retains=(retain,))).scores
    absent = {key for key, score in scores.items() if score.value is None}
    assert absent == {"truthfulqa/rouge_l_recall", "truthfulqa/rouge_l_f1"}
    assert "truthfulqa probe was not run" in scores["truthfulqa/rouge_l_recall"].reason
    assert scores["target/truth_ratio"].n == 4
    assert scores["forget_quality"].n == 4
    alone = BENCHMARK.score_tables(tables).scores
    assert "no retain model" in alone["forget_quality"].reason
