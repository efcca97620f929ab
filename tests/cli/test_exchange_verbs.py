"""The verbs import and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Half an evaluation file of open-unlearning, with forty forget rows."""
    samples = {str(i): {"prob": 0.5, "avg_loss": 0.6931471805599453} for i in range(40)}
    content = {
        "forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": samples},
        "privleak": {"agg_value": -12.5},
        "forget_surprise": {"agg_value": 1.0},
    }
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_import_then_export(evaluation: Path, tmp_path: Path, expunge_cli: Any) -> None:
    run = tmp_path / "theirs"
    outcome = expunge_cli("import", str(evaluation), "--output", str(run), "--role", "target")

    assert (outcome.code, outcome.err) == (0, "")
    assert "unknown here: forget_surprise" in outcome.out
    assert "forget/probability" in outcome.out
    assert (run / "report.html").is_file()
    assert "source: 'tofu:forget01'" in (run / "config.yaml").read_text(encoding="utf-8")

    outcome = expunge_cli(
        "export", str(run), "--format", "open-unlearning", "--role", "target",
        "--output", str(tmp_path / "back"),
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    assert "Left out: " in outcome.out
    summary = json.loads((tmp_path / "back" / "TOFU_SUMMARY.json").read_text(encoding="utf-8"))
    assert summary == pytest.approx({"forget_Q_A_Prob": 0.5, "privleak": -12.5})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "nowhere.json", "--output", "run"], "there is no such file"),
        (["import", "{file}", "--output", "run", "--split", "forget11"], "no split of TOFU"),
        (["import", "{file}", "--output", "run", "--role", "teacher"], "teacher"),
        (["import", "{file}"], "--output"),
        (["export", "nowhere"], "has no results of the unlearned model"),
        (["export", "nowhere", "--format", "csv"], "csv"),
    ],
)
def test_bad_input_ends_with_two(
    evaluation: Path,
    tmp_path: Path,
    expunge_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = expunge_cli(*(word.format(file=evaluation) for word in words))

    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "run").exists()
