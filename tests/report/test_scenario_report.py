"""The report of several runs: every value in its place, what came back seen, holes named."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from fabricated_run import HOSTILE, rewrite
from fabricated_scenario import (
    BACK,
    KEPT,
    LEVELS,
    NUM_ROWS,
    RETAIN_LEVEL,
    ArmsBuilder,
    ScenarioBuilder,
)
from test_html import Page

from expunge.core.errors import InputError
from expunge.core.results import Better, ModelResults, Score, load_record
from expunge.report.scenario import RequestValues, ScenarioResults, write_scenario_report
from expunge.report.scenario_changes import Verdict, in_words
from expunge.report.text import visible


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished requests. Tests copy it before they change it."""
    return ScenarioBuilder(folder=tmp_path_factory.mktemp("scenario") / "continual").build()


@pytest.fixture(scope="module")
def reported(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "continual"
    shutil.copytree(built, folder)
    write_scenario_report(folder)
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "continual"))


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def said_by(page: Page) -> str:
    return " ".join(page.text.split())


def results_of(folder: Path) -> ScenarioResults:
    return load_record(ScenarioResults, folder / "scenario_results.json")


def values_of(folder: Path, request: str, measure: str = "probability") -> RequestValues:
    found = results_of(folder).requests
    return next(each for each in found if (each.request, each.measure) == (request, measure))


def stored(folder: Path, request: str, role: str, key: str) -> Score:
    results = load_record(ModelResults, folder / request / "evaluation" / role / "results.json")
    return results.scores[key]


def test_every_value_stands_where_it_was_measured(reported: Path) -> None:
    first, last = values_of(reported, "request_01"), values_of(reported, "request_03")
    for score, model, key in (
        (first.before, ("request_01", "target"), "forget/probability"),
        (first.after["request_01"], ("request_01", "unlearned"), "forget/probability"),
        (first.after["request_02"], ("request_02", "unlearned"), "request_01/probability"),
        (first.after["request_03"], ("request_03", "unlearned"), "request_01/probability"),
        (first.retain, ("request_01", "retain"), "forget/probability"),
        (last.after["request_03"], ("request_03", "unlearned"), "forget/probability"),
    ):
        assert score == stored(reported, *model, key)
    levels = [first.before, *first.after.values(), first.retain]
    expected = [*LEVELS[1], RETAIN_LEVEL]
    assert [score.value for score in levels] == pytest.approx(expected, rel=0.15)
    assert list(last.after) == ["request_03"]
    assert all(score.n == NUM_ROWS and score.low and score.high for score in levels)


def test_the_page_has_a_triangle_of_values(reported: Path) -> None:
    source = (reported / "report.html").read_text(encoding="utf-8")
    table = source.split("Probability of each request")[1].split("</table>")[0]
    rows = table.split("<tr>")[2:]
    own = values_of(reported, "request_02").after["request_02"].value
    for position, row in enumerate(rows, 1):
        cells = row.split("<td")[1:]
        filled = ["value" in cell for cell in cells]
        assert filled == [True, *(t >= position for t in (1, 2, 3)), True]
        assert ["focus" in cell for cell in cells].index(True) == position
    assert f"{own:.3f}" in rows[1].split("<td")[3]


def test_what_comes_back_is_seen_and_what_does_not_is_not(reported: Path) -> None:
    first, second = values_of(reported, "request_01"), values_of(reported, "request_02")
    change = first.changes["request_03"]
    assert (change.verdict, change.by, change.n) == ("higher", "questions", NUM_ROWS)
    assert change.value == pytest.approx(BACK - LEVELS[1][1], abs=0.08)
    assert change.low is not None
    assert change.high is not None
    assert 0 < change.low < change.value < change.high
    assert first.changes["request_02"].verdict == "not distinguishable"
    assert second.changes["request_03"].verdict == "lower"
    text = said_by(page_of(reported))
    assert "Probability of request 1 (tofu:full[0]): came back. 0.6" in text
    assert "Probability of request 2 (tofu:full[1]): forgotten further. 0.05" in text
    assert "after the last one: came back: request 1; forgotten further: request 2." in text
    assert "ROUGE-L recall of request 2 (tofu:full[1]): not distinguishable at n = 12." in text
    assert "about one in twenty" in text
    cells = (
        (reported / "report.html").read_text(encoding="utf-8").split('<section id="requests">')[1]
    )
    assert cells.split("</table>")[0].count("came back") == 1
    assert "not distinguishable</small>" not in cells


@pytest.mark.parametrize(
    ("verdict", "better", "said"),
    [
        ("higher", "lower", "came back"),
        ("lower", "lower", "forgotten further"),
        ("lower", "higher", "lower"),  # the truth ratio falls on either side of its best value
        ("higher", "none", "higher"),
        ("not distinguishable", "lower", "not distinguishable"),
    ],
)
def test_only_what_falls_with_forgetting_says_that_it_came_back(
    verdict: Verdict, better: Better, said: str
) -> None:
    assert in_words(verdict, better) == said


def test_the_same_questions_see_what_two_intervals_do_not(tmp_path: Path) -> None:
    levels = {1: (0.8, 0.10, 0.112), 2: (0.8, 0.1)}
    for stored_too in (True, False):
        folder = tmp_path / f"stored-{stored_too}"
        ScenarioBuilder(folder=folder, levels=levels, finished=2, stored=stored_too).build()
        write_scenario_report(folder)
        values = values_of(folder, "request_01")
        early, late = values.after["request_01"], values.after["request_02"]
        assert early.high is not None
        assert late.low is not None
        assert late.low < early.high
        change = values.changes["request_02"]
        if stored_too:
            assert (change.verdict, change.by, change.reason) == ("higher", "questions", None)
        else:
            assert (change.verdict, change.by) == ("not distinguishable", "intervals")
            assert change.reason == "the answers of request 1 are not stored"
            text = said_by(page_of(folder))
            assert "judged by the two 95% intervals, since the answers of request 1" in text


def test_other_rows_are_not_compared_question_by_question(copied: Path) -> None:
    manifest = copied / "request_03/evaluation/unlearned/manifest.json"

    def other_rows(content: dict) -> None:
        content["probes"]["request_01"]["data"]["fingerprint"] = "others"

    rewrite(manifest, other_rows)
    write_scenario_report(copied)
    change = values_of(copied, "request_01").changes["request_03"]
    assert change.by == "intervals"
    assert change.reason is not None
    assert "other request_01 rows" in change.reason


def test_figures_show_each_request_from_its_own_time_on(reported: Path) -> None:
    page = page_of(reported)
    assert list(page.plots) == [
        "plot-requests-probability", "plot-requests-rouge-l-recall", "plot-over-time",
    ]  # fmt: skip
    traces = page.plots["plot-requests-probability"]["data"]
    lines = {t["yaxis"]: t for t in traces if t["name"] == "unlearned model"}
    first = values_of(reported, "request_01")
    assert lines["y"]["x"] == [1, 2, 3]
    assert lines["y"]["y"] == [score.value for score in first.after.values()]
    assert [lines["y2"]["x"], lines["y3"]["x"]] == [[2, 3], [3]]
    before = next(t for t in traces if t["meta"]["role"] == "target" and t["yaxis"] == "y")
    assert (before["x"], before["y"]) == ([0], [first.before.value])
    retain = [t for t in traces if t["meta"]["role"] == "retain"]
    assert [t["x"] for t in retain] == [[0, 3], [1, 3], [2, 3]]
    assert all(t["line"]["dash"] == "dash" for t in retain)
    assert retain[0]["y"] == [first.retain.value] * 2
    over_time = page.plots["plot-over-time"]
    panels = [each["text"] for each in over_time["layout"]["annotations"]]
    assert panels[:2] == ["<b>Model utility</b>", "<b>Probability, retain set</b>"]
    lines = {t["yaxis"]: t for t in over_time["data"] if t["name"] == "unlearned model"}
    assert lines["y2"]["y"] == pytest.approx(KEPT[1:], rel=0.1)


def test_utility_is_compared_with_the_model_before_the_first_request(reported: Path) -> None:
    labels = [model.label for model in results_of(reported).models]
    assert labels == [
        "Before request 1", "After request 1", "After request 2", "After request 3", "Retain model",
    ]  # fmt: skip
    keys = results_of(reported).models[0].scores
    assert "retain/probability" in keys
    assert not [key for key in keys if key.startswith(("forget/", "request_"))]
    utility = [results_of(reported).models[i].scores["model_utility"].value for i in (0, 3)]
    text = said_by(page_of(reported))
    assert (
        f"Model utility: lower. {utility[1]:.3f} after request 3, {utility[0]:.3f} before" in text
    )
    change = re.search(r"before request 1; (-0\.\d+) \[(-0\.\d+), (-0\.\d+)\] by the same 36", text)
    assert change is not None
    value, low, high = map(float, change.groups())
    assert low < value < high < 0
    assert value == pytest.approx(utility[1] - utility[0], abs=1e-3)


def test_forget_quality_of_every_request_is_told(copied: Path) -> None:
    def tested(content: dict) -> None:
        content["forget_quality"] = {"p_value": 0.25, "statistic": 0.375, "n": 12, "m": 12}
        content["scores"]["forget_quality"] |= {"value": 0.25, "n": 12, "reason": None}

    rewrite(copied / "request_02/evaluation/unlearned/results.json", tested)
    write_scenario_report(copied)
    text = said_by(page_of(copied))
    assert "After request 2: Forget quality: p = 0.250, D = 0.375 at n = 12." in text
    after = results_of(copied).models[2]
    assert after.scores["forget_quality_distance"].value == 0.375
    panels = page_of(copied).plots["plot-over-time"]["layout"]["annotations"]
    assert any("KS distance" in panel["text"] for panel in panels)


def test_a_retain_set_that_changes_is_told(copied: Path) -> None:
    path = copied / "request_02/evaluation/unlearned/results.json"
    rewrite(path, lambda it: it["settings"]["data"]["retain"].update(fingerprint="others"))
    write_scenario_report(copied)
    assert "The rows of retain are not the same with every request" in said_by(page_of(copied))


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_what_is_missing_is_named_and_the_rest_is_shown(
    built: Path, tmp_path: Path, finished: int
) -> None:
    folder = tmp_path / "unfinished"
    shutil.copytree(built, folder)
    for position in range(finished + 1, 4):
        shutil.rmtree(folder / f"request_{position:02d}")
    write_scenario_report(folder)
    text = said_by(page_of(folder))
    missing = [f"Request {t} (tofu:full[{t - 1}]) has not been run." for t in (1, 2, 3)[finished:]]
    assert list(results_of(folder).missing) == missing
    assert all(sentence in text for sentence in missing)
    assert f"3 forget requests, one after the other, {finished} of them finished." in text
    if finished < 2:
        assert "Nothing can have come back yet" in text
    if finished:
        panels = page_of(folder).plots["plot-requests-probability"]["layout"]["annotations"]
        assert len(panels) == finished
        after = values_of(folder, "request_01").after
        assert [score.value is not None for score in after.values()] == [
            t <= finished for t in (1, 2, 3)
        ]
        assert after["request_03"].reason == missing[-1].replace("Request", "request").rstrip(".")
        assert "not written yet" in text
    else:
        assert not page_of(folder).plots


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("running", "Request 3 (tofu:full[2]) is not finished."),
        ("failed", "Request 3 (tofu:full[2]) failed: the loss is no longer a number."),
        ("finished", "The unlearned model of request 3 (tofu:full[2]) has no scores."),
    ],
)
def test_why_a_request_has_no_scores(copied: Path, status: str, said: str) -> None:
    (copied / "request_03/evaluation/unlearned/results.json").unlink()
    error = "the loss is no longer a number." if status == "failed" else None
    rewrite(copied / "request_03/run.json", lambda run: run.update(status=status, error=error))
    write_scenario_report(copied)
    assert results_of(copied).missing == [said]
    assert values_of(copied, "request_03").before.value is not None


def test_a_request_that_is_not_the_forget_set_is_measured_at_the_next_start(copied: Path) -> None:
    for role in ("target", "unlearned", "retain"):
        path = copied / f"request_01/evaluation/{role}/results.json"

        def without_forget(content: dict) -> None:
            scores = content["scores"]
            content["scores"] = {k: s for k, s in scores.items() if not k.startswith("forget/")}

        rewrite(path, without_forget)
    write_scenario_report(copied)
    values = values_of(copied, "request_01")
    key = "request_01/probability"
    assert values.after["request_01"] == stored(copied, "request_02", "target", key)
    assert values.retain == stored(copied, "request_02", "retain", key)
    assert values.before.value is None
    assert (values.changes["request_03"].verdict, values.changes["request_03"].by) == (
        "higher", "questions",
    )  # fmt: skip


def test_requests_that_all_start_from_the_target_model_cannot_come_back(tmp_path: Path) -> None:
    folder = ScenarioBuilder(
        folder=tmp_path / "scalability", start="target", finished=2,
        levels={1: (0.8, 0.1), 2: (0.8, 0.2)},
    ).build()  # fmt: skip
    write_scenario_report(folder)
    text = said_by(page_of(folder))
    assert "each from the target model, 2 of them finished" in text
    assert "came back" not in text.lower()
    assert list(values_of(folder, "request_02").after) == ["request_02"]
    assert "Unlearned model" in text
    traces = page_of(folder).plots["plot-requests-probability"]["data"]
    assert [t["x"] for t in traces if t["name"] == "unlearned model"] == [[1], [2]]


def test_every_number_is_in_the_csv_file(reported: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((reported / "report.csv").read_text(encoding="utf-8"))))
    line = next(
        row
        for row in rows
        if (row["request"], row["measure"], row["after"]) == ("request_01", "probability", "3")
    )
    values = values_of(reported, "request_01")
    score, change = values.after["request_03"], values.changes["request_03"]
    assert [float(line[name]) for name in ("value", "low", "high", "change", "change_low")] == [
        score.value, score.low, score.high, change.value, change.low,
    ]  # fmt: skip
    assert (line["model"], line["n"], line["verdict"]) == ("unlearned", "12", "came back")
    measures = {row["measure"] for row in rows}
    assert {"exact_memorization", "generated_tokens", "retain/probability"} <= measures
    kept = [row["after"] for row in rows if row["measure"] == "retain/probability"]
    assert kept == ["", "1", "2", "3", ""]


def test_links_lead_to_the_runs_own_reports(reported: Path) -> None:
    links = [attrs["href"] for tag, attrs in page_of(reported).tags if tag == "a"]
    assert [link for link in links if link and not link.startswith("#")] == [
        f"request_0{i}/report.html" for i in (1, 2, 3)
    ]


def test_the_files_are_the_same_when_written_again(reported: Path, copied: Path) -> None:
    write_scenario_report(copied)
    for name in ("report.html", "report.md", "report.csv", "scenario_results.json"):
        assert (copied / name).read_bytes() == (reported / name).read_bytes(), name
    assert not list(copied.glob(".*"))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scenario\.json"):
        write_scenario_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text is hostile, names of folders as well."""
    names = ["javascript:alert(6)", '"><img src=x onerror=alert(3)>', "{{7*7}}{% raw %}"]
    everything = "".join(text for name, text in HOSTILE.items() if name != "unbroken")
    folder = ScenarioBuilder(
        folder=tmp_path_factory.mktemp("hostile") / "run",
        name=everything,
        title=HOSTILE["formula"] + HOSTILE["image"] + HOSTILE["template"],
        hostile=list(HOSTILE.values()),
        names=names,
        finished=2,
    ).build()
    write_scenario_report(folder)
    return folder


def test_hostile_texts_are_text(hostile: Path) -> None:
    page = page_of(hostile)
    assert len([attrs for attrs, _ in page.scripts if "type" not in attrs]) == 2
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "svg", "base", "form"), tag
        for name, value in attrs.items():
            assert name != "src"
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert ":" not in (value or "")  # no scheme at all
                assert not (value or "").startswith("/")
    for name, text in HOSTILE.items():
        if name != "unbroken":
            assert visible(text) in page.text, name
    assert "49" not in re.sub(r"[\d.]{3,}", "", page.text).split()
    labels = [
        label["text"] for spec in page.plots.values() for label in spec["layout"]["annotations"]
    ]
    assert any("onerror" in label for label in labels)
    assert all(label.replace("<b>", "").replace("</b>", "").count("<") == 0 for label in labels)


def test_hostile_texts_in_the_other_files(hostile: Path) -> None:
    markdown = (hostile / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "<img" not in markdown
    rows = csv.reader(io.StringIO((hostile / "report.csv").read_text(encoding="utf-8")))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "@", "+"))]


def test_nothing_comes_from_the_network(reported: Path) -> None:
    page = page_of(reported)
    assert not [tag for tag, attrs in page.tags if "src" in attrs or tag == "link"]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert str(policy).startswith("default-src 'none';")


def test_arms_stand_side_by_side(tmp_path: Path) -> None:
    folder = ArmsBuilder(folder=tmp_path / "related").build()
    (folder / "theta_1/report.html").write_text("a page", encoding="utf-8")
    write_scenario_report(folder)
    page = page_of(folder)
    models = {model.label: model for model in results_of(folder).models}
    assert list(models) == [
        "Target model, theta_1", "Unlearned model, theta_1",
        "Target model, theta_2", "Unlearned model, theta_2",
    ]  # fmt: skip
    known = [models[f"Unlearned model, theta_{i}"].scores["target/probability"] for i in (1, 2)]
    assert [score.value for score in known] == pytest.approx([0.6, 0.1], rel=0.15)
    text = said_by(page)
    assert all(f"{score.value:.3f}" in text for score in known)
    bars = page.plots["plot-arms-probability"]["data"]
    drawn = next(t for t in bars if t["meta"]["role"] == "unlearned" and t["yaxis"] == "y")
    assert (drawn["type"], drawn["y"]) == ("bar", ["theta_1", "theta_2"])
    assert drawn["x"] == [score.value for score in known]
    assert drawn["error_x"]["array"] == pytest.approx([s.high - s.value for s in known])
    panels = [each["text"] for each in page.plots["plot-arms-probability"]["layout"]["annotations"]]
    assert panels == ["<b>Facts to forget</b>", "<b>Related facts</b>"]
    assert "related-theta_2 minus related-theta_1" in text
    about = "related-theta_2 against related-theta_1: lower, -0."
    assert f"Probability, facts to forget: {about}" in text
    assert [about in each for each in results_of(folder).statements] == [True] * 4
    assert "minus related-theta" in (folder / "report.md").read_text(encoding="utf-8")
    links = [a["href"] for t, a in page.tags if t == "a" and not str(a["href"]).startswith("#")]
    assert links == ["theta_1/report.html"]


def test_an_arm_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = ArmsBuilder(folder=tmp_path / "related", finished=1).build()
    write_scenario_report(folder)
    assert results_of(folder).missing == [
        "Arm theta_2 (learned targets, unlearned targets) has not been run."
    ]
    bars = page_of(folder).plots["plot-arms-probability"]["data"]
    assert {tuple(trace["y"]) for trace in bars} == {("theta_1",)}
