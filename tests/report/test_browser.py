"""The report in a real browser: it draws, it fits, and hostile text does nothing.

One page of each kind is opened and all tests look at it, since opening takes seconds. Every test
ends with the question whether anything happened that should not have.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import HOSTILE, RunBuilder
from fabricated_scenario import ScenarioBuilder

from expunge.report import write_comparison, write_report
from expunge.report.scenario import write_scenario_report
from expunge.report.text import visible

pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

MARKUP = "script, img, iframe, a[href], b, [onload], [onerror]"


def _missing(what: str) -> None:
    if os.environ.get("EXPUNGE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what} is missing and EXPUNGE_REQUIRE_BROWSER=1 asks for it")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        _missing("Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield running
        running.close()


@dataclass
class View:
    """An open page and everything it did that it should not have."""

    page: Any
    incidents: list[str] = field(default_factory=list)

    def shape(self, *, width: int = 1280, scheme: str = "light") -> None:
        """Set the window and the colour scheme, and let the page follow."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_timeout(400)

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def texts(self, selector: str) -> list[str]:
        """Text of all matching elements, also of SVG ones."""
        return list(self.page.locator(selector).all_text_contents())

    def background(self) -> str:
        return str(self.page.evaluate("getComputedStyle(document.body).backgroundColor"))


def _open(browser: Any, path: Path) -> View:
    view = View(browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light"))
    note = view.incidents.append

    def dismiss(dialog: Any) -> None:
        note(f"dialog: {dialog.message}")
        dialog.dismiss()

    view.page.on("console", lambda message: note(f"console: {message.text}"))
    view.page.on("pageerror", lambda error: note(f"error: {error}"))
    view.page.on("request", lambda request: note(f"request: {request.url[:80]}"))
    view.page.on("dialog", dismiss)
    view.page.goto(path.as_uri())
    # The page itself is a request as well; everything after it is too much.
    assert view.incidents.pop(0) == f"request: {path.as_uri()[:80]}"
    # Looking into every drawer is part of reading.
    view.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return view


@pytest.fixture(scope="module")
def opened_report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> View:
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    hostile = list(HOSTILE.values())
    return _open(browser, write_report(RunBuilder(folder=folder, hostile=hostile).build()))


@pytest.fixture(scope="module")
def opened_comparison(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> View:
    root = tmp_path_factory.mktemp("runs")
    runs = [
        RunBuilder(folder=root / "a", name="a"),
        RunBuilder(folder=root / "b", name="b" * 80, method="NPO" + HOSTILE["image"], shift=0.3),
    ]
    return _open(browser, write_comparison([run.build() for run in runs], root / "compared"))


@pytest.fixture(scope="module")
def opened_scenario(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> View:
    folder = tmp_path_factory.mktemp("runs") / "requests"
    hostile = {"title": HOSTILE["image"], "name": HOSTILE["script"]}
    return _open(browser, write_scenario_report(ScenarioBuilder(folder=folder, **hostile).build()))


@pytest.fixture
def report(opened_report: View) -> Iterator[View]:
    opened_report.shape()
    yield opened_report
    assert opened_report.incidents == []


@pytest.fixture
def comparison(opened_comparison: View) -> Iterator[View]:
    opened_comparison.shape()
    yield opened_comparison
    assert opened_comparison.incidents == []


@pytest.fixture
def scenario(opened_scenario: View) -> Iterator[View]:
    opened_scenario.shape()
    yield opened_scenario
    assert opened_scenario.incidents == []


def test_plots_are_drawn(report: View) -> None:
    plots = report.page.locator(".js-plotly-plot")
    assert plots.count() == 8
    for i in range(plots.count()):
        assert plots.nth(i).locator("svg.main-svg").count() > 0
        assert plots.nth(i).locator(".scatterlayer .trace").count() > 0
    # The curves of four models, and D.
    curves = report.page.locator("#plot-truth-ratios .trace path.js-line")
    assert curves.count() == 5
    assert all(len(curves.nth(i).get_attribute("d")) > 10 for i in range(5))
    assert [label[:6] for label in report.texts("#plot-truth-ratios .annotation-text")] == [
        "D = 0."
    ]


def test_hostile_text_is_seen_and_does_nothing(report: View) -> None:
    said = [" ".join(text.split()) for text in report.texts(".model-text")]
    for name, text in HOSTILE.items():
        assert " ".join(visible(text).split()) in said, name
    assert report.count("script:not([type])") == 2
    assert report.count("main img, main iframe, main textarea, a[href^='javascript']") == 0
    assert "<script>alert(1)</script>" in report.page.locator("h1").inner_text()
    assert report.page.title().endswith("<script>alert(1)</script>")


def test_labels_of_plots_show_markup_as_text(report: View) -> None:
    labels = report.texts("#plot-losses .annotation-text")
    assert "forget/npo<script>alert(1)</script>" in labels
    assert report.count(f".js-plotly-plot :is({MARKUP})") == 0


def test_hover_texts_show_markup_as_text(comparison: View) -> None:
    points = comparison.page.locator("#plot-tradeoff-d .scatterlayer path.point")
    points.first.scroll_into_view_if_needed()
    seen = ""
    for i in range(points.count()):
        box = points.nth(i).bounding_box()
        comparison.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        comparison.page.wait_for_timeout(150)
        seen += "".join(comparison.texts("#plot-tradeoff-d .hovertext"))
        assert comparison.count(f".js-plotly-plot :is({MARKUP})") == 0
    assert "Target model" in seen
    assert HOSTILE["image"][:30] in seen


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["report", "comparison", "scenario"])
def test_nothing_sticks_out(request: pytest.FixtureRequest, which: str, width: int) -> None:
    view: View = request.getfixturevalue(which)
    view.shape(width=width)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    outside = view.page.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll') && !e.closest('svg'))
            .filter(e => e.getBoundingClientRect().right > width + 1)
            .map(e => e.tagName + '.' + e.className)""",
        width,
    )
    assert outside == []


def test_a_comparison_has_a_point_per_model(comparison: View) -> None:
    for plot in ("#plot-tradeoff-p", "#plot-tradeoff-d"):
        assert comparison.count(f"{plot} .scatterlayer .trace") == 5
        assert comparison.texts(f"{plot} .textpoint") == ["1", "2", "3", "4", "5"]


def test_requests_have_a_panel_each(scenario: View) -> None:
    for plot in ("#plot-requests-probability", "#plot-requests-rouge-l-recall"):
        assert scenario.count(f"{plot} .subplot") == 3
        titles = scenario.texts(f"{plot} .annotation-text")
        assert all(HOSTILE["image"][:20] in title for title in titles)
        assert scenario.count(f"{plot} :is({MARKUP})") == 0
    assert scenario.count("#plot-over-time .subplot") == 3
    own = scenario.page.locator("#plot-requests-probability .xy .trace path.point")
    assert own.count() == 4  # before it, and after each of three


def test_dark_light_and_paper(report: View) -> None:
    line = report.page.locator("#plot-losses .trace path.js-line").first
    light, lit = report.background(), line.get_attribute("style")
    report.shape(scheme="dark")
    assert report.background() != light == "rgb(255, 255, 255)"
    assert line.get_attribute("style") != lit
    report.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert report.background() == light
    assert line.get_attribute("style") == lit
    assert report.page.evaluate("document.querySelector('.main-svg').clientWidth") == 680
    report.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert report.background() != light
    assert report.page.evaluate("document.querySelector('.main-svg').clientWidth") != 680


def test_the_policy_stops_what_would_escape(opened_comparison: View) -> None:
    """Even a script or a handler that did get into the page would not run, nor reach out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        opened_comparison.page.evaluate(
            """port => {
                const script = document.createElement('script');
                script.textContent = 'window.ran = true';
                const holder = document.createElement('div');
                holder.innerHTML = `<img src="http://127.0.0.1:${port}/" onerror="ran = true">`;
                document.body.append(script, holder);
            }""",
            server.getsockname()[1],
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert opened_comparison.page.evaluate("window.ran") is None
    refused = [text for text in opened_comparison.incidents if "Content Security Policy" in text]
    assert len(refused) >= 3
    opened_comparison.incidents.clear()
