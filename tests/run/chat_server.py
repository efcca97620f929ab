"""A stand-in for an OpenAI-compatible server: answers by script, keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Reply = Callable[[Body, int], tuple[int, Any, dict[str, str]]]


def completion(text: str | None) -> Body:
    """A chat completion, with what real servers send beside the text."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


class ChatServer:
    """The server; `reply` may be replaced at any time.

    Attributes:
        url: Where the protocol begins.
        requests: Bodies of chat requests, in the order in which they came.
        headers: Headers of all requests.
        paths: Method and path of all requests.
        reply: From a body and its number to status, value or raw text, and headers.
        models: What /models lists; None: an error.
        most_at_once: The most requests that were under way at the same time.
        slow: Seconds before every reply.
    """

    def __init__(self) -> None:
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.models: list[str] | None = ["m", "other"]
        self.reply: Reply = lambda body, number: (200, completion("Fine."), {})
        self.most_at_once = self._under_way = 0
        self.slow = 0.0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.note(self)
                if self.path != "/v1/models" or owner.models is None:
                    self.send(404, {"detail": "Not Found"}, {})
                else:
                    self.send(200, {"data": [{"id": name} for name in owner.models]}, {})

            def do_POST(self) -> None:
                owner.note(self)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    self.send(404, {"detail": "Not Found"}, {})
                    return
                with owner.counted(body) as number:
                    reply = owner.reply(body, number)
                # Not counted any more: the client may ask again before this thread goes on.
                self.send(*reply)

            def send(self, status: int, value: Any, headers: dict[str, str]) -> None:
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                """A client that no longer waits is part of the tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def note(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.paths.append(f"{handler.command} {handler.path}")
            self.headers.append(dict(handler.headers))

    @contextmanager
    def counted(self, body: Body) -> Iterator[int]:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        time.sleep(self.slow)
        try:
            yield number
        finally:
            with self._lock:
                self._under_way -= 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
