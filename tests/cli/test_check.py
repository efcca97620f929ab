"""What a check counts and warns about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import InputError, Problems
from expunge.evaluation import EvaluationStore, ProbeTable
from expunge.run.check import check
from expunge.run.check_data import Findings, check_alternates, check_rows
from expunge.run.check_run import disk_estimate
from expunge.run.resolve import load_config


def facts(*overrides: str) -> dict[str, str]:
    report = check(load_config("run.yaml", *overrides))
    assert report.problems == ()
    return dict(report.facts)


def test_facts_of_a_run(place: Path) -> None:
    found = facts("finetune={training: {effective_batch_size: 10, micro_batch_size: 10}}")

    assert found["forget set"] == "8 rows of forget.jsonl"
    assert found["method"] == "NPO+GD"
    assert found["forget tokens"].startswith("at most ")
    # 20 rows for the target model, 12 for the retain model, in batches of 10.
    assert found["target model"].startswith("20 samples / batch 10 (micro-batch 10) = 2 steps")
    assert found["retain model"].startswith("12 samples / batch 10 (micro-batch 10) = 2 steps")


def test_plain_text_is_counted_in_pieces(place: Path) -> None:
    (place / "book.txt").write_text("It was a dark and stormy night. " * 40, encoding="utf-8")

    found = facts("data.forget=book.txt", "data.max_length=64", "method=GA", "data.retain=null")

    pieces = int(found["forget tokens"].split()[0])
    assert pieces > 4
    assert found["unlearning"].startswith(f"{pieces} samples")


def test_dropped_rows_are_counted_out(place: Path) -> None:
    longest = int(facts()["forget tokens"].split()[2])

    found = facts(f"data.max_length={longest - 1}", "data.on_too_long=drop")

    dropped = int(found["forget tokens"].rpartition(", ")[2].split()[0])
    assert 0 < dropped < 8
    assert found["unlearning"].startswith(f"{8 - dropped} samples")


def test_checking_unpacks_no_model(place: Path) -> None:
    found = facts("model.path=builtin:smollm2-135m-instruct")

    assert found["tokens"].startswith("not counted")
    assert not (place / "cache" / "builtin").exists()


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["training.warmup_steps=10"], "training: all 10 steps are warm-up"),
        (["method=NPO+KL"], "without lora a second copy of it is kept in memory"),
        ([], "forget quality will be absent"),
    ],
)
def test_warnings(place: Path, overrides: list[str], warning: str) -> None:
    report = check(load_config("run.yaml", *overrides))

    assert report.problems == ()
    assert any(warning in text for text in report.warnings)


def test_checkpoints_and_models_take_space(place: Path) -> None:
    config = load_config("run.yaml", "training.save_steps=null")
    weights = disk_estimate(config)
    assert weights is not None

    with_checkpoints = disk_estimate(load_config("run.yaml"))
    with_models = disk_estimate(load_config("run.yaml", "finetune.training.save_steps=null"))
    assert with_checkpoints == 7 * weights  # two checkpoints of 12 bytes per weight of 4 bytes
    assert with_models is not None
    assert with_models == with_checkpoints + 2 * weights
    assert disk_estimate(load_config("run.yaml", "model.path=some/hub-name")) is None


def test_problems_are_raised_together(place: Path) -> None:
    report = check(load_config("run.yaml", "method=NOPE", "data.forget=none.jsonl"))

    with pytest.raises(InputError, match="a run has 2 problems") as caught:
        report.raise_if_problems("a run")
    assert [problem.where for problem in caught.value.problems] == ["method.name", "data.forget"]


def test_a_retain_run_with_results_passes(place: Path) -> None:
    table = ProbeTable(
        probe="forget", columns={"question": ["q"], "answer": ["a"]}, info={"key": "k"}
    )
    EvaluationStore(place / "other" / "evaluation" / "retain").save(table)

    assert "retain" in load_config("run.yaml", "evaluation.retain_run=other").roles()
    assert facts("evaluation.retain_run=other")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class NeedsAlternates:
    """Stands for a method such as AltPO."""

    needs_alternates = True

    def __str__(self) -> str:
        return "AltPO+GD"


def alternates_found(*overrides: str) -> list[str]:
    found = Findings(config=load_config("run.yaml", *overrides), problems=Problems())
    check_rows(found)
    found.method = NeedsAlternates()  # type: ignore[assignment]
    check_alternates(found)
    return [str(problem) for problem in found.problems]


def test_alternates_are_looked_for_where_the_method_needs_them(place: Path) -> None:
    (missing,) = alternates_found()
    assert "AltPO+GD needs alternate answers and there is no runs/test/alternates.jsonl" in missing
    assert "expunge alternates" in missing
    rows = [json.loads(line) for line in (place / "forget.jsonl").read_text().splitlines()]
    lines = [{"question": row["question"], "alternate": "At sea."} for row in rows]
    write_rows(place / "mine.jsonl", lines[1:])
    (incomplete,) = alternates_found("data.alternates=mine.jsonl")
    assert incomplete.startswith("data.alternates: mine.jsonl row 0")
    assert "has no alternate answer" in incomplete
    write_rows(place / "mine.jsonl", lines)
    assert alternates_found("data.alternates=mine.jsonl") == []


def test_other_methods_need_no_alternates(place: Path) -> None:
    assert check(load_config("run.yaml", "data.alternates=none.jsonl")).problems == ()


def test_endpoints_are_named_and_not_contacted(place: Path) -> None:
    endpoint = "proxies.endpoint={url: http://localhost:9/v1, model: m}"
    report = check(load_config("run.yaml", endpoint), verb="proxies")
    assert dict(report.facts)["proxies"] == "m at http://localhost:9/v1 (not contacted)"


@pytest.mark.parametrize("write", [False, True])
def test_a_file_of_exemplars_takes_the_place_of_the_retain_set(place: Path, write: bool) -> None:
    if write:
        row = {"question": "Who was Ada?", "answer": "A baker.", "uninformed_answer": "A king."}
        write_rows(place / "mine.jsonl", [row])
    config = load_config("run.yaml", "data.retain=null", "proxies.exemplar_file=mine.jsonl")
    problems = [str(problem) for problem in check(config, verb="proxies").problems]
    assert problems == [] if write else "mine.jsonl: no such file" in problems[0]


def test_every_verb_has_its_parts(place: Path, expunge_cli: Any) -> None:
    from expunge.run.check import _PARTS

    without_method = load_config("run.yaml", "method=null", "finetune={}")
    assert check(without_method).problems == ()
    assert "unlearning" not in dict(check(without_method).facts)
    writing = {"proxies", "alternates"}
    assert set(_PARTS) == {"unlearn", "run", "finetune", *writing, "evaluate", "demo"}


def test_a_generator_that_is_not_installed_is_a_problem(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config("run.yaml", "evaluation={generator: vllm}")
    assert "expunge[vllm]" in " ".join(map(str, check(config).problems))
