"""How a pipeline tells a person what it is doing; the command line decides what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Ui(Protocol):
    """Where pipelines report to. Calls are cheap; call `progress` as often as there is progress."""

    def stage(self, title: str) -> None:
        """A new part of the work begins; it ends with the next one."""

    def progress(self, done: int, total: int, label: str = "") -> None:
        """`done` of `total` units of the stage are ready; `label` says what was just seen."""

    def note(self, text: str) -> None:
        """One line or paragraph that a person should read."""

    def warning(self, text: str) -> None:
        """Something that does not stop the run but that a person may want to change."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table of ready-made text; the first column names the row."""


class SilentUi:
    """Says nothing: for use as a library and in processes other than the main one."""

    def stage(self, title: str) -> None:
        """Nothing."""

    def progress(self, done: int, total: int, label: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warning(self, text: str) -> None:
        """Nothing."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Nothing."""


@dataclass
class RecordingUi:
    """Keeps what it was told, for tests and notebooks.

    Attributes:
        stages: Titles in order.
        notes: Notes in order, warnings included.
        tables: Title, columns and rows of each table.
        last_progress: The most recent `(done, total, label)`.
    """

    stages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    last_progress: tuple[int, int, str] | None = None

    def stage(self, title: str) -> None:
        """Keep the title."""
        self.stages.append(title)

    def progress(self, done: int, total: int, label: str = "") -> None:
        """Keep the latest state."""
        self.last_progress = (done, total, label)

    def note(self, text: str) -> None:
        """Keep the text."""
        self.notes.append(text)

    def warning(self, text: str) -> None:
        """Keep the text."""
        self.notes.append(f"Warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Keep the table."""
        self.tables.append((title, list(columns), [list(row) for row in rows]))
