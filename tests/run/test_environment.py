"""Versions and the class of machine."""

from __future__ import annotations

import getpass
import json
import socket

import pytest

from expunge.run.environment import (
    environment_lines,
    launched_processes,
    machine,
    peak_memory_bytes,
    process_rank,
    version,
    versions,
)


def test_versions_are_those_installed() -> None:
    found = versions()

    assert found["pydantic"] == version("pydantic")
    assert "not-a-package" not in found
    assert version("not-a-package") is None


def test_the_machine_is_a_class_not_a_person() -> None:
    told = json.dumps(machine()) + "\n".join(
        line for line in environment_lines() if not line.startswith("cache:")
    )

    assert socket.gethostname() not in told
    assert f"/{getpass.getuser()}" not in told
    assert machine()["cores"] >= 1


def test_peak_memory_grows_with_use() -> None:
    before = peak_memory_bytes()
    assert before is not None
    block = bytearray(300 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    after = peak_memory_bytes()

    assert after is not None
    assert after >= before
    assert 10 * 2**20 < after < 2**40


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (process_rank(), launched_processes()) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (process_rank(), launched_processes()) == (1, 2)
