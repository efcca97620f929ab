"""Result records: read back as written, closed, never holding a not-a-number."""

import json
import math

import pytest
from pydantic import ValidationError

from expunge.core.errors import InputError
from expunge.core.results import (
    DataSummary,
    ForgetQuality,
    MethodSummary,
    ModelResults,
    ModelSummary,
    RunManifest,
    Score,
    load_record,
)

RESULTS = ModelResults(
    role="target",
    model="somewhere",
    model_fingerprint="0123",
    benchmark="tofu",
    benchmark_version=1,
    scores={"forget/probability": Score(value=0.1 + 0.2, n=40, low=0.2, high=0.4)},
    forget_quality=ForgetQuality(p_value=1e-300, statistic=0.5, n=40, m=40, log10_p=-300.0),
    settings={"rows": {"forget": 40}},
    created="2025-01-01T00:00:00+00:00",
)
MANIFEST = RunManifest(
    name="a run",
    command="expunge unlearn run.yaml",
    status="finished",
    started="2025-01-01T00:00:00+00:00",
    seconds={"train": 1.5},
    method=MethodSummary(notation="NPO+GD", hyperparameters={"beta": 0.1}),
    data={
        "forget": DataSummary(name="forget", origin="tofu:forget01", num_rows=40, fingerprint="")
    },
    models={"target": ModelSummary(path="x")},
    seed=0,
)


@pytest.mark.parametrize("record", [RESULTS, MANIFEST], ids=["results", "manifest"])
def test_records_are_read_back_unchanged(record, tmp_path):
    record.save(tmp_path / "folder" / "record.json")
    assert load_record(type(record), tmp_path / "folder" / "record.json") == record


def test_records_are_frozen_and_closed():
    with pytest.raises(ValidationError, match="frozen"):
        RESULTS.role = "base"
    with pytest.raises(ValidationError, match="betta"):
        Score(n=1, betta=2)
    with pytest.raises(ValidationError, match="greater than or equal"):
        Score(n=-1)


def test_not_a_number_becomes_absent(tmp_path):
    score = Score(value=math.nan, low=math.nan, high=math.nan, n=0, reason="nothing to score")
    assert (score.value, score.low, score.high) == (None, None, None)
    score.save(tmp_path / "score.json")
    assert json.loads((tmp_path / "score.json").read_text())["value"] is None


def test_problems_of_a_file_come_all_at_once(tmp_path):
    path = tmp_path / "results.json"
    content = json.loads(RESULTS.model_dump_json())
    del content["role"]
    content["surprise"] = 1
    content["scores"]["forget/probability"]["n"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        load_record(ModelResults, path)
    places = {problem.where for problem in caught.value.problems}
    assert places == {"role", "surprise", "scores.forget/probability.n"}
    assert "3 problems" in str(caught.value)


def test_a_missing_or_broken_file_is_the_users_to_fix(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_record(ModelResults, tmp_path / "results.json")
    (tmp_path / "results.json").write_text('{"role": ')
    with pytest.raises(InputError, match="Invalid JSON"):
        load_record(ModelResults, tmp_path / "results.json")
