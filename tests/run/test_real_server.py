"""Proxies and alternates through a real OpenAI-compatible server: that of transformers.

Needs `pip install 'expunge[serve-test]'` and runs with `pytest -m slow`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError
from expunge.data.alternates import load_alternates
from expunge.data.proxies import load_proxies, read_proxies
from expunge.data.sources import load_rows
from expunge.models.builtin import BUILTIN
from expunge.models.loading import resolve_model
from expunge.run import pipelines
from expunge.run.endpoint import Client, Endpoint
from expunge.run.resolve import load_config
from expunge.run.ui import RecordingUi

pytestmark = pytest.mark.slow

START_SECONDS = 180
# With wrong answers in the data, no weakness of a model this small makes the command fail.
FORGET = "tofu:forget01_perturbed"
DATA = (
    f"data: {{forget: {{source: {FORGET}, rows: [0, 3]}}, "
    "retain: {source: tofu:retain99, rows: [0, 40]}}"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """Url of a server and the name of the model that it serves."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="needs expunge[serve-test]")
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(resolve_model(BUILTIN), folder)
    generation = folder / "generation_config.json"
    values = json.loads(generation.read_text()) if generation.exists() else {}
    # This server samples only if the model says so, whatever temperature a request has.
    generation.write_text(json.dumps({**values, "do_sample": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    log = (folder.parent / "log.txt").open("w")
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        url = f"http://localhost:{port}/v1"
        wait_for(url, process, Path(log.name))
        yield url, str(folder)
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client = Client(endpoint=Endpoint(url=url, model="", timeout=5))
    end = time.monotonic() + START_SECONDS
    while client.send("/models").status == 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(1)


@pytest.fixture
def config(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url, model = served
    monkeypatch.chdir(tmp_path)
    endpoint = f"{{url: {url}, model: {model}, concurrency: 1}}"
    (tmp_path / "run.yaml").write_text(
        f"{DATA}\nevaluation: null\n"
        f"proxies: {{questions_per_prompt: 1, max_new_tokens: 48, endpoint: {endpoint}}}\n"
        f"alternates: {{per_question: 2, max_new_tokens: 60, endpoint: {endpoint}}}\n"
    )
    return load_config


def test_proxies(config) -> None:
    path = pipelines.proxies(config("run.yaml"), RecordingUi())

    assert len(load_proxies(path, load_rows(FORGET, name="forget")[:3])) == 3
    assert any(
        line.model == config("run.yaml").proxies.endpoint.model for line in read_proxies(path)
    )


def test_alternates(config) -> None:
    path = pipelines.alternates(config("run.yaml"), RecordingUi())

    found = load_alternates(path, load_rows(FORGET, name="forget")[:3])
    assert all(found)
    assert max(len(set(some)) for some in found) == 2


def test_an_unknown_model(config) -> None:
    with pytest.raises(ExpungeError, match=r"proxies\.endpoint\.model"):
        pipelines.proxies(config("run.yaml", "proxies.endpoint.model=nope"), RecordingUi())
