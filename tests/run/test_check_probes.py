"""Data of an evaluation are looked at before weights are loaded, with everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.core.errors import InputError
from expunge.run.benchmarking import run_benchmark_protocol
from expunge.run.check import check
from expunge.run.resolve import load_config
from expunge.run.ui import SilentUi
from expunge.testing.muse import tiny_muse
from expunge.testing.real_world import tiny_real_world
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probes")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    facts = toy_facts(6)
    for name, rows in (("forget", facts[:3]), ("retain", facts[3:])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tiny_muse(root / "muse")
    (root / "people").mkdir()
    tiny_real_world(root / "people")
    return root


def config_of(place: Path, evaluation: str, **keys: str):
    values = {
        "model": f"{{path: {place}/model}}",
        "data": f"{{forget: {place}/forget.jsonl, retain: {place}/retain.jsonl}}",
        "method": "GA",
        **keys,
    }
    file = place / "probes.yaml"
    lines = [f"{key}: {value}\n" for key, value in values.items()]
    file.write_text(
        "".join([f"name: probes\noutput_dir: {place}/run\n", *lines, f"evaluation: {evaluation}\n"])
    )
    return load_config(file)


def problems(place: Path, evaluation: str, verb: str = "unlearn", **keys: str) -> dict[str, str]:
    found = check(config_of(place, evaluation, **keys), verb=verb)  # type: ignore[arg-type]
    return {problem.where: problem.message for problem in found.problems}


@pytest.mark.parametrize("verb", ["unlearn", "evaluate"])
@pytest.mark.parametrize("benchmark", ["muse", "real_world"])
def test_a_folder_that_is_not_there_comes_with_all_other_problems(
    place: Path, benchmark: str, verb: str
) -> None:
    evaluation = f"{{benchmark: {benchmark}, options: {{folder: {place}/nowhere}}}}"
    found = problems(place, evaluation, verb, model="{path: ./no-model}")
    assert "nowhere: no such folder" in found["evaluation.options"]
    assert "model.path" in found


@pytest.mark.parametrize("benchmark", ["muse", "real_world"])
def test_a_folder_is_required(place: Path, benchmark: str) -> None:
    found = problems(place, f"{{benchmark: {benchmark}}}")
    assert "evaluation.options.folder" in found["evaluation"]
    # Also where there is no forget set to build anything with.
    found = problems(place, f"{{benchmark: {benchmark}}}", data="{forget: nowhere.jsonl}")
    assert set(found) == {"data.forget", "evaluation.options.folder"}


def test_files_are_read_also_without_a_forget_set(place: Path) -> None:
    (place / "broken").mkdir(exist_ok=True)
    evaluation = f"{{benchmark: real_world, options: {{folder: {place}/broken}}}}"
    found = problems(place, evaluation, data="{forget: nowhere.jsonl}")
    assert set(found) == {"data.forget", "evaluation.options"}


def test_a_whole_folder_has_no_problem(place: Path) -> None:
    muse = f"{{benchmark: muse, preset: muse_ou, options: {{folder: {place}/muse}}}}"
    assert problems(place, muse) == {}
    people = f"{{benchmark: real_world, options: {{folder: {place}/people}}}}"
    assert "no question of the forget set" in problems(place, people)["evaluation.options"]
    data = f"{{forget: {place}/people/forget.json, retain: {place}/people/neighbor.json}}"
    assert problems(place, people, data=data) == {}


def test_rows_of_the_evaluation_alone_are_read(place: Path) -> None:
    found = problems(
        place,
        f"{{benchmark: custom, retain: nowhere.jsonl, rows: {{other: 1}}, "
        f"also: {{other: {place}/forget.jsonl, lost: lost.jsonl}}}}",
    )
    assert set(found) == {"evaluation.retain", "evaluation.also.lost"}
    held = f"{{benchmark: custom, options: {{holdout: {place}/forget.jsonl}}}}"
    assert "holdout rows" in problems(place, held)["evaluation.options"]


@pytest.mark.parametrize("name", ["muse", "real_world"])
def test_a_benchmark_reports_its_folder_with_everything_else(place: Path, name: str) -> None:
    evaluation = f"{{benchmark: {name}, preset: nothing, options: {{folder: {place}/nowhere}}}}"
    config = config_of(place, evaluation, model="{path: ./no-model}", data="{forget: x.jsonl}")
    with pytest.raises(InputError) as caught:
        run_benchmark_protocol(name, config, SilentUi())
    said = str(caught.value)
    assert said.count("nowhere: no such folder") == 1
    assert "model.path" in said
    assert "evaluation.preset" in said
    assert "x.jsonl" not in said  # the rows come from the folder
