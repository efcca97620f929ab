"""A place with a tiny model and data, the command line in process, and fake pipelines."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import expunge.run
from expunge.cli import main
from expunge.models.export import save_model
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_model(folder, tiny_model(tokenizer, max_length=512), tokenizer, "# A card\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `forget.jsonl`, `retain.jsonl` and a `run.yaml` that passes every check."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    facts = toy_facts(20)
    write_rows(tmp_path / "forget.jsonl", facts[:8])
    write_rows(tmp_path / "retain.jsonl", facts[8:])
    (tmp_path / "run.yaml").write_text(
        f"""
name: test
model: {{path: {tiny}}}
data: {{forget: forget.jsonl, retain: retain.jsonl}}
method: NPO+GD
training: {{learning_rate: 1e-3, effective_batch_size: 4, micro_batch_size: 2}}
""",
        encoding="utf-8",
    )
    return tmp_path


@pytest.fixture
def expunge_cli(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Stand-ins for `expunge.run.pipelines` that only note how they were called."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(name: str) -> Any:
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    verbs = ("finetune", "proxies", "alternates", "unlearn", "evaluate", "score", "report", "demo")
    fake = SimpleNamespace(**{name: stand_in(name) for name in verbs})
    monkeypatch.setitem(sys.modules, "expunge.run.pipelines", fake)
    monkeypatch.setattr(expunge.run, "pipelines", fake, raising=False)
    return calls
