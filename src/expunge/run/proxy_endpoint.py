"""A server that speaks the chat-completions protocol as a writer of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from expunge.data.rows import Message
from expunge.run.endpoint import Client, Endpoint, HttpReply

CHARACTERS_PER_TOKEN = (
    32  # far more than any tokenizer; only a server that ignores limits gets there
)
_THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)


class EndpointGenerator:
    """An OpenAI-compatible server as a `Generator`.

    Requests of one call run side by side. Only what every such server knows is sent: messages,
    `max_tokens`, `temperature` and a `seed`, another one for every conversation of a call. Whether
    equal seeds give equal replies is up to the server.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        # Learned from the server's refusals, then kept for all further requests.
        self._limit_name = "max_tokens"
        self._system_role = True

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """The replies; what a conversation already has of one is left to the server to write."""
        client = Client(endpoint=self.endpoint)
        pool = ThreadPoolExecutor(max_workers=self.endpoint.concurrency)
        try:
            futures = [
                pool.submit(
                    self._reply,
                    client,
                    prompt,
                    limit,
                    {"temperature": temperature, "seed": (seed * 1_000_003 + position) % 2**31},
                )
                for position, (prompt, limit) in enumerate(
                    zip(prompts, max_new_tokens, strict=True)
                )
            ]
            # Whichever fails first ends the rest, not only the one that is waited for.
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for error in (future.exception() for future in done):
                if error is not None:
                    raise error
            return [future.result() for future in futures]
        finally:
            # After an error the others end with what is under way, and ask for nothing more.
            client.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(
        self, client: Client, prompt: Sequence[Message], limit: int, options: dict[str, Any]
    ) -> str:
        """The text of one reply."""
        while True:
            limit_name, system_role = self._limit_name, self._system_role
            reply = client.chat(
                {
                    "model": self.endpoint.model,
                    "messages": _messages(prompt, system_role=system_role),
                    limit_name: limit,
                    **options,
                }
            )
            if reply.status == 200:
                return _text(client, reply)[: CHARACTERS_PER_TOKEN * limit]
            # It can learn twice at most, each time for good.
            if not self._learn(reply, limit_name, system_role=system_role):
                raise client.failure(reply)

    def _learn(self, reply: HttpReply, limit_name: str, *, system_role: bool) -> bool:
        """Whether the refusal tells how to ask instead; then it is kept."""
        if reply.status not in (400, 422):
            return False
        said = reply.text.lower()
        if limit_name == "max_tokens" and "max_completion_tokens" in said:
            self._limit_name = "max_completion_tokens"  # models of OpenAI since o1
            return True
        if system_role and re.search(r"system\W+(?:role|message|prompt)", said):
            self._system_role = False  # templates without one, such as Gemma 2's
            return True
        return False


def _messages(prompt: Sequence[Message], *, system_role: bool) -> list[dict[str, str]]:
    """A conversation in the form of the protocol.

    An assistant message at the end, the beginning of the reply, is left out: some servers go on
    with it, others answer it, and some refuse it.
    """
    turns = list(prompt[:-1] if prompt[-1].role == "assistant" else prompt)
    if not system_role and len(turns) > 1 and turns[0].role == "system":
        system, first, *rest = turns
        opened = Message(role=first.role, content=f"{system.content}\n\n{first.content}")
        turns = [opened, *rest]
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _text(client: Client, reply: HttpReply) -> str:
    """What the model said; "" where it declined or has spent its tokens on thinking.

    Raises:
        RunError: It is JSON, but no chat completion.
    """
    try:
        message = json.loads(reply.text)["choices"][0]["message"]
        content = message.get("content")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise client.failure(reply) from error
    if isinstance(content, list):
        # The protocol has content in parts as well.
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise client.failure(reply)
    # A lone surrogate is valid JSON but no text that a file can hold.
    text = (content or "").encode("utf-8", "replace").decode()
    return _THOUGHT.sub("", text).strip()


def make_endpoint(section: Any, *, key: str) -> Endpoint:
    """The endpoint of a configuration section.

    Args:
        section: `proxies.endpoint` or `alternates.endpoint`.
        key: Its dotted path, for messages.
    """
    return Endpoint(**section.model_dump(), key=key)
