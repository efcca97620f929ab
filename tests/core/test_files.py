"""A write happens or does not; a full disk and a killed process leave what was there."""

import errno
import json
import os

import pytest

from expunge.core.errors import RunError
from expunge.core.files import (
    append_jsonl,
    atomic_folder,
    atomic_write_json,
    atomic_write_text,
    cache_root,
    read_jsonl,
)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(RunError, match="free some space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"

    def killed_halfway():
        with atomic_folder(target) as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_halfway()
    assert not list(tmp_path.iterdir())
    with atomic_folder(target) as folder:
        (folder / "first").write_text("1")
    with atomic_folder(target) as folder:
        (folder / "second").write_text("2")
    assert [p.name for p in target.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "first").write_text("1")
    with pytest.raises(ValueError, match="broken"), atomic_folder(target) as folder:
        raise ValueError("broken")
    assert (target / "first").read_text() == "1"


def test_files_are_readable_by_others_as_usual(tmp_path):
    atomic_write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_json_has_no_nan(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"x": float("nan"), "y": (1, 2), "z": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": None, "y": [1, 2], "z": str(tmp_path),
    }  # fmt: skip


def test_a_torn_last_line_is_dropped_and_odd_line_ends_are_not_line_ends(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"text": "a\u2028b\u0085c"})
    append_jsonl(path, {"n": 2})
    with path.open("a") as file:
        file.write('{"n": 3')
    assert read_jsonl(path) == [{"text": "a\u2028b\u0085c"}, {"n": 2}]


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
