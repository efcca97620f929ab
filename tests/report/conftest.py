"""Fabricated run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import HOSTILE, RunBuilder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds a run folder and returns its path; keyword arguments are those of `RunBuilder`."""

    def make(name: str = "demo", **options: Any) -> Path:
        return RunBuilder(folder=tmp_path / "runs" / name, name=name, **options).build()

    return make


@pytest.fixture
def hostile_run(make_run: Callable[..., Path]) -> Path:
    """A run whose every text is hostile."""
    return make_run("hostile", hostile=list(HOSTILE.values()))
