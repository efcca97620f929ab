"""What pipelines report, on a terminal (live) or in a log file (plain lines now and then)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from expunge.run.environment import process_rank
from expunge.run.table import aligned
from expunge.run.ui import SilentUi, Ui

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def screen() -> Iterator[Ui]:
    """Where this process reports to: a live terminal, plain lines, nowhere if not the main one."""
    if process_rank() != 0:
        yield SilentUi()
    elif sys.stdout.isatty():
        ui = RichUi()
        try:
            yield ui
        finally:
            ui.stop()
    else:
        yield PlainUi()


class PlainUi:
    """Plain lines on stdout; progress at most every few seconds and at the end of a stage.

    Args:
        interval: Seconds between two lines of progress.
    """

    def __init__(self, *, interval: float = SECONDS_BETWEEN_LINES) -> None:
        self.interval = interval
        self._stage_start = self._last_line = time.monotonic()

    def stage(self, title: str) -> None:
        """A headline."""
        self._stage_start = self._last_line = time.monotonic()
        typer.echo(f"\n== {title}")

    def progress(self, done: int, total: int, label: str = "") -> None:
        """A line with the share that is done and the time that is left."""
        now = time.monotonic()
        finished = done >= total
        if not finished and now - self._last_line < self.interval:
            return
        self._last_line = now
        share = f"{done}/{total}" + (f" ({100 * done // total}%)" if total else "")
        left = "" if finished else f", about {_duration(now - self._stage_start, done, total)} left"
        typer.echo(f"   {share}{left}" + (f"  {label}" if label else ""))
        if finished:
            self._stage_start = now  # what is counted next has its own pace

    def note(self, text: str) -> None:
        """The text as it is."""
        typer.echo(text)

    def warning(self, text: str) -> None:
        """The text, marked."""
        typer.echo(f"Warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns under their names."""
        if title:
            typer.echo(f"\n{title}")
        for line in aligned([columns, *rows]):
            typer.echo(line)


class RichUi:
    """Live progress bars and tables on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def stage(self, title: str) -> None:
        """A headline; ends the bar of the stage before."""
        self.stop()
        self.console.print()
        self.console.print(title, style="bold")

    def progress(self, done: int, total: int, label: str = "") -> None:
        """Move the bar of the current stage."""
        if self._bar is None or self._task is None:
            self._start(total)
        assert self._bar is not None, "just started"
        assert self._task is not None, "just started"
        self._bar.update(self._task, completed=done, total=total, description=label)
        if done >= total:
            self.stop()

    def note(self, text: str) -> None:
        """The text as it is, above a running bar."""
        self.console.print(text, soft_wrap=True)

    def warning(self, text: str) -> None:
        """The text, marked."""
        self.console.print(f"Warning: {text}", style="yellow", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the terminal's width."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        self.stop()
        table = Table(title=Text(title) if title else None, box=box.SIMPLE, title_justify="left")
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def _start(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        self._bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # The label takes what is left of the line and never pushes the others out.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def stop(self) -> None:
        """End a running bar and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def _duration(elapsed: float, done: int, total: int) -> str:
    if done == 0:
        return "an unknown time"
    seconds = round(elapsed / done * (total - done))
    return f"{seconds} s" if seconds < 90 else f"{round(seconds / 60)} min"
