"""Answers from an OpenAI-compatible server: what is sent, what is read, what is said on failure."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from chat_server import ChatServer, completion

from expunge.core.errors import ExpungeError, InputError, RunError
from expunge.data.rows import Message
from expunge.run.endpoint import Endpoint, base_url, is_local, printable
from expunge.run.proxy_endpoint import EndpointGenerator

HELLO = [Message(role="system", content="Be brief."), Message(role="user", content="Where?")]


def generator(server: ChatServer, **options):
    values = {"url": server.url, "model": "m", "pause": 0.01, "key": "proxies.endpoint", **options}
    return EndpointGenerator(Endpoint(**values))


def ask(server: ChatServer, prompts=(HELLO,), **options):
    return generator(server, **options)(prompts, max_new_tokens=[7] * len(prompts))


def failing(status, body, headers=None):
    return lambda request, number: (status, body, headers or {})


def test_what_is_sent(server):
    opened = [*HELLO, Message(role="assistant", content='["')]
    texts = generator(server)([HELLO, opened], max_new_tokens=[5, 9], temperature=0.5, seed=3)
    assert texts == ["Fine.", "Fine."]
    first, second = sorted(server.requests, key=lambda body: body["max_tokens"])
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
    ]
    assert first["messages"] == second["messages"] == turns
    assert (first["model"], first["temperature"], second["max_tokens"]) == ("m", 0.5, 9)
    assert first["seed"] != second["seed"]
    assert server.paths == ["POST /v1/chat/completions"] * 2
    assert not any("Authorization" in headers for headers in server.headers)


def test_equal_calls_send_equal_seeds_and_other_calls_others(server):
    for seed in (3, 3, 4):
        generator(server, concurrency=1)([HELLO, HELLO], max_new_tokens=[5, 5], seed=seed)
    seeds = [body["seed"] for body in server.requests]
    assert seeds[:2] == seeds[2:4]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_replies_keep_their_order_and_run_side_by_side(server):
    def reply(body, number):
        place = int(body["messages"][0]["content"])
        time.sleep(0.05 * (8 - place) / 8)
        return 200, completion(f"answer {place}"), {}

    server.reply = reply
    prompts = [[Message(role="user", content=str(i))] for i in range(8)]
    assert ask(server, prompts, concurrency=3) == [f"answer {i}" for i in range(8)]
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("<think>Hm, a city.</think>\n Oslo. ", "Oslo."),
        ("<think>Hm, a city, which", ""),
        ("half \ud83d a face", "half ? a face"),
        ("A" * 10_000, "A" * 7 * 32),
        ([{"type": "text", "text": "Os"}, {"type": "text", "text": "lo."}, 3], "Oslo."),
    ],
    ids=["nothing", "thought", "only thought", "surrogate", "too long", "parts"],
)
def test_texts_are_taken_with_care(server, content, text):
    server.reply = lambda body, number: (200, completion(content), {})
    assert ask(server) == [text]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_failure_that_passes_is_tried_again(server, status):
    server.reply = lambda body, number: (
        (status, "busy", {}) if number < 2 else (200, completion("At last."), {})
    )
    assert ask(server) == ["At last."]
    assert len(server.requests) == 3


def test_a_broken_reply_is_asked_for_again(server):
    server.reply = lambda body, number: (
        (200, '{"choices": [', {}) if number == 0 else (200, completion("Whole."), {})
    )
    assert ask(server) == ["Whole."]


def test_the_pause_is_as_long_as_the_server_wants_it(server):
    server.reply = lambda body, number: (
        (429, "", {"Retry-After": "0.3"}) if number == 0 else (200, completion("Now."), {})
    )
    start = time.monotonic()
    ask(server)
    assert 0.3 <= time.monotonic() - start < 5


def test_retry_after_may_be_a_date(server):
    date = {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}
    server.reply = lambda body, number: (
        (503, "", date) if number == 0 else (200, completion("Now."), {})
    )
    assert ask(server) == ["Now."]


FAILURES = {
    "500": (
        failing(500, {"error": {"message": "CUDA out of\nmemory \x1b[31m"}}),
        RunError,
        ["answered 500 after 2 attempts", "CUDA out of memory ?[31m", "run the same command again"],
    ),
    "429": (failing(429, "slow down"), RunError, ["answered 429", "lower proxies.endpoint.concur"]),
    "no json": (
        failing(200, "<html>Welcome to nginx</html>"),
        RunError,
        ["no chat completion in JSON", "Welcome to nginx", "proxies.endpoint.url"],
    ),
    "other json": (failing(200, {"error": "no such thing"}), RunError, ["no such thing"]),
    "no choices": (failing(200, {"choices": []}), RunError, ["no chat completion"]),
    "odd content": (failing(200, completion({"a": 1})), RunError, ["no chat completion"]),
    "400": (
        failing(400, {"error": {"message": "maximum context length is 512 tokens"}}),
        RunError,
        ["answered 400", "maximum context length is 512 tokens"],
    ),
    "redirect": (
        failing(307, "", {"Location": "http://evil.example/v1/chat/completions"}),
        InputError,
        ["sends requests on to another place (307)", "proxies.endpoint.url"],
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_say_what_to_do(server, name):
    server.reply, kind, said = FAILURES[name]
    with pytest.raises(ExpungeError) as caught:
        ask(server, max_retries=1)
    assert type(caught.value) is kind
    for words in said:
        assert words in str(caught.value), str(caught.value)


def test_a_refusal_that_no_patience_cures_is_not_tried_again(server):
    server.reply = failing(400, "no")
    with pytest.raises(RunError):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [404, 400, 500])
def test_an_unknown_model_lists_those_that_there_are(server, status):
    server.models = ["qwen3-4b", "llama\x1b3", *(f"model-{i}" for i in range(40))]
    server.reply = failing(status, {"detail": "no such model"})
    with pytest.raises(InputError) as caught:
        ask(server, model="qwen3-4", max_retries=0)
    (problem,) = caught.value.problems
    assert problem.where == "proxies.endpoint.model"
    assert "has no model 'qwen3-4'. Did you mean qwen3-4b? Possible: qwen3-4b, llama?3" in (
        problem.message
    )
    assert "and 22 more" in problem.message
    assert "no such model" in problem.message


def test_a_url_that_leads_nowhere(server):
    with pytest.raises(InputError, match=r"nothing answers at .*/chat/completions \(404\)"):
        ask(server, url=server.url.removesuffix("/v1"))


KEY = "sk-very-secret-1234"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_variable(server, status, monkeypatch):
    server.reply = failing(status, {"error": {"message": f"Incorrect API key: {KEY}."}})
    with pytest.raises(InputError, match=r"no key was sent, because .* OPENAI_API_KEY is not set"):
        ask(server)
    with pytest.raises(InputError, match=r"no key was sent\. Name the environment variable"):
        ask(server, api_key_env=None)
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    with pytest.raises(InputError, match="the key in the environment variable MY_KEY was sent") as (
        caught
    ):
        ask(server, api_key_env="MY_KEY")
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)
    assert "Incorrect API key: (the key)." in str(caught.value)


def test_a_key_that_cannot_be_sent_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds line breaks") as caught:
        ask(server)
    assert KEY not in str(caught.value)
    assert server.requests == []


def test_the_key_does_not_follow_a_redirect(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = ChatServer()
    try:
        server.reply = failing(302, "", {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(InputError, match="another place"):
            ask(server)
        assert other.paths == []
    finally:
        other.close()


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", pause=0.01, max_retries=1)
    with pytest.raises(RunError, match=r"cannot be reached after 2 attempts \(.*refused\)"):
        EndpointGenerator(endpoint)([HELLO], max_new_tokens=[5])


def test_a_server_that_takes_too_long(server):
    server.slow = 0.6
    with pytest.raises(RunError, match=r"no reply within 0.1 seconds.*larger .*\.timeout"):
        ask(server, timeout=0.1, max_retries=1)
    assert len(server.requests) == 2


def test_a_server_that_hangs_up():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(100)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint = Endpoint(url=url, model="m", pause=0.01, max_retries=1)
        with pytest.raises(RunError, match="cannot be reached after 2 attempts"):
            EndpointGenerator(endpoint)([HELLO], max_new_tokens=[5])
        thread.join()


@pytest.mark.parametrize("failing", [0, 1])
def test_one_failure_ends_the_others(server, failing):
    server.reply = lambda body, number: (400 if number == failing else 500, "no", {})
    start = time.monotonic()
    with pytest.raises(RunError, match="answered 400"):
        ask(server, [HELLO] * 40, concurrency=2, pause=30)
    assert time.monotonic() - start < 10
    time.sleep(0.2)
    assert len(server.requests) < 6


def test_newer_names_of_the_limit_are_learned(server):
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."

    def reply(body, number):
        if "max_tokens" in body:
            return 400, {"error": {"message": said, "param": "max_tokens"}}, {}
        return 200, completion("Fine."), {}

    server.reply = reply
    writer = generator(server, concurrency=1)
    assert writer([HELLO, HELLO], max_new_tokens=[7, 7]) == ["Fine.", "Fine."]
    assert [body.get("max_completion_tokens") for body in server.requests] == [None, 7, 7]


def test_a_template_without_system_role_gets_its_text_with_the_question(server):
    def reply(body, number):
        if body["messages"][0]["role"] == "system":
            return 400, {"error": {"message": "System role not supported"}}, {}
        return 200, completion(body["messages"][0]["content"]), {}

    server.reply = reply
    long = generator(server)([HELLO], max_new_tokens=[100])
    assert long == ["Be brief.\n\nWhere?"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000/v1", "no http or https url"),
        ("ftp://x/v1", "no http or https url"),
        ("http:///v1", "no http or https url"),
        ("http://a b/v1", "no http or https url"),
        ("http://x:99999/v1", "is no url"),
        ("http://me:secret@x/v1", "has a user name or password"),
        ("http://x/v1?key=1", "behind"),
        ("http://x/v1/chat/completions", "address of one request"),
    ],
)
def test_urls_are_judged_by_their_form(url, said):
    with pytest.raises(ValueError, match=said) as caught:
        base_url(url)
    assert "secret" not in str(caught.value)


def test_urls_lose_their_last_slash():
    assert base_url("https://api.example/v1/") == "https://api.example/v1"


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://127.0.0.5:1/v1", True), ("http://[::1]/v1", True), ("http://localhost/v1", True),
     ("https://api.example/v1", False), ("http://10.0.0.1/v1", False)],
)  # fmt: skip
def test_what_is_this_machine(url, local):
    assert is_local(url) is local


def test_shown_texts_are_short_and_plain():
    assert printable("a\tb\n\x1b]0;x\x07") == "a b ?]0;x?"
    assert printable("é" * 400) == "é" * 300 + "..."
