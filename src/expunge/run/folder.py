"""The run folder: where everything of a run is, and its manifest while it goes on."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.core.files import atomic_write_json, atomic_write_text
from expunge.core.results import (
    DataSummary,
    MethodSummary,
    ModelSummary,
    RunManifest,
    load_record,
)
from expunge.run.config import RunConfig
from expunge.run.environment import machine, peak_memory_bytes, process_rank, versions
from expunge.run.render import to_yaml
from expunge.run.ui import Ui


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths of a run folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """What was run, with what, and how it ended."""
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        """One line per optimizer step."""
        return self.path / "log.jsonl"

    @property
    def model(self) -> Path:
        """The unlearned model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run resumes from."""
        return self.path / "checkpoints"

    @property
    def proxies(self) -> Path:
        """Proxy answers written for this run."""
        return self.path / "proxies.jsonl"

    @property
    def evaluation(self) -> Path:
        """Per-sample outputs and results, a folder per role."""
        return self.path / "evaluation"

    def finished_key(self) -> str:
        """Fingerprint of the run that made the model in this folder, "" if there is none."""
        marker = self.path / "model.key.json"
        if not (marker.is_file() and (self.model / "config.json").is_file()):
            return ""
        return str(json.loads(marker.read_text(encoding="utf-8")).get("key", ""))

    def mark_finished(self, key: str) -> None:
        """Note what made the model in this folder."""
        atomic_write_json(self.path / "model.key.json", {"key": key})


@dataclass(kw_only=True)
class RunLog:
    """The manifest of a run in progress; written after every stage by the main process.

    Attributes:
        folder: The run folder.
        config: The resolved configuration.
        ui: Where stages are announced.
        seconds: Wall-clock seconds per stage.
        data: Data sets by name.
        models: Models by role.
        notes: What a reader of the report must know.
        method: The method.
        diagnostics: What the method measured on the way.
        world_size: Number of processes.
        former_peak: Peak memory of the process that did the earlier stages, in bytes.
    """

    folder: RunFolder
    config: RunConfig
    ui: Ui
    seconds: dict[str, float] = field(default_factory=dict)
    data: dict[str, DataSummary] = field(default_factory=dict)
    models: dict[str, ModelSummary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    method: MethodSummary | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1
    former_peak: int = 0
    started: str = field(default_factory=lambda: now())

    def adopt(self, former: RunManifest) -> None:
        """Go on with the manifest of an earlier call in this folder."""
        self.seconds = dict(former.seconds)
        self.data = {**former.data, **self.data}
        self.models = {**former.models, **self.models}
        self.notes = list(former.notes)
        self.method = former.method
        self.diagnostics = dict(former.diagnostics)
        self.started = former.started
        self.former_peak = former.peak_memory_bytes or 0

    @contextlib.contextmanager
    def running(self, *, keep_config: bool = False) -> Iterator[None]:
        """Write the manifest at the start and at the end, whichever way it ends.

        Args:
            keep_config: Leave the config.yaml that is there alone.
        """
        if process_rank() == 0 and not keep_config:
            atomic_write_text(self.folder.path / "config.yaml", to_yaml(self.config))
        self.save("running")
        try:
            yield
        except BaseException as error:
            self.save("failed", error=str(error) or type(error).__name__)
            raise
        self.save("finished")

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce a stage, time it and write the manifest after it."""
        self.ui.stage(title)
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[title] = self.seconds.get(title, 0.0) + spent
        self.save("running")

    def manifest(self, status: str, error: str | None = None) -> RunManifest:
        """The manifest as of now."""
        return RunManifest(
            name=self.config.name,
            command=command_line(),
            status=status,  # type: ignore[arg-type]
            error=error,
            started=self.started,
            finished=None if status == "running" else now(),
            seconds=self.seconds,
            peak_memory_bytes=max(peak_memory_bytes() or 0, self.former_peak) or None,
            method=self.method,
            data=self.data,
            models=self.models,
            config=self.config.model_dump(mode="json"),
            versions=versions(),
            machine=machine(),
            seed=self.config.seed,
            world_size=self.world_size,
            notes=self.notes,
            diagnostics=self.diagnostics,
        )

    def save(self, status: str, error: str | None = None) -> None:
        """Write run.json."""
        if process_rank() == 0:
            self.manifest(status, error).save(self.folder.manifest)


def read_manifest(folder: RunFolder) -> RunManifest | None:
    """The manifest of a run folder, None if it has none."""
    return load_record(RunManifest, folder.manifest) if folder.manifest.is_file() else None


def command_line() -> str:
    """The command that repeats this run, without places of this machine."""
    program = Path(sys.argv[0]).name
    name = "expunge" if program in ("expunge", "__main__.py") else program
    return shlex.join([name, *sys.argv[1:]])


def now() -> str:
    """The time in ISO 8601 with zone, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
