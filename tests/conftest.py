"""Shared set-up: no network, one thread per worker, a cache folder of the test's own."""

import os

import pytest
from hypothesis import settings

# A test that fails because the machine is busy says nothing about the code.
settings.register_profile("expunge", deadline=None)
settings.load_profile("expunge")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    # Two xdist workers on two cores: more threads only fight each other.
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder))
    return folder
