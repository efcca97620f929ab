"""A server that speaks the chat-completions protocol: requests, new attempts, clear messages.

Everything that a server sends is untrusted: it is cut to a length, made printable before it is
shown, and never followed to another place. The key is sent and nothing else is done with it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from expunge.core.errors import InputError, Problem, RunError, did_you_mean

MAX_REPLY_BYTES = 16 * 2**20
MAX_PAUSE = 60.0  # seconds; a server may ask for more, and then another run is the better idea
LISTED = 20  # models named in a message; big providers have hundreds
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHAT = "/chat/completions"


def base_url(url: str) -> str:
    """The url without a slash at its end, checked by its form alone.

    Raises:
        ValueError: It is no http or https url, has a part that has no place here, or names the
            address of one request instead of where the protocol begins.
    """
    example = "write it as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no url ({error}); {example}") from None
    if parts.username is not None or parts.password is not None:
        # Not repeated: what stands there is a secret, and configurations are kept with results.
        raise ValueError(f"has a user name or password in it; {example} and use api_key_env")
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        raise ValueError(f"{url!r} is no http or https url; {example}")
    if parts.query or parts.fragment:
        raise ValueError("has something behind ? or #, which has no place here; leave it out")
    trimmed = url.rstrip("/")
    if trimmed.endswith(_CHAT):
        raise ValueError(f"{url!r} is the address of one request; leave out {_CHAT}")
    return trimmed


def is_local(url: str) -> bool:
    """The host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where requests go and how patiently.

    Attributes:
        url: Where the protocol begins, see `base_url`.
        model: Name of the model there.
        api_key_env: Environment variable with the key; no key is sent if it is None or not set.
        timeout: Seconds to wait for a reply.
        max_retries: New attempts after a failure that may pass.
        concurrency: Requests under way at once.
        pause: Seconds before the first new attempt; doubles with every further one.
        key: Configuration key that messages point to.
    """

    url: str
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"
    timeout: float = 120.0
    max_retries: int = 3
    concurrency: int = 4
    pause: float = 1.0
    key: str = "endpoint"

    @property
    def api_key(self) -> str:
        """The key, "" if there is none.

        Raises:
            InputError: The variable holds something that cannot be sent.
        """
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not (key.isascii() and key.isprintable()):
            message = f"the environment variable {self.api_key_env} holds line breaks or letters "
            message += "that no key has; set it anew"
            raise InputError(Problem(where=f"{self.key}.api_key_env", message=message))
        return key


@dataclass(frozen=True, kw_only=True)
class HttpReply:
    """What came back: a status and the body as text; status 0 where nothing came."""

    status: int
    text: str = ""
    why: str = ""
    retry_after: float | None = None


@dataclass(kw_only=True)
class Client:
    """Sends requests to one endpoint, from several threads if need be.

    Attributes:
        endpoint: Where to.
        stop: Set it to end pauses and further attempts of all threads.
    """

    endpoint: Endpoint
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        # A redirect would carry the key to another place. This machine is asked without a proxy.
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if is_local(self.endpoint.url):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def chat(self, body: Mapping[str, Any]) -> HttpReply:
        """The reply to a chat request: 200, or an error of the 4xx kind that no patience cures.

        Raises:
            RunError: The server cannot be reached, or fails after all attempts.
        """
        attempts = 0
        while True:
            reply = self.send(_CHAT, body)
            attempts += 1
            if reply.status == 200 and _is_json(reply.text):
                return reply
            if reply.status not in (0, 200) and reply.status not in _AGAIN:
                return reply
            if attempts > self.endpoint.max_retries or self._stopped(attempts, reply.retry_after):
                raise self.failure(reply, attempts=attempts)

    def send(self, path: str, body: Mapping[str, Any] | None = None) -> HttpReply:
        """One request, without further attempts."""
        endpoint = self.endpoint
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if endpoint.api_key:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(endpoint.url + path, data=data, headers=headers)
        try:
            with self._opener.open(request, timeout=endpoint.timeout) as response:
                return HttpReply(status=response.status, text=_read(response))
        except urllib.error.HTTPError as error:
            with error:
                return HttpReply(
                    status=error.code, text=_read(error), retry_after=_seconds(error.headers)
                )
        except TimeoutError:
            return HttpReply(status=0, why=self._late)
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            return HttpReply(status=0, why=self._late if late else str(error.reason))
        except (http.client.HTTPException, OSError) as error:
            return HttpReply(status=0, why=str(error) or type(error).__name__)

    @property
    def _late(self) -> str:
        return f"no reply within {self.endpoint.timeout:g} seconds"

    def models(self) -> list[str] | None:
        """Names of the models that the server offers; None if it does not tell."""
        reply = self.send("/models")
        try:
            found = json.loads(reply.text)["data"] if reply.status == 200 else None
            return None if found is None else [str(item["id"]) for item in found]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def failure(self, reply: HttpReply, *, attempts: int = 1) -> InputError | RunError:
        """What went wrong, and what to do, as an error to raise."""
        endpoint, key = self.endpoint, self.endpoint.key
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        said = self._said(reply)
        if reply.status == 0:
            late = reply.why == self._late
            advice = f"it needs a larger {key}.timeout" if late else f"{key}.url is right"
            return RunError(
                f"{endpoint.url}: the server cannot be reached{tried} ({self.shown(reply.why)}). "
                f"See whether it runs, and whether {advice}"
            )
        if reply.status in (401, 403):
            return InputError(Problem(where=f"{key}.api_key_env", message=self._refused(reply)))
        if reply.status == 200:
            return RunError(
                f"{endpoint.url}: the reply{tried} is no chat completion in JSON.{said} Does "
                f"{key}.url lead to an OpenAI-compatible server, normally with /v1 at its end?"
            )
        if 300 <= reply.status < 400:
            return InputError(
                Problem(
                    where=f"{key}.url",
                    message=f"{endpoint.url} sends requests on to another place "
                    f"({reply.status}), and a key must not go there unseen. Write the final url",
                )
            )
        offered = self.models()
        if offered is not None and endpoint.model not in offered:
            return InputError(Problem(where=f"{key}.model", message=self._unknown(offered) + said))
        if reply.status == 404 and offered is None:
            return InputError(
                Problem(
                    where=f"{key}.url",
                    message=f"nothing answers at {endpoint.url}{_CHAT} (404).{said} The url of an "
                    "OpenAI-compatible server normally ends in /v1",
                )
            )
        advice = "Wait and run the same command again: it goes on where it stopped"
        if reply.status not in _AGAIN:
            unlisted = " (the server lists no models)" if offered is None else ""
            advice = f"See whether {key}.model, {endpoint.model!r}, is what it serves{unlisted}"
        if reply.status == 429:
            advice += f", or lower {key}.concurrency"
        return RunError(f"{endpoint.url} answered {reply.status}{tried}.{said} {advice}")

    def _refused(self, reply: HttpReply) -> str:
        name = self.endpoint.api_key_env
        if name is None:
            state = "no key was sent. Name the environment variable that holds one"
        elif self.endpoint.api_key:
            state = f"the key in the environment variable {name} was sent. Set it to a valid one"
        else:
            state = f"no key was sent, because the environment variable {name} is not set. Set it"
        return f"{self.endpoint.url} refused access ({reply.status}); {state}.{self._said(reply)}"

    def _said(self, reply: HttpReply) -> str:
        """The server's own words as a sentence, if it had any."""
        words = self.shown(reply.text).rstrip(" .")
        return f" The server says: {words}." if words else ""

    def _unknown(self, offered: Sequence[str]) -> str:
        names = [printable(name, 100) for name in offered]
        if not names:
            return f"{self.endpoint.url} has no model {self.endpoint.model!r}, nor any other."
        guess = did_you_mean(self.endpoint.model, names).partition("Possible: ")[0]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        listed = ", ".join(names[:LISTED])
        start = f"{self.endpoint.url} has no model {self.endpoint.model!r}. "
        return f"{start}{guess}Possible: {listed}{more}."

    def shown(self, text: str) -> str:
        """What the server said, fit for a terminal and without the key."""
        try:
            error = json.loads(text)
            error = error.get("error", error.get("detail", error.get("message", error)))
            if isinstance(error, dict):
                error = error.get("message", error)
            text = error if isinstance(error, str) else json.dumps(error)
        except (ValueError, AttributeError, RecursionError):
            pass
        key = self.endpoint.api_key
        return printable(text.replace(key, "(the key)") if key else text)

    def _stopped(self, attempts: int, wanted: float | None) -> bool:
        """Wait before the next attempt; True if there shall be none."""
        grown: float = self.endpoint.pause * 2 ** (attempts - 1)
        return self.stop.wait(min(MAX_PAUSE, max(grown, wanted or 0.0)))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Never follow; the redirect itself becomes the error."""
        return None


def printable(text: str, length: int = 300) -> str:
    """A text on one line without control characters, cut to a length."""
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return text if len(text) <= length else text[:length] + "..."


def _read(response: Any) -> str:
    try:
        data: bytes = response.read(MAX_REPLY_BYTES)
    except http.client.IncompleteRead as error:
        data = error.partial
    return data.decode("utf-8", "replace")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _seconds(headers: Any) -> float | None:
    """Seconds to wait that a Retry-After header asks for; a date counts as no wish."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None
