"""What a folder of several runs says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.errors import InputError
from expunge.core.scenario import SCENARIO, ScenarioRecord, Stage, load_scenario


def stage(folder: str) -> Stage:
    return Stage(name="request_01", title="tofu:forget01", folder=folder, num_rows=40)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    record = ScenarioRecord(name="continual", kind="requests", stages=[stage("request_01")])
    record.save(tmp_path / SCENARIO)
    assert load_scenario(tmp_path) == record


def test_another_folder_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no scenario\.json. Give the folder"):
        load_scenario(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"name": "x", "kind": "other", "stages": []}'])
def test_a_damaged_record_is_an_input_error(tmp_path: Path, content: str) -> None:
    (tmp_path / SCENARIO).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="ScenarioRecord"):
        load_scenario(tmp_path)


@pytest.mark.parametrize("folder", ["", ".", "/etc", "../elsewhere", "a/../../b"])
def test_a_run_outside_of_the_folder_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="inside the scenario's folder"):
        stage(folder)
