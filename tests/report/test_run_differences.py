"""Two runs compared question by question, from the tables that an evaluation really stores."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_run import RunBuilder, rewrite

from expunge.benchmarks import benchmarks
from expunge.core.results import ModelResults, Score, load_record
from expunge.evaluation import EvaluationStore, ProbeTable
from expunge.evaluation.evidence import Evidence
from expunge.report import compare, console_rows, load_report, to_markdown, write_comparison
from expunge.report.differences import RunContrast, chance_note, compare_runs

NUM = 40


def table(probe: str, seed: int, shift: float, *, generate: bool = True) -> ProbeTable:
    """Answers of which some are hard for every model; `shift` makes all of them likelier."""
    common, own = np.random.default_rng(len(probe)), np.random.default_rng(seed)
    hard = common.exponential(1.5, NUM) + 0.2
    wrong = [[[-h - 1.0] * 3 for _ in range(3)] for h in common.exponential(1.0, NUM)]
    levels = -np.maximum(hard - shift + own.normal(0, 0.02, NUM), 0.01)
    columns: dict[str, Any] = {
        "index": list(range(NUM)),
        "question": [f"question {i} of {probe}" for i in range(NUM)],
        "answer": [f"the true answer {i}" for i in range(NUM)],
        "prompt_tokens": [9] * NUM,
        "answer_logps": [[level] * 4 for level in levels],
        "answer_greedy": [[True, False, True, True]] * NUM,
        "perturbed_logps": wrong,
    }
    if generate:
        texts = [f"the true answer {i}" if h < 1.2 else "no idea" for i, h in enumerate(hard)]
        columns |= {
            "generation": texts,
            "generation_ids": [[1, 2, 3]] * NUM,
            "generation_tokens": [3] * NUM,
            "finished": [True] * NUM,
        }
    return ProbeTable(probe=probe, columns=columns, info={"key": f"{probe}{seed}", "model": "m"})


PROBES = ("forget", "retain", "real_authors", "world_facts", "holdout")


def make(
    folder: Path, seed: int, *, forget: float = 0.0, retain: float = 0.0, role: str = "unlearned"
) -> Path:
    """A run whose unlearned model has these shifts on the two sets, with one retain model."""
    RunBuilder(folder=folder, name=folder.name, roles=()).build()
    shifts = {"forget": forget, "retain": retain}
    stored = {}
    for name, use in (("retain", False), (role, True)):
        place = folder / "evaluation" / name
        for probe in PROBES:
            shift = shifts.get(probe, 0.0) if use else 0.0
            number = seed if use else 99
            EvaluationStore(place).save(table(probe, number, shift, generate=probe != "holdout"))
        stored[name] = EvaluationStore(place).load()
    score(folder, stored, role)
    return folder


def score(folder: Path, stored: dict[str, Any], role: str = "unlearned") -> None:
    for name, tables in stored.items():
        evidence = Evidence(tables=tables, retains=[stored["retain"]])
        results = benchmarks.get("tofu").score_tables(evidence, role=name)
        results.save(folder / "evaluation" / name / "results.json")


def contrast(*folders: Path) -> RunContrast:
    (found,) = compare_runs([load_report(folder) for folder in folders])
    return found


def by_key(found: RunContrast) -> dict[str, Any]:
    return {item.key: item for item in found.contrasts}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make(folder / "a", 1)
    make(folder / "b", 2, forget=0.3)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Sequence[Path]:
    return [Path(shutil.copytree(made / name, tmp_path / name)) for name in ("a", "b")]


def test_a_difference_between_questions_is_found_where_intervals_overlap(
    runs: Sequence[Path],
) -> None:
    found = by_key(contrast(*runs))
    item = found["forget/probability"]
    scores = [load_report(run).score("unlearned", "forget/probability") for run in runs]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].high > scores[1].low  # the intervals overlap
    assert item.verdict == "higher"
    assert item.difference.value == pytest.approx(scores[1].value - scores[0].value)
    assert item.difference.n == NUM
    assert found["retain/probability"].verdict == "not distinguishable"
    assert found["model_utility"].verdict == "not distinguishable"
    assert found["model_utility"].difference.n == 3 * NUM


def test_every_kind_of_aggregate_is_compared(runs: Sequence[Path]) -> None:
    found = by_key(contrast(*runs))
    first, second = (load_report(run) for run in runs)
    for key in ("model_utility", "mia_loss", "privleak", "forget_loss_gap_median"):
        scores = [each.score("unlearned", key) for each in (first, second)]
        assert scores[0] is not None
        assert scores[1] is not None
        expected = scores[1].value - scores[0].value
        assert found[key].difference.value == pytest.approx(expected), key
    tests = [each.models["unlearned"].forget_quality for each in (first, second)]
    distance = found["forget_quality_distance"]
    assert distance.difference.value == pytest.approx(tests[1].statistic - tests[0].statistic)
    assert distance.better == "lower"
    assert found["mia_loss"].verdict == "higher"  # the second run still knows the forget set
    assert found["privleak"].verdict == "lower"
    (reason,) = [each for each in contrast(*runs).left_out if "largest value" in each]
    assert "forget_loss_gap_max" in contrast(*runs).left_out[reason]


def test_a_run_against_an_equal_one_differs_by_nothing(made: Path, tmp_path: Path) -> None:
    found = contrast(made / "a", Path(shutil.copytree(made / "a", tmp_path / "again")))
    assert {item.verdict for item in found.contrasts} == {"not distinguishable"}
    assert {item.difference.value for item in found.contrasts} == {0.0}


def test_what_is_said_on_the_console_and_in_the_files(runs: Sequence[Path], tmp_path: Path) -> None:
    compared = compare(runs)
    notes = "\n".join(console_rows(compared).notes)
    assert "b against a, by the same questions: higher: Forget quality, KS distance D" in notes
    assert "not distinguishable: Model utility" in notes
    assert "more." in notes  # the console names the headlines, the files have all
    assert "Token entropy" not in notes
    assert "no evidence of sameness" in notes
    text = to_markdown(compared)
    assert "**b minus a, by the same questions**" in text
    page = write_comparison(runs, tmp_path / "out").read_text(encoding="utf-8")
    section = page.split('<section id="differences">')[1].split("</section>")[0]
    assert "b minus a" in section
    assert "not distinguishable" in section
    lines = list(csv.DictReader(io.StringIO(
        (tmp_path / "out" / "comparison_differences.csv").read_text(encoding="utf-8")
    )))  # fmt: skip
    line = next(each for each in lines if each["measure"] == "forget/probability")
    assert float(line["low"]) > 0
    assert (line["verdict"], line["n"], line["better"]) == ("higher", str(NUM), "lower")
    assert any("largest value" in each["reason"] for each in lines)


def test_three_runs_are_each_compared_with_the_first(runs: Sequence[Path]) -> None:
    reports = [load_report(run) for run in (*runs, runs[0])]
    found = compare_runs(reports)
    assert [(each.first, each.second) for each in found] == [("a", "b"), ("a", "a")]
    num = sum(len(each.contrasts) for each in found)
    assert chance_note(found).startswith(f"{num} differences")
    assert chance_note(()) == ""
    assert compare_runs(reports[:1]) == ()


def test_other_rows_are_not_compared_set_by_set(runs: Sequence[Path]) -> None:
    place = runs[1] / "evaluation" / "unlearned"
    tables = EvaluationStore(place).load()
    other = {**tables["retain"].columns, "question": ["another question"] * NUM}
    EvaluationStore(place).save(replace(tables["retain"], columns=other))
    found = contrast(*runs)
    assert "forget/probability" in by_key(found)
    assert "retain/probability" not in by_key(found)
    (reason,) = [each for each in found.left_out if "other retain rows" in each]
    assert {"retain/probability", "model_utility"} <= set(found.left_out[reason])
    assert "first run's model" in reason


def test_a_score_without_samples_is_left_out(runs: Sequence[Path]) -> None:
    for run in runs:
        path = run / "evaluation/unlearned/results.json"
        results = load_record(ModelResults, path)
        more = {**results.scores, "lm_eval/mmlu": Score(value=0.3, n=100)}
        results.model_copy(update={"scores": more}).save(path)
    assert contrast(*runs).left_out["no per-sample values are stored"] == ("lm_eval/mmlu",)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda f: (f / "results.json").unlink(), "no scores of an unlearned model"),
        (lambda f: (f / "manifest.json").unlink(), "no per-sample tables"),
        (
            lambda f: rewrite(f / "results.json", lambda r: r.update(benchmark_version=0)),
            "run: expunge score",
        ),
        (
            lambda f: rewrite(f / "results.json", lambda r: r.update(benchmark="mine")),
            "unknown benchmark, mine",
        ),
        (
            lambda f: rewrite(
                f / "results.json", lambda r: r["settings"].update(metric_options={"floor": True})
            ),
            "other options",
        ),
    ],
)
def test_why_two_runs_cannot_be_compared(
    runs: Sequence[Path], break_it: Callable[[Path], object], reason: str
) -> None:
    break_it(runs[1] / "evaluation/unlearned")
    found = contrast(*runs)
    assert found.contrasts == ()
    assert any(reason in line for line in found.lines)


def test_without_a_retain_model_only_what_needs_it_is_left_out(runs: Sequence[Path]) -> None:
    (runs[1] / "evaluation/retain/manifest.json").unlink()
    found = contrast(*runs)
    assert "forget/probability" in by_key(found)
    assert "forget_quality_distance" not in by_key(found)
    keys = found.left_out["the samples of the retain model are not stored in a run"]
    assert {"forget_quality", "privleak"} <= set(keys)
