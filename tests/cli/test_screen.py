"""Progress on a terminal and in a log file."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from expunge.cli import screen
from expunge.cli.screen import PlainUi, RichUi
from expunge.run.table import aligned
from expunge.run.ui import RecordingUi, SilentUi


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(screen, "time", clock)
    return clock


def test_plain_lines_come_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    ui = PlainUi(interval=10)
    ui.stage("Unlearning")
    for step in range(1, 101):
        clock.now += 1
        ui.progress(step, 100, f"loss {step}")

    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["", "== Unlearning"]
    assert lines[2] == "   10/100 (10%), about 90 s left  loss 10" or "about 2 min" in lines[2]
    assert lines[-1] == "   100/100 (100%)  loss 100"
    assert len(lines) == 2 + 10


def test_the_time_left_is_that_of_what_is_counted_now(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    ui = PlainUi(interval=1)
    ui.stage("Evaluate")
    clock.now += 100
    ui.progress(2, 2, "scoring answers")
    clock.now += 5
    ui.progress(1, 2, "generating answers")

    assert capsys.readouterr().out.splitlines()[-1] == (
        "   1/2 (50%), about 5 s left  generating answers"
    )


def test_plain_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    PlainUi().table("Models", ["", "ROUGE"], [["target", "0.9"], ["unlearned", "0.4"]])

    assert capsys.readouterr().out.splitlines() == [
        "",
        "Models",
        "           ROUGE",
        "target     0.9",
        "unlearned  0.4",
    ]


def test_rich_shows_text_as_it_is() -> None:
    text = "[bold]not markup[/bold] :smile: 😀 ‏עברית"
    ui = RichUi()
    ui.console = Console(
        file=io.StringIO(), force_terminal=True, width=200, markup=False, emoji=False
    )
    ui.stage(text)
    ui.progress(1, 2, text)
    ui.note(text)
    ui.table(text, [text], [[text]])
    ui.progress(1, 2)
    ui.stop()

    shown = ui.console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("[bold]not markup[/bold] :smile: 😀") >= 4


def test_a_failure_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    seen: list[RichUi] = []

    def work() -> None:
        with screen.screen() as ui:
            assert isinstance(ui, RichUi)
            seen.append(ui)
            ui.progress(1, 2)
            assert ui._bar is not None
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        work()
    assert seen[0]._bar is None


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with screen.screen() as ui:
        assert isinstance(ui, SilentUi)
    monkeypatch.setenv("RANK", "0")
    with screen.screen() as ui:
        assert isinstance(ui, PlainUi)


def test_recording_keeps_what_it_is_told() -> None:
    ui = RecordingUi()
    ui.stage("a")
    ui.progress(1, 2, "x")
    ui.note("b")
    ui.warning("c")
    ui.table("t", ["x"], [["1"]])

    assert (ui.stages, ui.notes, ui.last_progress) == (["a"], ["b", "Warning: c"], (1, 2, "x"))
    assert ui.tables == [("t", ["x"], [["1"]])]


def test_aligned_pads_all_but_the_last() -> None:
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
