"""A chat server in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chat_server import ChatServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # A proxy for everything else must not get between us and this machine.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    chat = ChatServer()
    yield chat
    chat.close()
