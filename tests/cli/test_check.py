"""What a check counts and warns about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import InputError
from expunge.run.check import check
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
    (place / "other" / "evaluation" / "retain").mkdir(parents=True)

    assert "retain" in load_config("run.yaml", "evaluation.retain_run=other").roles()
    assert facts("evaluation.retain_run=other")


def test_every_verb_has_its_parts(place: Path, expunge_cli: Any) -> None:
    from expunge.run.check import _PARTS

    without_method = load_config("run.yaml", "method=null", "finetune={}")
    assert check(without_method).problems == ()
    assert "unlearning" not in dict(check(without_method).facts)
    assert set(_PARTS) == {"unlearn", "finetune", "proxies", "evaluate", "demo"}
