from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.models.export import save_model
from expunge.testing.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return tiny_model(tokenizer)


@pytest.fixture
def folder(tmp_path: Path, model: Any, tokenizer: Any) -> Path:
    return save_model(tmp_path / "tiny", model, tokenizer, "# A card\n")
