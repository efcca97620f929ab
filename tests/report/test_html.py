"""The page as text: self-contained, closed, escaped, complete. The browser test looks at it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fabricated_run import HOSTILE, rewrite, write_json

from expunge.report import load_report, render_html, write_report
from expunge.report.distributions import ks_distance
from expunge.report.figure import safe
from expunge.report.text import visible

Make = Callable[..., Path]


class Page(HTMLParser):
    """Tags with attributes, text outside of scripts, and the scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self._inside:
            self.text += data

    @property
    def plots(self) -> dict[str, Any]:
        return {
            str(attrs["data-plot"]): json.loads(text)
            for attrs, text in self.scripts
            if attrs.get("type") == "application/json"
        }


@pytest.fixture
def hostile_page(hostile_run: Path) -> Page:
    return Page(write_report(hostile_run).read_text(encoding="utf-8"))


def page_of(folder: Path) -> Page:
    return Page(render_html(load_report(folder)))


def test_only_our_own_scripts_are_in_the_page_and_may_run(hostile_page: Page) -> None:
    running = [text for attrs, text in hostile_page.scripts if "type" not in attrs]
    assert len(running) == 2  # plotly.js and app.js
    policy = next(
        str(attrs["content"])
        for tag, attrs in hostile_page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in running]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    assert f"script-src {allowed};" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy


def test_nothing_points_outside(hostile_page: Page) -> None:
    for tag, attrs in hostile_page.tags:
        assert tag not in ("link", "img", "iframe", "object", "svg", "base", "form"), tag
        for name, value in attrs.items():
            assert name != "src"
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert (value or "").startswith("#")


def test_hostile_text_is_there_as_text(hostile_page: Page) -> None:
    for name, text in HOSTILE.items():
        if name != "unbroken":
            assert visible(text) in hostile_page.text, name
    assert "49" not in re.sub(r"[\d.]{3,}", "", hostile_page.text).split()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", hostile_page.text)


def test_template_syntax_in_names_is_not_run(make_run: Make) -> None:
    page = page_of(make_run("{{7*7}}{% for %}", method="{{config}}"))
    assert "{{7*7}}{% for %}" in page.text
    assert "{{config}}" in page.text


def test_labels_of_plots_mean_nothing_to_plotly(hostile_page: Page) -> None:
    labels = [
        trace["name"]
        for spec in hostile_page.plots.values()
        for trace in spec["data"]
    ]  # fmt: skip
    assert any("alert(1)" in label for label in labels)
    assert not [label for label in labels if "<" in label]
    assert safe("<b>%{x} & \x00</b>") == "&lt;b&gt;%\u200b{x} &amp; \\x00&lt;/b&gt;"


def test_plot_data_cannot_close_its_block_even_unescaped(
    hostile_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.report.curves.safe", lambda text: text)
    page = page_of(hostile_run)
    assert len(page.scripts) == 2 + len(page.plots)
    names = [trace["name"] for trace in page.plots["plot-losses"]["data"]]
    assert "forget/npo<script>alert(1)</script>" in names


def test_every_section_and_number_is_there(make_run: Make) -> None:
    page = page_of(make_run())
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        "findings", "models", "tradeoff", "truth-ratios", "training", "generations", "proxies",
        "not-assessed", "limits", "settings",
    ]  # fmt: skip
    assert list(page.plots) == [
        "plot-tradeoff-p", "plot-tradeoff-d", "plot-truth-ratios", "plot-losses", "plot-others",
        "plot-alpha", "plot-stop-proxy_gap", "plot-stop-utility",
    ]  # fmt: skip
    for text in (
        "expunge demo",  # how to rerun
        "0d4be7de6c0f8f3f",  # fingerprint of the data
        "3.20 GiB",  # peak memory
        "3 min 21 s",  # seconds per stage
        "A slice of 8 authors was used",  # what the run itself confesses
        "closer to the retain model is better",
        "Only the first rows of these sets were evaluated: retain 30.",
        "tofu, version 1",
        "39 by in-context learning",
        "transformers",
    ):
        assert text in page.text, text


def test_twenty_samples_spread_over_the_forget_set(make_run: Make) -> None:
    text = page_of(make_run()).text
    rows = [int(row) for row in re.findall(r"Forget set, row (\d+)", text)]
    assert len(rows) == 20
    assert rows[0] == 0
    assert rows[-1] == 39
    assert {after - before for before, after in itertools.pairwise(rows)} <= {2, 3}
    assert "unlearned answers something about the author" in text
    assert "cut off at the length limit" in text


def test_tables_are_accessible(make_run: Make) -> None:
    page = page_of(make_run())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 5
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    plots = [attrs for _, attrs in page.tags if (attrs.get("class") or "") == "plot"]
    assert plots
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in plots)


def test_distance_is_drawn_where_the_curves_are_furthest_apart(make_run: Make) -> None:
    folder = make_run()
    data, page = load_report(folder), page_of(folder)
    marked = next(
        trace
        for trace in page.plots["plot-truth-ratios"]["data"]
        if trace["meta"]["role"] == "mark"
    )
    (x, same_x), (low, high) = marked["x"], marked["y"]
    ratios = {}
    for role in ("unlearned", "retain"):
        table = data.table(role, "forget")
        assert table is not None
        assert table.truth_ratios is not None
        ratios[role] = table.truth_ratios
    assert x == same_x
    assert low == min(np.mean(values <= x) for values in ratios.values())
    assert high == max(np.mean(values <= x) for values in ratios.values())
    test = data.models["unlearned"].forget_quality
    assert test is not None
    assert high - low == pytest.approx(test.statistic)


def test_distance_by_hand() -> None:
    """Of {1, 2, 3, 4} half lies at or below 2; of {3, 4, 5, 6} none: D = 1/2, first met at 2."""
    distance = ks_distance(np.array([4.0, 1, 3, 2, np.nan]), np.array([3.0, 4, 5, 6]))
    assert distance == (0.5, 2.0, 0.0, 0.5)
    assert ks_distance(np.array([np.nan]), np.array([1.0])) is None


def test_infinite_and_zero_truth_ratios_stay_on_the_axis(make_run: Make) -> None:
    folder = make_run()
    path = folder / "evaluation/unlearned/forget.parquet"
    table = pq.read_table(path).to_pydict()
    table["perturbed_logps"][0] = [[3000.0]]
    table["perturbed_logps"][1] = [[-3000.0]]
    pq.write_table(pa.table(table), path)
    spec = page_of(folder).plots["plot-truth-ratios"]
    low, high = spec["layout"]["xaxis"]["range"]
    for trace in spec["data"]:
        assert all(low - 1e-9 <= math.log10(x) <= high + 1e-9 for x in trace["x"])


@pytest.mark.parametrize("ratio", [1.0001, 1.3, 40.0, 1e12])
def test_every_span_of_truth_ratios_has_ticks(make_run: Make, ratio: float) -> None:
    folder = make_run(roles=("retain",))
    path = folder / "evaluation/retain/forget.parquet"
    table = pq.read_table(path).to_pydict()
    table["perturbed_logps"] = [[[math.log(ratio) * i / 39 - 1.2]] for i in range(40)]
    pq.write_table(pa.table(table), path)
    x_axis = page_of(folder).plots["plot-truth-ratios"]["layout"]["xaxis"]
    assert 3 <= len(x_axis["tickvals"]) <= 16
    assert len(set(x_axis["ticktext"])) == len(x_axis["tickvals"])


def test_the_retain_model_stands_at_zero_by_definition_and_nobody_else(make_run: Make) -> None:
    page = page_of(make_run())
    points = {t["meta"]["role"]: t for t in page.plots["plot-tradeoff-d"]["data"]}
    assert points["retain"]["y"] == [0.0]
    assert points["target"]["y"][0] > 0.5
    assert "p = 1 and D = 0 by definition" in page.text


def test_without_a_retain_model_nothing_is_filled_in(make_run: Make) -> None:
    page = page_of(make_run(roles=("base", "target", "unlearned")))
    assert "plot-tradeoff-p" not in page.plots
    assert "Reasons: there is no retain model." in page.text
    assert "there is no distance D to mark" in page.text
    assert "Forget quality is absent: there is no retain model." in page.text


def test_a_run_without_anything_optional_is_still_a_report(make_run: Make) -> None:
    folder = make_run(roles=(), num_steps=0, proxies=False)
    (folder / "run.json").unlink()
    (folder / "evaluation").mkdir()
    page = page_of(folder)
    assert [attrs for attrs, _ in page.scripts] == []  # no plot, no script at all
    assert "What this run was asked to do is unknown" in page.text
    assert "there is no run.json" in page.text


@pytest.mark.parametrize("status", ["failed", "running"])
def test_an_unfinished_run_says_so_first(make_run: Make, status: str) -> None:
    def unfinished(manifest: dict) -> None:
        manifest.update(status=status, error="the loss is no longer a number", finished=None)

    folder = make_run()
    rewrite(folder / "run.json", unfinished)
    page = page_of(folder)
    said = "This run failed: the loss is no longer a number." if status == "failed" else (
        "This run had not finished when the report was written."
    )  # fmt: skip
    assert said in page.text
    assert "not finished" in page.text


def test_proxies_are_shown_with_figures_and_exemplars(make_run: Make) -> None:
    page = page_of(make_run())
    for said in (
        "Written by a/writer.",
        "57 answers looked at, 17 of them refused (4 could not be read in their reply)",
        "under a/base, which does not know the facts: proxies 2.25, true answers 2.75 nats",
        "Worked examples in the prompt",
        "the uninformed answers are what the writing model says without help",
        "What is fact number 2 of retain?",
        "The kept answer 1.",
        "A guess 0.",
    ):
        assert said in " ".join(page.text.split()), said


def test_figures_about_texts_that_were_edited_since_are_left_out(make_run: Make) -> None:
    folder = make_run()
    lines = (folder / "proxies.jsonl").read_text(encoding="utf-8").replace("answer 3.", "tale 3.")
    (folder / "proxies.jsonl").write_text(lines, encoding="utf-8")
    text = page_of(folder).text
    assert "The file was edited since, so likelihoods are left out." in text
    assert "nats" not in text
    assert "57 answers looked at" in text


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"exemplars": 3, "summary": []}', '{"exemplars": [1, {}]}']
)
def test_broken_files_beside_the_proxies_do_no_harm(make_run: Make, content: str) -> None:
    folder = make_run()
    for name in ("proxies.exemplars.json", "proxies.quality.json"):
        (folder / name).write_text(content, encoding="utf-8")
    page = page_of(folder)
    assert "Proxy answers" in page.text
    assert "Worked examples" not in page.text
    assert ("could not be read" in page.text) == (content == "{")


def test_a_proxy_file_elsewhere_is_shown(make_run: Make, tmp_path: Path) -> None:
    folder = make_run()
    elsewhere = tmp_path / "mine.jsonl"
    (folder / "proxies.jsonl").rename(elsewhere)
    for kind in ("exemplars", "quality"):
        (folder / f"proxies.{kind}.json").unlink()
    write_json(
        tmp_path / "mine.exemplars.json",
        {
            "source": "file",
            "exemplars": [{"question": "Q?", "informed_answer": "I.", "uninformed_answer": "U."}],
        },
    )
    rewrite(folder / "run.json", lambda run: run["config"].update(data={"proxies": str(elsewhere)}))
    text = page_of(folder).text
    assert "A made-up answer 0." in text
    assert "taken from a file of the user" in text


def test_the_three_files_are_written_and_written_again(make_run: Make, tmp_path: Path) -> None:
    folder = make_run()
    assert write_report(folder) == folder / "report.html"
    first = {name: (folder / name).read_bytes() for name in ("report.md", "report.csv")}
    first["report.html"] = (folder / "report.html").read_bytes()
    write_report(folder, tmp_path / "elsewhere")
    again = {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    assert again == first  # equal results, equal report


def test_markdown_report_holds_no_markup_of_others(hostile_run: Path) -> None:
    write_report(hostile_run)
    text = (hostile_run / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"(?ms)^(`{3,})sh\n.*?^\1$", "", text)
    assert "<script" not in outside
    assert "expunge demo<script>alert(1)</script>" in text  # the command, in a code block


def test_what_steered_the_run_is_drawn(make_run: Make) -> None:
    page = render_html(load_report(make_run()))
    for words in ("Automatic alpha", "was chosen", "Distance to the proxy boundary"):
        assert words in page
