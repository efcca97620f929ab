"""Real-world individuals as a benchmark: rows, directions, and the two sums by hand."""

import numpy as np
import pytest

from expunge.benchmarks import benchmarks
from expunge.core.errors import InputError
from expunge.data import load_rows, make_template
from expunge.data.real_world import evaluation_rows, tasks, training_rows
from expunge.evaluation.harness_tasks import STANDARD_TASKS
from expunge.evaluation.runner import run_probes
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import metrics
from expunge.testing.real_world import tiny_real_world
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

REAL = benchmarks.get("real_world")
SIX = (
    "rouge_l_recall",
    "probability",
    "truth_ratio",
    "token_entropy",
    "cosine_similarity",
    "entailment_score",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_real_world(tmp_path_factory.mktemp("real_world"))


@pytest.fixture(scope="module")
def tables(folder):
    """Tables of a tiny model, see `judged`."""
    tokenizer = tiny_tokenizer("smollm2")
    forget, retain = training_rows(folder)
    probes = REAL.build_probes(forget, retain, options={"folder": folder})
    found = run_probes(
        tiny_model(tokenizer),
        tokenizer,
        make_template(tokenizer, "auto"),
        probes,
        REAL.settings("real_world_cl", max_new_tokens=8),
    )
    return {name: judged(table) for name, table in found.items()}


def judged(table):
    """The same table with invented generations and verdicts, so that no mean is 0."""
    answers = list(table["answer"])
    n = len(answers)
    labels = ["entailment", "neutral"] * n
    more = {
        "generation": [" ".join(answer.split()[:3]) for answer in answers],
        "generation_ids": [[1, 2, 1]] * n,
        "generation_similarity": [0.9 - 0.1 * i for i in range(n)],
        "nli_generation_first": labels[:n],
        "nli_reference_first": ["contradiction"] * n,
    }
    return ProbeTable(probe=table.probe, columns={**table.columns, **more}, info=table.info)


def test_probes_are_the_evaluation_rows(folder):
    forget, retain = training_rows(folder)
    probes = {p.name: p for p in REAL.build_probes(forget, retain, options={"folder": folder})}
    expected = evaluation_rows(folder)
    assert tuple(probes) == REAL.probes == ("forget", "neighbor")
    assert probes["forget"].rows == expected.forget
    assert probes["neighbor"].rows == expected.neighbor
    assert all(probe.generate and probe.variants for probe in probes.values())
    # Neighbors that are measured are not those that are trained on.
    kept = {row.question for row in retain}
    assert not kept & {row.question for row in probes["neighbor"].rows}


def test_a_request_is_measured_on_its_own_people(folder):
    second = tasks(training_rows(folder).forget)[2]
    forget, neighbor = REAL.build_probes(second, options={"folder": str(folder)})
    assert {row.fields["name"] for row in forget.rows} == {"Bo Forrow"}
    assert [row.index for row in forget.rows] == [0, 1]
    assert "rows to be forgotten" in forget.rows.origin
    assert len(neighbor.rows) == 4
    limited = REAL.build_probes(second, rows={"neighbor": 1}, options={"folder": folder})
    assert [len(probe.rows) for probe in limited] == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs evaluation.options.folder: folder with forget"),
        ({"folder": "nowhere_at_all"}, "no such folder"),
    ],
)
def test_the_folder_is_needed(folder, options, message):
    with pytest.raises(InputError, match=message):
        REAL.build_probes(training_rows(folder).forget, options=options)


def test_other_rows_are_refused(folder):
    other = load_rows(toy_facts(3), name="forget")
    with pytest.raises(InputError, match="no question of the forget set"):
        REAL.build_probes(other, options={"folder": folder})


def test_the_premise_is_the_generation_on_both_sets():
    used = {m.key: metrics.get(m.metric).reads for m in REAL.measures}
    for probe in REAL.probes:
        assert "nli_generation_first" in used[f"{probe}/entailment_score"]
    assert not any("nli_reference_first" in reads for reads in used.values())


def test_directions():
    better = {measure.key: measure.better for measure in REAL.measures}
    assert {better[f"neighbor/{name}"] for name in SIX} == {"higher"}
    known = ("rouge_l_recall", "probability", "cosine_similarity", "entailment_score")
    assert {better[f"forget/{name}"] for name in known} == {"lower"}
    assert better["forget/token_entropy"] == "higher"


def test_utility_and_efficacy_by_hand(tables):
    """6 / sum(1 / x) over the neighbor's six; 1 - mean of five on the forget set, M-08's form."""
    scores = REAL.score_tables(tables, preset="real_world_cl").scores
    six = [scores[f"neighbor/{name}"].value for name in SIX]
    assert all(0 < value <= 1 for value in six)
    assert scores["model_utility_cl"].value == pytest.approx(6 / np.sum(1 / np.array(six)))
    five = [
        scores["forget/rouge_l_recall"].value,
        scores["forget/probability"].value,
        1 - scores["forget/truth_ratio"].value,
        scores["forget/cosine_similarity"].value,
        scores["forget/entailment_score"].value,
    ]
    assert scores["forget_efficacy"].value == pytest.approx(1 - np.mean(five))
    assert scores["forget/cosine_similarity"].value == pytest.approx(
        np.mean([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    )
    assert scores["forget/entailment_score"].value == pytest.approx(0.5)
    assert scores["model_utility_cl"].n == 4


def test_what_the_tables_hold(tables, folder):
    """Scored is the golden answer; the original one goes along for the judges."""
    expected = evaluation_rows(folder).forget
    table = tables["forget"]
    assert list(table["answer"]) == [row.answer for row in expected]
    assert list(table["original_answer"]) == [row.fields["original_answer"] for row in expected]
    assert {len(wrong) for wrong in table["perturbed_logps"]} == {2}


def test_without_judges_the_sums_say_why(tables):
    bare = {
        name: ProbeTable(
            probe=name,
            columns={
                key: column
                for key, column in table.columns.items()
                if not key.startswith(("nli_", "generation_similarity"))
            },
        )
        for name, table in tables.items()
    }
    scores = REAL.score_tables(bare, preset="real_world_cl").scores
    for name in ("model_utility_cl", "forget_efficacy"):
        assert scores[name].value is None
        assert "encoder" in scores[name].reason
        assert "entailment" in scores[name].reason
    assert scores["neighbor/probability"].value is not None


def test_the_preset_is_closer_looks():
    settings = REAL.settings("real_world_cl")
    assert (settings.max_total_tokens, settings.max_length) == (200, 200)
    assert REAL.preset("real_world_cl").rows == {}
    names = {measure.name for measure in REAL.measures_of("real_world_cl")}
    assert set(SIX) < names
    assert "perplexity" not in names


def test_general_tasks_are_asked_with_a_beginning_token():
    names = ["arc_challenge", "mmlu", "truthfulqa_mc1", "triviaqa", "gsm8k"]
    assert [task.name for task in REAL.harness] == names
    assert all(task.add_bos for task in REAL.harness)
    assert not any(STANDARD_TASKS[name].add_bos for name in names)
