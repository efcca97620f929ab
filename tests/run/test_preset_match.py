"""Scoring with a preset or with retain models that the stored tables were not made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.evaluation import EvaluationSettings, EvaluationStore, ProbeTable
from expunge.report import load_report
from expunge.run import pipelines
from expunge.run.preset_match import preset_mismatches
from expunge.run.resolve import load_config
from expunge.run.ui import SilentUi


class Heard(SilentUi):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def table(probe: str, n: int, **settings: Any) -> ProbeTable:
    return ProbeTable(
        probe=probe,
        columns={
            "index": list(range(n)),
            "question": [f"question {i}" for i in range(n)],
            "answer": [f"answer {i}" for i in range(n)],
            "prompt_tokens": [3] * n,
            "answer_logps": [[-0.1 * (i % 7 + 1), -0.5] for i in range(n)],
            "perturbed_logps": [[[-1.0, -0.2 * (i % 5 + 1)]] for i in range(n)],
            "generation": ["answer"] * n,
            "generation_ids": [[1]] * n,
            "generation_tokens": [1] * n,
            "finished": [True] * n,
        },
        info={
            "key": f"{probe} {n}",
            "model": "m",
            "settings": EvaluationSettings(**settings).decisive(),
        },
    )


def run_folder(folder: Path, evaluation: str, *, roles: tuple[str, ...], **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"""
name: stored
output_dir: {folder}
model: {{path: nowhere}}
data: {{forget: "tofu:forget01", retain: "tofu:retain99"}}
evaluation: {{benchmark: tofu, encoder: null, nli: null, {evaluation}}}
"""
    )
    for role in roles:
        for probe, n in (("forget", 40), ("retain", 20)):
            EvaluationStore(folder / "evaluation" / role).save(table(probe, n, **settings))
    return folder


def results(folder: Path, role: str = "unlearned") -> dict[str, Any]:
    path = folder / "evaluation" / role / "results.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


OWN = "rows: {retain: 20}, max_new_tokens: 48"


def test_another_preset_names_every_setting_that_does_not_fit(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", OWN, roles=("target", "unlearned"), max_new_tokens=48)
    ui = Heard()

    pipelines.score(folder, preset="tofu_classic", ui=ui)

    said = "\n".join(ui.warnings)
    assert "preset tofu_classic: it has the first 300 rows of retain, stored are 20" in said
    assert "it has max_new_tokens 200, stored with 48 are forget, retain (target, unlearned)" in (
        said
    )
    assert "of forget, stored" not in said  # 40 rows are all there are
    assert results(folder)["settings"]["notes"] == ui.warnings
    assert load_report(folder).notes == tuple(ui.warnings)
    assert "stored are 20" in (folder / "report.md").read_text(encoding="utf-8")


def test_limits_of_the_run_itself_are_no_surprise(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", OWN, roles=("unlearned",), max_new_tokens=48)
    ui = Heard()
    pipelines.score(folder, ui=ui)
    assert ui.warnings == []
    assert "notes" not in results(folder)["settings"]
    # But they are where the preset is asked for by name.
    pipelines.score(folder, preset="tofu", ui=ui)
    assert any("it has all rows of retain, stored are 20" in text for text in ui.warnings)


def test_tables_that_fit_are_scored_without_a_word(tmp_path: Path) -> None:
    limits = {"max_new_tokens": 200}
    folder = run_folder(tmp_path / "run", "preset: tofu", roles=("unlearned",), **limits)
    ui = Heard()
    pipelines.score(folder, preset="tofu", ui=ui)
    assert ui.warnings == []


def test_rows_that_a_preset_has_too_many_of(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "rows: {}", roles=("unlearned",))
    before = load_config(folder / "config.yaml")
    after = load_config(folder / "config.yaml", "evaluation.rows={retain: 5}")
    tables = {"unlearned": EvaluationStore(folder / "evaluation" / "unlearned").load()}
    assert preset_mismatches(tables, before, before, explicit=False) == []
    (text,) = preset_mismatches(tables, before, after, explicit=False)
    assert "it has the first 5 rows of retain, stored are 20 (unlearned)" in text


def test_the_form_of_probes_belongs_to_the_preset(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "options: {folder: x}", roles=())
    muse = ("evaluation.benchmark=muse",)
    before = load_config(folder / "config.yaml", *muse)
    after = load_config(folder / "config.yaml", *muse, "evaluation.preset=muse_ou")
    (text,) = preset_mismatches({}, before, after, explicit=True)
    assert "it has verbmem_form open_unlearning, the stored probes were made with not set" in text


@pytest.mark.parametrize("num", [1, 2])
def test_the_report_shows_the_retain_models_of_the_latest_scores(tmp_path: Path, num: int) -> None:
    folder = run_folder(tmp_path / "run", "rows: {}", roles=("target", "unlearned"))
    others = [
        run_folder(tmp_path / f"retain{i}", "rows: {}", roles=("retain",)) for i in range(num)
    ]
    for other in others:
        pipelines.score(other, ui=SilentUi())
    pipelines.score(folder, ui=SilentUi())
    assert load_report(folder).retain_models == ()

    pipelines.score(folder, retain_run=others, ui=SilentUi())

    assert results(folder)["settings"]["retain_run"] == [str(other) for other in others]
    assert len(load_report(folder).retain_models) == num
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert ("Retain model 2" in page) == (num == 2)
    assert "retain run" in page
    # Scored without them again, they are gone again.
    pipelines.score(folder, ui=SilentUi())
    assert load_report(folder).retain_models == ()
