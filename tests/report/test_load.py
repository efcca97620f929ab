"""Reading a run folder: what is there is read, what is not is named with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fabricated_run import LEVELS, NUM_FORGET, RunBuilder, rewrite

from expunge.core.errors import InputError
from expunge.report import load_report, write_report
from expunge.report.load import retain_folders

Make = Callable[..., Path]


def test_a_complete_run_has_no_absence(make_run: Make) -> None:
    data = load_report(make_run())
    assert data.absences == ()
    assert list(data.models) == list(LEVELS)
    assert data.method == "EGUP(NPO+GD, k=1, mu=0.001)"
    assert data.log[0].terms.keys() == {"forget/npo", "retain/nll", "proxy_penalty"}
    assert data.log[0].others["penalty_active"] == 1  # lifted out of "extra"
    assert data.proxies is not None
    assert [proxy.by_hand for proxy in data.proxies[:2]] == [True, False]


def test_truth_ratios_are_those_of_the_table(make_run: Make, tmp_path: Path) -> None:
    data = load_report(make_run())
    table = data.table("unlearned", "forget")
    assert table is not None
    assert table.truth_ratios is not None
    expected = RunBuilder(folder=tmp_path).truth_ratios("unlearned")
    np.testing.assert_allclose(table.truth_ratios, expected, rtol=1e-12)


def test_rows_come_back_in_the_order_of_their_index(make_run: Make) -> None:
    folder = make_run()
    path = folder / "evaluation/target/forget.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    loaded = load_report(folder).table("target", "forget")
    assert loaded is not None
    assert loaded.indices == tuple(range(NUM_FORGET))
    assert loaded.questions[3] == "What is fact number 3 of forget?"


@pytest.mark.parametrize(
    ("break_it", "what", "why"),
    [
        (lambda f: (f / "run.json").unlink(), "description of the run", "there is no run.json"),
        (lambda f: (f / "run.json").write_text("{"), "description of the run", "could not be read"),
        (lambda f: (f / "log.jsonl").unlink(), "loss curves", "there is no log.jsonl"),
        (lambda f: (f / "log.jsonl").write_text(""), "loss curves", "holds no step"),
        (lambda f: (f / "log.jsonl").write_bytes(b"\xff\xfe{}"), "loss curves", "not UTF-8"),
        (
            lambda f: (f / "evaluation/retain/results.json").write_text('{"role": 3}'),
            "scores of the retain model",
            "could not be read",
        ),
        (
            lambda f: (f / "evaluation/base/forget.parquet").write_bytes(b"no parquet"),
            "samples of the base model on forget",
            "could not be read",
        ),
        (
            lambda f: pq.write_table(pa.table({"a": [1]}), f / "evaluation/base/forget.parquet"),
            "samples of the base model on forget",
            "no column answer, index, question",
        ),
        (lambda f: (f / "proxies.jsonl").write_bytes(b"\xff"), "proxy answers", "not UTF-8"),
        (
            lambda f: rewrite(f / "run.json", lambda value: value.update(schema_version=99)),
            "sure reading of run.json",
            "layout 99",
        ),
    ],
)
def test_a_broken_piece_is_absent_with_its_reason(
    make_run: Make, break_it: Callable[[Path], object], what: str, why: str
) -> None:
    folder = make_run()
    break_it(folder)
    absences = {absence.what: absence.why for absence in load_report(folder).absences}
    assert why in absences[what]
    assert str(folder) not in absences[what]  # places of this machine stay out of a report
    page = write_report(folder).read_text(encoding="utf-8")
    assert what in page


def test_a_torn_last_line_and_odd_lines_are_left_out(make_run: Make) -> None:
    folder = make_run(num_steps=3)
    with (folder / "log.jsonl").open("a") as file:
        file.write(
            '[1]\n{"step": "x"}\n{"step": 4, "terms": null, "total": "high"}\n{"step": 5, "to'
        )
    log = load_report(folder).log
    assert [entry.step for entry in log] == [1, 2, 3, 4]
    assert log[-1].terms == {}
    assert log[-1].total is None


def test_settings_come_from_the_manifest_when_the_file_is_gone(make_run: Make) -> None:
    folder = make_run()
    (folder / "config.yaml").unlink()
    data = load_report(folder)
    assert data.config is not None
    assert data.config.startswith("name: demo\nseed: 0\nevaluation:\n")
    assert data.absences == ()


def test_the_retain_model_may_come_from_another_run(make_run: Make) -> None:
    with_retain, folder = make_run("other"), make_run(roles=("target", "unlearned"))

    def name_it(manifest: dict) -> None:
        manifest["config"]["evaluation"]["retain_run"] = str(with_retain)

    rewrite(folder / "run.json", name_it)
    data = load_report(folder)
    assert list(data.models) == ["target", "unlearned", "retain"]
    assert data.table("retain", "forget") is not None
    with_retain.rename(with_retain.with_name("moved"))
    data = load_report(folder)
    assert list(data.models) == ["target", "unlearned"]
    assert [a.why for a in data.absences] == ["other with its results is not where it was"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        load_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a run folder.*runs/NAME"):
        load_report(tmp_path)


def test_an_evaluation_without_generations_or_wrong_answers(make_run: Make) -> None:
    folder = make_run()
    path = folder / "evaluation/unlearned/forget.parquet"
    table = pq.read_table(path).drop_columns(["perturbed_logps", "generation"])
    pq.write_table(table, path)
    loaded = load_report(folder).table("unlearned", "forget")
    assert loaded is not None
    assert loaded.truth_ratios is None
    assert loaded.generations == ()
    write_report(folder)


def test_half_characters_in_json_do_not_stop_the_report(make_run: Make) -> None:
    folder = make_run()
    line = json.dumps({"question": "q", "answer": "a", "proxy_answer": "\ud800"})
    (folder / "proxies.jsonl").write_text(line + "\n")
    assert "\ufffd" in write_report(folder).read_text(encoding="utf-8")


def test_of_several_retain_models_the_first_that_is_there_is_shown(
    make_run: Make, tmp_path: Path
) -> None:
    one, two = make_run("one"), make_run("two")
    foreign = tmp_path / "TOFU_EVAL.json"
    foreign.write_text("{}")
    folder = make_run(roles=("target", "unlearned"))
    names = [str(tmp_path / "gone"), str(foreign), str(two), str(one / "evaluation" / "retain")]
    rewrite(folder / "run.json", lambda m: m["config"]["evaluation"].update(retain_run=names))
    data = load_report(folder)
    assert data.table("retain", "forget") is not None
    assert [absence.why for absence in data.absences] == [
        "gone with its results is not where it was",
        "TOFU_EVAL.json is a file of another project, not a run",
    ]
    assert retain_folders(folder, data.manifest)[2:] == (
        two / "evaluation" / "retain",
        one / "evaluation" / "retain",
    )
    assert retain_folders(folder, None) == (folder / "evaluation" / "retain",)
