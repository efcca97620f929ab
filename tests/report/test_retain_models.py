"""The report shows the retain models that the scores were computed with, all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fabricated_run import rewrite

from expunge.report import load_report, write_report
from expunge.report.html import render_html
from expunge.report.load import retain_folders
from expunge.report.ratios import truth_ratio_figure
from expunge.report.tables import compare_reports, table_of

Make = Callable[..., Path]


def scored_with(folder: Path, *runs: Path, **settings: object) -> Path:
    """As if the run had been scored with these retain runs."""
    names = [str(run) for run in runs]
    for path in (folder / "evaluation").glob("*/results.json"):
        rewrite(path, lambda r: r["settings"].update(retain_run=names, **settings))
    return folder


def moved(run: Path, factor: float) -> Path:
    """The run with every truth ratio of its retain model times `factor`."""
    path = run / "evaluation" / "retain" / "forget.parquet"
    table = pq.read_table(path)
    shifted = [
        [[value + np.log(factor) for value in answer] for answer in row]
        for row in table["perturbed_logps"].to_pylist()
    ]
    columns = {name: table[name].to_pylist() for name in table.column_names}
    pq.write_table(type(table).from_pydict(columns | {"perturbed_logps": shifted}), path)
    return run


def test_the_latest_scoring_goes_before_the_settings_of_the_run(make_run: Make) -> None:
    named, later = make_run("named"), make_run("later")
    folder = make_run(roles=("target", "unlearned"))
    evaluation = {"retain_run": str(named)}
    rewrite(folder / "run.json", lambda m: m["config"].update(evaluation=evaluation))
    assert retain_folders(folder, load_report(folder).manifest) == (named / "evaluation/retain",)

    scored_with(folder, later)
    data = load_report(folder)

    assert retain_folders(folder, data.manifest) == (later / "evaluation" / "retain",)
    assert list(data.models) == ["target", "unlearned", "retain"]
    scored_with(folder)  # with the run's own, which it does not have
    assert list(load_report(folder).models) == ["target", "unlearned"]


def test_a_retain_model_from_elsewhere_takes_the_place_of_the_own_one(make_run: Make) -> None:
    other = moved(make_run("other"), 2.0)
    folder = scored_with(make_run(), other)
    data = load_report(folder)
    there = load_report(other).table("retain", "forget")
    shown = data.table("retain", "forget")
    assert shown is not None
    assert there is not None
    assert shown.truth_ratios is not None
    assert there.truth_ratios is not None
    np.testing.assert_array_equal(shown.truth_ratios, there.truth_ratios)

    other.rename(other.with_name("gone"))
    data = load_report(folder)
    # Nothing was compared with the own one, so it is no yardstick.
    assert "retain" not in data.models
    assert [absence.what for absence in data.absences] == ["retain model"]


def test_several_retain_models_are_all_shown(make_run: Make) -> None:
    others = [moved(make_run(f"seed{i}"), factor) for i, factor in ((1, 1.0), (2, 1.6), (3, 4.0))]
    folder = scored_with(make_run(roles=("target", "unlearned")), *others)
    data = load_report(folder)

    assert [model.label for model in data.retain_models] == [
        "Retain model 1",
        "Retain model 2",
        "Retain model 3",
    ]
    assert [row.label for row in table_of(data).rows][2:] == [
        "Retain model 1",
        "Retain model 2",
        "Retain model 3",
    ]
    figure = truth_ratio_figure(data)
    assert figure is not None
    drawn = [trace for trace in figure.spec["data"] if trace["meta"]["role"] == "retain"]
    assert [trace["name"] for trace in drawn] == ["Retain model 1", "Retain model 2",
                                                  "Retain model 3"]  # fmt: skip
    assert len({tuple(trace["x"]) for trace in drawn}) == 3
    assert "All 3 retain models are drawn" in figure.caption
    page = render_html(data)
    assert "Retain model 3" in page
    assert "All 3 retain models are drawn" in page
    write_report(folder)
    assert "Retain model 3" in (folder / "report.csv").read_text(encoding="utf-8")


def test_the_own_retain_model_may_be_one_of_several(make_run: Make) -> None:
    other, folder = moved(make_run("other"), 2.0), make_run()
    own = load_report(folder).table("retain", "forget")
    data = load_report(scored_with(folder, other, folder))
    assert [model.label for model in data.retain_models] == ["Retain model 1", "Retain model 2"]
    shown = data.retain_models[1].tables["forget"]
    assert own is not None
    np.testing.assert_array_equal(shown.truth_ratios, own.truth_ratios)
    # Named alone it is what it would be without a name.
    data = load_report(scored_with(folder, folder))
    assert [model.label for model in data.retain_models] == ["Retain model"]


def test_the_distance_that_is_drawn_is_the_median_one(make_run: Make) -> None:
    others = [moved(make_run(f"seed{i}"), factor) for i, factor in ((1, 30.0), (2, 1.0), (3, 3.0))]
    folder = make_run(roles=("target", "unlearned"))

    def distance(*runs: Path) -> str:
        figure = truth_ratio_figure(load_report(scored_with(folder, *runs)))
        assert figure is not None
        (mark,) = [trace for trace in figure.spec["data"] if trace["meta"]["role"] == "mark"]
        return str(mark["name"])

    single = [distance(other) for other in others]
    assert len(set(single)) == 3
    by_size = sorted(single, key=lambda name: float(name.removeprefix("D = ")))
    assert distance(*others) == by_size[1]
    assert distance(*others[1:]) == max(single[1:])  # of two the further, as in the test


def test_what_cannot_be_drawn_is_said(make_run: Make, tmp_path: Path) -> None:
    others = [make_run("seed1"), make_run("seed2"), tmp_path / "gone"]
    folder = scored_with(make_run(roles=("target", "unlearned")), *others)
    tested = {"distances": [0.1, 0.2, 0.3], "low": 0.0, "high": 0.4}
    path = folder / "evaluation" / "unlearned" / "results.json"
    rewrite(path, lambda r: r["forget_quality"].update(statistic=0.2, p_value=0.3, **tested))
    figure = truth_ratio_figure(load_report(folder))
    assert figure is not None
    assert "Only 2 of 3 retain models can be drawn; by all of them the median distance is D = " in (
        figure.caption
    )


def test_one_retain_model_is_called_what_it_always_was(make_run: Make) -> None:
    data = load_report(scored_with(make_run(roles=("target", "unlearned")), make_run("other")))
    assert [model.label for model in data.retain_models] == ["Retain model"]
    figure = truth_ratio_figure(data)
    assert figure is not None
    assert "retain models" not in figure.caption


def test_ratios_of_a_retain_model_follow_the_options_of_the_scores(make_run: Make) -> None:
    other = make_run("other")
    folder = scored_with(make_run(roles=("target", "unlearned")), other)
    before = load_report(folder).table("retain", "forget")
    options = {"mean": "arithmetic"}
    scored_with(folder, other, metric_options=options)
    data = load_report(folder)
    after = data.table("retain", "forget")
    assert before is not None
    assert after is not None
    assert not np.array_equal(before.truth_ratios, after.truth_ratios)
    assert data.notes == (
        "The scores shown for the retain model are those of its own run, which were made with "
        "benchmark tofu, preset tofu; the other models' were made with benchmark tofu, preset tofu "
        'and options {"mean": "arithmetic"}.',
    )


def test_notes_of_the_scoring_stand_among_the_limits(make_run: Make) -> None:
    folder = scored_with(make_run(), notes=["the preset has <b>400</b> rows"])
    data = load_report(folder)
    assert data.notes == ("the preset has <b>400</b> rows",)
    page = render_html(data)
    assert page.count("the preset has &lt;b&gt;400&lt;/b&gt; rows") == 1
    (folder / "run.json").unlink()
    assert "the preset has &lt;b&gt;" in render_html(load_report(folder))


def test_runs_with_several_retain_models_are_compared(make_run: Make) -> None:
    others = [moved(make_run(f"seed{i}"), factor) for i, factor in ((1, 1.0), (2, 2.0))]
    runs = [
        scored_with(make_run(name, roles=("target", "unlearned")), *others) for name in ("a", "b")
    ]
    for i, other in enumerate(others):
        path = other / "evaluation" / "retain" / "results.json"
        rewrite(path, lambda r, i=i: r.update(model_fingerprint=f"seed {i}"))
    table = compare_reports([load_report(run) for run in runs])
    labels = [row.label for row in table.rows if row.role == "retain"]
    assert labels == ["Retain model 1", "Retain model 2"]
