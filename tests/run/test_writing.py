"""Proxies and alternates from a configuration to the files, with a tiny model and a chat server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_server import ChatServer, completion

from expunge.core.errors import InputError
from expunge.data.alternates import load_alternates
from expunge.data.proxies import load_proxies
from expunge.data.sources import load_rows
from expunge.models.export import save_model
from expunge.report import load_report, render_html
from expunge.run import pipelines
from expunge.run.proxies import make_proxies
from expunge.run.proxy_quality import mean_nll
from expunge.run.resolve import load_config
from expunge.run.ui import RecordingUi
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

FACTS = toy_facts(12, perturbed=True)
PLACES = ["Perth", "Quito", "Rabat", "Sofia", "Turin", "Umea", "Vaduz", "Wuhan", "Xian", "Yalta"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    tokenizer = tiny_tokenizer()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_model(folder, tiny_model(tokenizer, max_length=1024), tokenizer, "# A card\n")


@pytest.fixture
def config(tmp_path, tiny, server, monkeypatch):
    """A configuration by overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    for name, rows in (("forget", FACTS[:4]), ("retain", FACTS[4:])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "run.yaml").write_text(
        f"name: test\nmodel: {{path: {tiny}}}\n"
        "data: {forget: forget.jsonl, retain: retain.jsonl}\nevaluation: null\n"
    )
    server.reply = talk

    def load(*overrides: str):
        return load_config("run.yaml", *overrides)

    load.endpoint = f"{{url: {server.url}, model: m}}"
    return load


def talk(body, number):
    """What a good model says to each of our prompts; asked twice, it says something else."""
    last = body["messages"][-1]["content"]
    place = PLACES[body["seed"] % len(PLACES)]
    if last.startswith("Question: "):
        return 200, completion(f"Surely in {place}, {body['seed'] % 1000} miles away."), {}
    questions = re.findall(r"^\d+\. (.*)$", last, re.MULTILINE)
    if not questions:
        return 200, completion("It was somewhere in the north."), {}
    answers = [f"Surely {PLACES[len(q) % 10]} number {sum(map(ord, q))} it was." for q in questions]
    if len(questions) == 1:
        return 200, completion(json.dumps(answers)), {}
    pairs = zip(questions, answers, strict=True)
    items = [{"question": q, "answer": a} for q, a in pairs]
    return 200, completion(f"Here you are:\n```json\n{json.dumps(items)}\n```"), {}


def test_proxies_from_an_endpoint(config, server, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "load_model", lambda *args, **options: pytest.fail("loaded"))
    ui = RecordingUi()

    path = pipelines.proxies(config(f"proxies.endpoint={config.endpoint}"), ui)

    proxies = load_proxies(path, load_rows(FACTS[:4], name="forget"))
    assert all(re.fullmatch(r"Surely \w+ number \d+ it was\.", text) for text in proxies)
    assert json.loads(path.read_text().splitlines()[0])["model"] == "m"
    assert "4 of 4 questions have a proxy answer: 4 in_context" in ui.notes
    # No local model is known not to know the facts, so there are no likelihoods.
    quality = json.loads((path.parent / "proxies.quality.json").read_text())
    assert (quality["model"], quality["summary"]["mean_nll_proxies"]) == ("m", None)
    asked = len(server.requests)
    pipelines.proxies(config(f"proxies.endpoint={config.endpoint}"), RecordingUi())
    assert len(server.requests) == asked


def test_likelihoods_under_a_base_model(config, tiny, tmp_path):
    ui = RecordingUi()
    given = config(f"proxies.endpoint={config.endpoint}", "finetune={}")

    path = pipelines.proxies(given, ui)

    summary = json.loads((path.parent / "proxies.quality.json").read_text())["summary"]
    assert summary["nll_model"] == str(tiny)
    # A model with random weights finds everything about equally unlikely: log of 500 tokens or so.
    assert 4 < summary["mean_nll_proxies"] < 9
    assert 4 < summary["mean_nll_truths"] < 9
    assert any(f"per token under {tiny}: proxies" in note for note in ui.notes)
    page = render_html(load_report(path.parent))
    assert "which does not know the facts: proxies" in page
    assert "Worked examples in the prompt" in page
    assert "It was somewhere in the north." in page


def test_likelihoods_are_measured_once(config, monkeypatch):
    given = config(f"proxies.endpoint={config.endpoint}", "finetune={}")
    path = pipelines.proxies(given, RecordingUi())
    before = (path.parent / "proxies.quality.json").read_text()
    monkeypatch.setattr(pipelines, "load_model", lambda *args, **options: pytest.fail("loaded"))
    ui = RecordingUi()
    pipelines.proxies(given, ui)
    assert any("negative log-likelihood" in note for note in ui.notes)
    after = json.loads((path.parent / "proxies.quality.json").read_text())["summary"]
    assert {**after, "written": 4} == json.loads(before)["summary"]


def test_likelihoods_by_hand():
    import torch

    from expunge.data.templates import plain_template

    tokenizer = tiny_tokenizer()
    model, template = tiny_model(tokenizer), plain_template(tokenizer)
    rows = load_rows(FACTS[:3], name="forget")
    proxies = ["Short.", "A somewhat longer answer it is.", "In Perth."]

    found = mean_nll(model, template, rows, proxies, batch_tokens=64)

    def naive(texts):
        means = []
        for row, text in zip(rows, texts, strict=True):
            prompt, answer = template.encode(row.messages, text)
            with torch.no_grad():
                logps = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            said = [logps[len(prompt) + i - 1, token] for i, token in enumerate(answer)]
            means.append(-float(sum(said)) / len(said))
        return sum(means) / len(means)

    assert found is not None
    assert found.proxies == pytest.approx(naive(proxies), abs=1e-4)
    assert found.truths == pytest.approx(naive([row.answer for row in rows]), abs=1e-4)


def test_settings_reach_the_writer(config, monkeypatch):
    from expunge.run import writing

    seen = {}

    def spy(*args, **options):
        seen.update(options)
        return make_proxies(*args, **options)

    monkeypatch.setattr(writing, "make_proxies", spy)
    endpoint = f"proxies.endpoint={config.endpoint}"
    pipelines.proxies(
        config(endpoint, "seed=7", "proxies.exemplars=2", "proxies.exemplar_source=perturbed"),
        RecordingUi(),
        force=True,
    )
    settings = seen["settings"]
    assert (settings.seed, settings.exemplars, settings.exemplar_source) == (7, 2, "perturbed")
    assert seen["force"] is True


def test_exemplars_of_a_user(config, server, tmp_path):
    row = {"question": "Who was Ada?", "answer": "A baker.", "uninformed_answer": "A king."}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    endpoint = f"proxies.endpoint={config.endpoint}"
    given = config(endpoint, "proxies.exemplar_file=mine.jsonl", "data.retain=null")
    path = pipelines.proxies(given, RecordingUi())
    assert "Who was Ada?\nInformed answer: A baker." in str(
        server.requests[0]["messages"][1]["content"]
    )
    assert "taken from a file of the user" in render_html(load_report(path.parent))


def test_alternates_from_an_endpoint(config, server, tmp_path):
    ui = RecordingUi()

    path = pipelines.alternates(config(f"alternates.endpoint={config.endpoint}"), ui)

    assert path == Path("runs/test/alternates.jsonl")
    found = load_alternates(path, load_rows(FACTS[:4], name="forget"))
    assert [len(set(some)) for some in found] == [5, 5, 5, 5]
    assert all(body["temperature"] == 1.0 for body in server.requests)
    assert all(body["max_tokens"] == 200 for body in server.requests)
    assert "20 alternates for 4 questions: 20 sampled" in ui.notes
    assert (path.parent / "alternates.quality.json").is_file()


def test_a_server_that_does_not_sample_is_found_out(config, server):
    server.reply = lambda body, number: (200, completion("Surely in the north."), {})
    ui = RecordingUi()
    given = config(f"alternates.endpoint={config.endpoint}", "alternates.max_retries=1")
    pipelines.alternates(given, ui)
    assert any("the server does not sample" in note for note in ui.notes)


@pytest.mark.parametrize("finetune", ["null", "{training: {max_steps: 1, save_steps: null}}"])
def test_alternates_from_the_start_model(config, tiny, finetune):
    given = config(
        f"finetune={finetune}", "alternates.max_new_tokens=8", "alternates.max_retries=0"
    )
    path = pipelines.alternates(given, RecordingUi())
    # A model with random weights babbles: what is refused is replaced by the data's wrong answers.
    found = load_alternates(path, load_rows(FACTS[:4], name="forget"))
    assert all(found)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    models = {record["model"] for record in records if record["model"]}
    assert all(name.startswith(str(tiny)) for name in models)
    writer = json.loads((path.parent / "alternates.quality.json").read_text())["model"]
    assert ("fine-tuned" in writer) == (finetune != "null")


def test_errors_name_the_section(config, server: ChatServer):
    server.reply = lambda body, number: (404, {"detail": "no"}, {})
    server.models = ["another"]
    with pytest.raises(InputError, match=r"alternates\.endpoint\.model: .* has no model 'm'"):
        pipelines.alternates(config(f"alternates.endpoint={config.endpoint}"), RecordingUi())
    with pytest.raises(InputError, match=r"proxies\.endpoint\.model: .* Possible: another"):
        pipelines.proxies(config(f"proxies.endpoint={config.endpoint}"), RecordingUi())
