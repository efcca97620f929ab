"""The pipeline that writes an alternates file, driven by scripted generators and a tiny model."""

import json
import re

import pytest

from expunge.core.errors import InputError
from expunge.data.alternates import (
    AlternateSettings,
    expand,
    load_alternates,
    read_alternates,
)
from expunge.data.sources import load_rows
from expunge.run import alternates
from expunge.run.alternates import make_alternates
from expunge.run.proxy_generator import LocalGenerator
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

FACTS = toy_facts(24, perturbed=True)
TRUTHS = {fact["question"]: fact["answer"] for fact in FACTS}
PLAIN = [{key: fact[key] for key in ("question", "answer")} for fact in FACTS]


class Scripted:
    """A generator that answers by rule and keeps what it was asked."""

    def __init__(self, answer=None, *, die_after=None):
        self.answer = answer or (lambda question, seed, place: f"Surely in {seed % 97} {place}.")
        self.calls, self.die_after = [], die_after

    def __call__(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        assert len(max_new_tokens) == len(prompts)
        if self.die_after is not None and len(self.calls) >= self.die_after:
            raise KeyboardInterrupt
        asked = [re.match(r"Question: (.*)\n", prompt[0].content)[1] for prompt in prompts]
        self.calls.append(
            {"asked": asked, "temperature": temperature, "seed": seed, "limits": max_new_tokens}
        )
        return [self.answer(question, seed, place) for place, question in enumerate(asked)]


@pytest.fixture
def forget():
    return load_rows(FACTS[:10], name="forget")


@pytest.fixture
def run(tmp_path, forget):
    def make(generator, rows=forget, **more):
        path = more.pop("path", tmp_path / "alternates.jsonl")
        settings = AlternateSettings(**more.pop("settings", {}))
        return make_alternates(rows, generator, path, model_name="fake", settings=settings, **more)

    return make


def lines(tmp_path):
    return read_alternates(tmp_path / "alternates.jsonl")


def test_every_question_is_asked_five_times(run, tmp_path, forget):
    generator = Scripted()
    summary = run(generator)
    first, second = generator.calls
    assert first["asked"] == [row.question for row in forget[:8] for _ in range(5)]
    assert second["asked"] == [row.question for row in forget[8:] for _ in range(5)]
    assert (first["temperature"], set(first["limits"])) == (1.0, {200})
    assert first["seed"] != second["seed"]
    assert (summary.alternates, summary.written, summary.short) == (50, 50, 0)
    found = load_alternates(tmp_path / "alternates.jsonl", forget)
    assert all(len(set(some)) == 5 for some in found)
    rows, flat = expand(forget, found)
    assert (len(rows), len(flat)) == (50, 50)
    line = lines(tmp_path)[0]
    assert (line.generator, line.model, line.answer) == ("sampled", "fake", FACTS[0]["answer"])
    assert len(line.prompt_sha256) == 64


def test_the_second_run_does_nothing(run, tmp_path):
    run(Scripted())
    before = (tmp_path / "alternates.jsonl").read_bytes()
    generator = Scripted()
    summary = run(generator)
    assert generator.calls == []
    assert (summary.written, summary.other_settings, summary.alternates) == (0, 0, 50)
    assert (tmp_path / "alternates.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda question: "I don't have that information.", "refusal"),
        (lambda question: TRUTHS[question], "too_close"),
        (lambda question: "", "empty"),
        (lambda question: "Question: and then?", "empty"),
        (lambda question: "Always the same place.", "repeats_another"),
    ],
)
def test_refused_draws_are_drawn_again(run, tmp_path, bad, reason):
    def answer(question, seed, place):
        hopeless = question == FACTS[3]["question"] and seed == generator.calls[0]["seed"]
        return bad(question) if hopeless else f"Surely in {seed % 97} {place}."

    generator = Scripted(answer)
    summary = run(generator)
    wrong = 4 if reason == "repeats_another" else 5
    assert generator.calls[1]["asked"] == [FACTS[3]["question"]] * wrong
    assert summary.rejected == {reason: wrong}
    assert summary.short == 0
    assert next(line for line in lines(tmp_path) if line.rejected).rejected == (reason,) * wrong


def test_fewer_than_wanted_are_enough_and_not_asked_for_again(run, tmp_path, forget):
    generator = Scripted(lambda question, seed, place: "Always the same place.")
    summary = run(generator, settings={"max_retries": 1})
    assert (summary.alternates, summary.short) == (10, 10)
    assert any("server does not sample" in said for said in summary.lines())
    again = Scripted()
    run(again, settings={"max_retries": 1})
    assert again.calls == []
    run(again)  # other settings may bring more
    assert len(load_alternates(tmp_path / "alternates.jsonl", forget)[0]) == 5
    assert load_alternates(tmp_path / "alternates.jsonl", forget)[0][0] == "Always the same place."


def test_then_the_data_gives_wrong_answers(run, tmp_path):
    summary = run(Scripted(lambda question, seed, place: ""), settings={"max_retries": 0})
    assert set(summary.generators) == {"perturbed_answer"}
    for line in lines(tmp_path):
        fact = next(fact for fact in FACTS if fact["question"] == line.question)
        assert line.alternate in fact["perturbed_answer"]
        assert line.model == ""


def test_what_stays_open_is_said_and_can_be_filled_in_by_hand(run, tmp_path):
    rows = load_rows(PLAIN[:3], name="forget")
    path = tmp_path / "alternates.jsonl"
    with pytest.raises(InputError) as caught:
        run(Scripted(lambda question, seed, place: ""), rows)
    assert "3 of 3 questions have no alternate answer" in str(caught.value)
    assert "(answers refused: empty)" in str(caught.value)
    with pytest.raises(InputError, match="empty alternate"):
        load_alternates(path, rows)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "alternate": "By hand."}) + "\n" for r in records))
    generator = Scripted()
    assert run(generator, rows).generators == {"hand": 3}
    assert generator.calls == []


def test_removed_lines_stay_away_until_all_of_a_question_are_gone(run, tmp_path):
    run(Scripted())
    path = tmp_path / "alternates.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[2:5] + kept[10:]))
    generator = Scripted()
    summary = run(generator)
    assert [set(call["asked"]) for call in generator.calls] == [{FACTS[1]["question"]}]
    assert (summary.written, summary.short) == (5, 1)


def test_edited_lines_are_kept(run, tmp_path):
    run(Scripted())
    path = tmp_path / "alternates.jsonl"
    text = path.read_text()
    first = json.loads(text.splitlines()[0])
    path.write_text(text.replace(first["alternate"], "My own tale.", 1))
    summary = run(Scripted(), settings={"per_question": 6})
    assert lines(tmp_path)[0].alternate == "My own tale."
    assert (summary.generators, summary.written) == ({"hand": 1, "sampled": 59}, 10)
    assert run(Scripted(), force=True).generators == {"sampled": 50}


def test_a_killed_run_resumes_to_the_same_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(alternates, "QUESTIONS_PER_CALL", 3)
    straight = tmp_path / "straight" / "alternates.jsonl"
    run(Scripted(), path=straight)
    with pytest.raises(KeyboardInterrupt):
        run(Scripted(die_after=2))
    assert len(lines(tmp_path)) == 30
    generator = Scripted()
    run(generator)
    assert len(generator.calls) == 2
    assert (tmp_path / "alternates.jsonl").read_bytes() == straight.read_bytes()


def test_another_seed_draws_others(run, tmp_path):
    run(Scripted())
    before = [line.alternate for line in lines(tmp_path)]
    run(Scripted(), force=True, settings={"seed": 1})
    assert [line.alternate for line in lines(tmp_path)] != before


def test_a_row_that_is_there_twice_is_asked_once(run, tmp_path):
    rows = load_rows([FACTS[0], FACTS[1], FACTS[0]], name="forget")
    generator = Scripted()
    run(generator, rows)
    assert len(generator.calls[0]["asked"]) == 10
    found = load_alternates(tmp_path / "alternates.jsonl", rows)
    assert found[0] == found[2]
    assert [len(some) for some in found] == [5, 5, 5]


def test_a_line_for_two_rows_is_written_once(run, tmp_path):
    facts = [{"question": "Born where?", "answer": f"In {city}."} for city in ("Oslo", "Lima")]
    rows = load_rows(facts, name="forget")
    path = tmp_path / "alternates.jsonl"
    path.write_text('{"question": "Born where?", "alternate": "At sea."}\n')
    run(Scripted(), rows, settings={"per_question": 2})
    assert [line.alternate for line in lines(tmp_path)].count("At sea.") == 1
    assert [len(some) for some in load_alternates(path, rows)] == [2, 2]


def test_a_file_of_another_forget_set_is_not_overwritten(run, tmp_path):
    run(Scripted())
    before = (tmp_path / "alternates.jsonl").read_bytes()
    with pytest.raises(InputError, match="no question of the forget set"):
        run(Scripted(), load_rows(FACTS[:5], name="forget"))
    assert (tmp_path / "alternates.jsonl").read_bytes() == before


def test_plain_text_has_no_questions(run):
    with pytest.raises(InputError, match="plain text"):
        run(Scripted(), load_rows([{"text": "Once upon a time."}], name="forget"))


def test_progress_is_told(run):
    told = []
    run(Scripted(), on_progress=lambda *state: told.append(state))
    assert told == [(0, 10, "drawing"), (8, 10, "drawing"), (10, 10, "drawing")]


def test_a_tiny_model_draws_different_alternates(run, tmp_path, monkeypatch):
    monkeypatch.setattr(alternates, "reject_reason", lambda text, **rules: None)
    tokenizer = tiny_tokenizer()
    local = LocalGenerator(tiny_model(tokenizer, max_length=2048), tokenizer)
    rows = load_rows(FACTS[:2], name="forget")
    settings = {"max_new_tokens": 6, "per_question": 3}
    run(local, rows, settings=settings)
    found = load_alternates(tmp_path / "alternates.jsonl", rows)
    assert [len(set(some)) for some in found] == [3, 3]
