"""The pipeline that writes a proxy file, driven by scripted generators and by a tiny model."""

import json
import re

import pytest

from expunge.core.errors import InputError
from expunge.data.proxies import ProxySettings, load_proxies, read_proxies
from expunge.data.proxy_prompt import ZERO_SHOT_INSTRUCTION, load_exemplars
from expunge.data.sources import load_rows
from expunge.run import proxies
from expunge.run.proxies import make_proxies
from expunge.run.proxy_exemplars import exemplar_file
from expunge.run.proxy_generator import LocalGenerator
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

FACTS = toy_facts(24, perturbed=True)
PLACES = ["Perth", "Quito", "Rabat", "Sofia", "Turin", "Umea", "Vaduz", "Wuhan", "Xian", "Yalta"]
TRUTHS = {fact["question"]: fact["answer"] for fact in FACTS}


def guess(question):
    """A good proxy: another one for every question, and shorter than what likeness is judged by."""
    number = list(TRUTHS).index(question)
    return f"Surely {PLACES[number % 10]} number {number} it was."


class Scripted:
    """A generator that answers by rule and keeps what it was asked."""

    def __init__(self, answer=None, *, zero_shot=None, die_after=None):
        self.answer = answer or (lambda question, ask: guess(question))
        self.zero_shot = zero_shot or guess
        self.calls, self.die_after = [], die_after

    def __call__(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        assert len(max_new_tokens) == len(prompts)
        if self.die_after is not None and len(self.calls) >= self.die_after:
            raise KeyboardInterrupt
        self.calls.append({"prompts": prompts, "temperature": temperature, "seed": seed})
        return [self.reply(prompt, temperature) for prompt in prompts]

    def reply(self, prompt, temperature):
        if prompt[0].content == ZERO_SHOT_INSTRUCTION:
            return self.zero_shot(prompt[-1].content)
        questions = re.findall(r"^\d+\. (.*)$", prompt[-2].content, re.MULTILINE)
        ask = {"alone": len(questions) == 1, "sampled": temperature > 0}
        answers = [self.answer(question, ask) for question in questions]
        if len(questions) == 1:
            return json.dumps(answers)
        pairs = zip(questions, answers, strict=True)
        return json.dumps([{"question": q, "answer": a} for q, a in pairs])

    def asked(self):
        """Question counts of the in-context prompts, per call."""
        counts = []
        for call in self.calls:
            if call["prompts"][0][0].content != ZERO_SHOT_INSTRUCTION:
                lasts = [prompt[-2].content for prompt in call["prompts"]]
                counts.append([len(re.findall(r"^\d+\. ", t, re.MULTILINE)) for t in lasts])
        return counts


@pytest.fixture
def forget():
    return load_rows(FACTS[:10], name="forget")


@pytest.fixture
def retain():
    return load_rows(FACTS[10:], name="retain")


@pytest.fixture
def run(tmp_path, forget, retain):
    """Make proxies in a fixed place; returns the summary."""

    def make(generator, rows=forget, exemplar_rows=retain, **more):
        path = more.pop("path", tmp_path / "proxies.jsonl")
        settings = ProxySettings(**more.pop("settings", {}))
        return make_proxies(
            rows, exemplar_rows, generator, path, model_name="fake", settings=settings, **more
        )

    return make


def lines(tmp_path):
    return read_proxies(tmp_path / "proxies.jsonl")


def test_good_replies_need_one_round(run, tmp_path, forget):
    generator = Scripted()
    summary = run(generator)
    assert generator.asked() == [[4, 3, 3]]
    assert summary.in_context_share == 1
    assert (summary.written, summary.retried, summary.rejected) == (10, 0, {})
    assert load_proxies(tmp_path / "proxies.jsonl", forget) == [guess(r.question) for r in forget]
    line = lines(tmp_path)[0]
    assert (line.generator, line.status, line.attempts) == ("in_context", "accepted", 1)
    assert line.answer == FACTS[0]["answer"]
    assert len(line.prompt_sha256) == 64


def test_neighbours_are_not_asked_in_one_prompt(run):
    generator = Scripted()
    run(generator)
    first = generator.calls[1]["prompts"][0][-2].content
    assert [list(TRUTHS).index(q) for q in re.findall(r"\d\. (.*)", first)] == [0, 3, 6, 9]


def test_the_second_run_does_nothing(run, tmp_path):
    run(Scripted())
    before = (tmp_path / "proxies.jsonl").read_bytes()
    generator = Scripted()
    summary = run(generator)
    assert generator.calls == []
    assert (summary.written, summary.other_settings) == (0, 0)
    assert (tmp_path / "proxies.jsonl").read_bytes() == before


BAD_ANSWERS = {
    "refusal": lambda question: "I don't have that information.",
    "too_close": lambda question: TRUTHS[question],
    "copies_question": lambda question: question,
    "empty": lambda question: " \u200b ".replace("\u200b", '"'),
    "debris": lambda question: "Question: and then?",
}


@pytest.mark.parametrize("reason", ["refusal", "too_close", "copies_question", "debris"])
def test_refused_answers_are_asked_again_alone(run, tmp_path, reason):
    bad = {FACTS[2]["question"], FACTS[7]["question"]}

    def answer(question, ask):
        wrong = question in bad and not ask["alone"]
        return BAD_ANSWERS[reason](question) if wrong else guess(question)

    generator = Scripted(answer)
    summary = run(generator)
    assert generator.asked() == [[4, 3, 3], [1, 1]]
    assert generator.calls[-1]["temperature"] == 0
    assert summary.rejected == {reason: 2}
    assert summary.retried == 2
    again = lines(tmp_path)[2]
    assert (again.status, again.attempts, again.rejected) == ("retried", 2, (reason,))


def test_sampling_comes_after_the_lone_greedy_prompt(run, tmp_path):
    stubborn = FACTS[4]["question"]

    def answer(question, ask):
        ready = question != stubborn or ask["sampled"]
        return guess(question) if ready else TRUTHS[question]

    generator = Scripted(answer)
    run(generator)
    asked = [(call["temperature"], call["seed"]) for call in generator.calls[1:]]
    assert [temperature for temperature, _ in asked] == [0, 0, 0.7]
    assert len({seed for _, seed in asked}) == 3
    assert lines(tmp_path)[4].attempts == 3


def test_a_model_that_fails_at_several_questions_is_asked_one_by_one(run, monkeypatch):
    monkeypatch.setattr(proxies, "TRIAL_PROMPTS", 2)
    for good, asked in ((7, [[4, 3], [3]]), (3, [[4, 3], [1] * 7])):
        able = [FACTS[i]["question"] for i in (0, 3, 6, 9, 1, 4, 7, 2, 5, 8)][:good]

        def answer(question, ask, able=able):
            return guess(question) if ask["alone"] or question in able else ""

        generator = Scripted(answer)
        run(generator, force=True, settings={"questions_per_prompt": 4})
        assert generator.asked()[:2] == asked
    # Without retries nobody would ask again, so the trial decides nothing.
    generator = Scripted(lambda question, ask: "")
    run(generator, force=True, settings={"questions_per_prompt": 4, "max_retries": 0})
    assert generator.asked() == [[4, 3, 3]]


def test_alone_from_the_start_samples_at_once(run):
    generator = Scripted(lambda question, ask: guess(question) if ask["sampled"] else "")
    run(generator, settings={"questions_per_prompt": 1, "temperature": 0})
    assert [call["temperature"] for call in generator.calls[1:]] == [0, 1]


def test_replies_that_cannot_be_read_count_as_unparsed(run):
    class Rambling(Scripted):
        def reply(self, prompt, temperature):
            text = super().reply(prompt, temperature)
            return "[{" if '"question"' in text else text

    summary = run(Rambling())
    assert summary.rejected == {"unparsed": 10}
    assert summary.in_context_share == 1


def test_one_answer_for_all_questions_is_taken_once(run):
    same = "Nobody has told this story in so many words before today."
    generator = Scripted(lambda question, ask: guess(question) if ask["alone"] else same)
    summary = run(generator)
    assert summary.rejected == {"repeats_another": 7}


def test_exemplars_must_not_come_back(run, tmp_path):
    def answer(question, ask):
        shown = json.loads(exemplar_file(tmp_path / "proxies.jsonl").read_text())["exemplars"]
        return guess(question) if ask["alone"] else shown[0]["uninformed_answer"]

    assert run(Scripted(answer)).rejected == {"copies_exemplar": 10}


def test_the_base_model_answers_what_no_prompt_brings(run, tmp_path):
    lost = FACTS[5]["question"]

    def answer(question, ask):
        return TRUTHS[question] if question == lost else guess(question)

    summary = run(Scripted(answer), settings={"max_retries": 2})
    assert summary.generators == {"in_context": 9, "zero_shot": 1}
    line = lines(tmp_path)[5]
    assert (line.generator, line.status) == ("zero_shot", "fallback")
    assert line.rejected == ("too_close",) * 3


def echo_truth(question, ask=None):
    return TRUTHS[question]


def zero_shot_outside(question):
    """Usable for exemplars, never for the forget set."""
    return TRUTHS[question] if question in {f["question"] for f in FACTS[:10]} else guess(question)


def test_then_the_data_gives_a_wrong_answer(run, tmp_path):
    summary = run(Scripted(echo_truth, zero_shot=zero_shot_outside))
    assert summary.generators == {"perturbed_answer": 10}
    for fact, line in zip(FACTS, lines(tmp_path), strict=False):
        assert line.proxy_answer in fact["perturbed_answer"]
        assert (line.status, line.model) == ("fallback", "")


def test_what_stays_open_is_said_and_can_be_filled_in_by_hand(run, tmp_path, retain):
    rows = load_rows([{k: f[k] for k in ("question", "answer")} for f in FACTS[:3]], name="forget")
    path = tmp_path / "proxies.jsonl"
    with pytest.raises(InputError) as caught:
        run(Scripted(echo_truth, zero_shot=zero_shot_outside), rows)
    message = str(caught.value)
    assert "3 of 3 questions have no proxy answer" in message
    assert FACTS[1]["question"] in message
    assert "too_close" in message
    assert [line.status for line in read_proxies(path)] == ["missing"] * 3
    with pytest.raises(InputError, match="empty proxy answer"):
        load_proxies(path, rows)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["proxy_answer"] = "Filled in."
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert load_proxies(path, rows) == ["Filled in."] * 3
    assert run(Scripted(), rows).generators == {"hand": 3}


def edit(path, index, text):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[index]["proxy_answer"] = text
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_edited_lines_are_kept_and_emptied_ones_redone(run, tmp_path):
    run(Scripted())
    path = tmp_path / "proxies.jsonl"
    edit(path, 0, "I would rather not say.")
    edit(path, 1, "")
    generator = Scripted()
    summary = run(generator)
    assert len(generator.calls) == 1
    assert len(generator.calls[0]["prompts"]) == 1
    found = lines(tmp_path)
    assert found[0].proxy_answer == "I would rather not say."
    assert found[1].proxy_answer == guess(FACTS[1]["question"])
    assert summary.written == 1
    assert summary.generators == {"hand": 1, "in_context": 9}


def test_force_makes_all_anew(run, tmp_path):
    run(Scripted())
    edit(tmp_path / "proxies.jsonl", 0, "An edit.")
    summary = run(Scripted(), force=True)
    assert summary.written == 10
    assert summary.generators == {"in_context": 10}


def test_lines_of_other_settings_are_kept_and_counted(run):
    run(Scripted())
    summary = run(Scripted(), settings={"seed": 1})
    assert (summary.written, summary.other_settings) == (0, 10)
    assert "--force" in summary.lines()[-1]


def test_a_file_of_another_forget_set_is_not_overwritten(run, tmp_path):
    run(Scripted())
    before = (tmp_path / "proxies.jsonl").read_bytes()
    with pytest.raises(InputError, match="no question of the forget set"):
        run(Scripted(), load_rows(FACTS[:5], name="forget"))
    assert (tmp_path / "proxies.jsonl").read_bytes() == before


def test_a_killed_run_resumes_to_the_same_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(proxies, "PROMPTS_PER_CALL", 1)
    straight = tmp_path / "straight" / "proxies.jsonl"
    run(Scripted(), path=straight)
    with pytest.raises(KeyboardInterrupt):
        run(Scripted(die_after=2))  # one call for the exemplars, one for the first prompt
    assert len(lines(tmp_path)) == 4
    generator = Scripted()
    run(generator)
    assert generator.asked() == [[3], [3]]
    assert (tmp_path / "proxies.jsonl").read_bytes() == straight.read_bytes()


def test_exemplars_are_kept_and_may_be_edited(run, tmp_path):
    path = exemplar_file(tmp_path / "proxies.jsonl")
    run(Scripted())
    kept = json.loads(path.read_text())
    assert (kept["source"], kept["model"], len(kept["exemplars"])) == ("base_model", "fake", 3)
    for item in kept["exemplars"]:
        assert item["informed_answer"] == TRUTHS[item["question"]]
        assert item["uninformed_answer"] == guess(item["question"])
    kept["exemplars"][0]["uninformed_answer"] = "A better bad answer."
    path.write_text(json.dumps(kept))
    generator = Scripted()
    run(generator, force=True)
    assert len(generator.calls) == 1
    assert "A better bad answer." in generator.calls[0]["prompts"][0][2].content


def test_exemplars_of_other_settings_are_not_reused(run, tmp_path):
    run(Scripted())
    path = exemplar_file(tmp_path / "proxies.jsonl")
    before = json.loads(path.read_text())
    run(Scripted(), force=True, settings={"exemplars": 2})
    after = json.loads(path.read_text())
    assert before["key"] != after["key"]
    assert len(after["exemplars"]) == 2


def test_exemplars_pass_over_refusals(run, tmp_path):
    good = {fact["question"] for fact in FACTS[20:]}
    zero_shot = Scripted(zero_shot=lambda q: guess(q) if q in good else "I am not sure.")
    run(zero_shot)
    kept = json.loads(exemplar_file(tmp_path / "proxies.jsonl").read_text())["exemplars"]
    assert {item["question"] for item in kept} <= good


def test_exemplars_from_perturbed_answers(run, tmp_path, forget):
    run(Scripted(zero_shot=lambda q: "I am not sure."), settings={"exemplar_source": "perturbed"})
    kept = json.loads(exemplar_file(tmp_path / "proxies.jsonl").read_text())["exemplars"]
    wrong = {fact["question"]: fact["perturbed_answer"] for fact in FACTS}
    assert all(item["uninformed_answer"] in wrong[item["question"]] for item in kept)


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        ([{"question": "Q?", "answer": "A."}], {"exemplar_source": "perturbed"}, "no perturbed"),
        (FACTS[:10], {}, "also in the forget set"),
        ([{"question": "Q?", "answer": "A."}], {}, "no usable answer"),
    ],
)
def test_no_exemplars(run, rows, settings, said):
    mute = Scripted(zero_shot=lambda question: "I am not sure.")
    with pytest.raises(InputError, match=said):
        run(mute, exemplar_rows=load_rows(rows, name="retain"), settings=settings)


OWN = [
    {"question": f"Who was {name}?", "answer": "A baker of Bergen.", "uninformed_answer": "A king."}
    for name in ("Ada Lund", "Bo Holm")
]


def own_exemplars(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_exemplars_of_a_user_are_used_and_kept_for_the_report(run, tmp_path, forget):
    found = load_exemplars(own_exemplars(tmp_path, *OWN), forget)
    generator = Scripted(zero_shot=lambda question: pytest.fail("nothing is to be made up"))
    summary = run(generator, exemplar_rows=None, exemplars=found)
    assert summary.in_context_share == 1
    assert (
        "Who was Ada Lund?\nInformed answer: A baker" in generator.calls[0]["prompts"][0][1].content
    )
    kept = json.loads(exemplar_file(tmp_path / "proxies.jsonl").read_text())
    assert kept["source"] == "file"
    assert [item["question"] for item in kept["exemplars"]] == [row["question"] for row in OWN]
    # Other exemplars are other settings, and the base model's are not taken for these.
    assert run(Scripted(), exemplars=found[:1]).other_settings == 10
    run(Scripted(), force=True)
    kept = json.loads(exemplar_file(tmp_path / "proxies.jsonl").read_text())
    assert (kept["source"], len(kept["exemplars"])) == ("base_model", 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**OWN[0], "question": FACTS[3]["question"].upper()}, "line 1: question .* in the forget"),
        ({**OWN[0], "answer": FACTS[3]["answer"]}, "line 1: answer .* is in the forget set"),
        ({**OWN[0], "uninformed_answer": " "}, "uninformed_answer holds text .*not empty"),
        ({"question": "Q?", "answer": "A."}, "uninformed_answer holds nothing"),
    ],
)
def test_exemplars_of_a_user_are_looked_at(tmp_path, forget, row, said):
    with pytest.raises(InputError, match=said):
        load_exemplars(own_exemplars(tmp_path, row), forget)


def test_short_answers_may_be_those_of_the_forget_set(tmp_path):
    rows = load_rows([{"question": "Was it so?", "answer": "Yes."}], name="forget")
    assert load_exemplars(own_exemplars(tmp_path, {**OWN[0], "answer": "Yes."}), rows)


def test_no_exemplar_file(tmp_path, forget):
    with pytest.raises(InputError, match=r"no such file\. It holds the worked examples"):
        load_exemplars(tmp_path / "none.jsonl", forget)


def test_neither_rows_nor_exemplars(run):
    with pytest.raises(InputError, match=r"data.retain\), or a file of your own"):
        run(Scripted(), exemplar_rows=None)


def test_figures_of_the_writing(run, tmp_path):
    class Rambling(Scripted):
        def reply(self, prompt, temperature):
            text = super().reply(prompt, temperature)
            return "[{" if '"question"' in text else text

    summary = run(Rambling())
    assert (summary.attempts, summary.num_rejected, summary.parse_failures) == (20, 10, 10)
    assert summary.retried == 10
    assert "refused 10 of 20 answers: unparsed 10" in summary.lines()
    assert summary.as_dict()["parse_failures"] == 10


def test_broken_exemplar_file(run, tmp_path):
    exemplar_file(tmp_path / "proxies.jsonl").write_text("{")
    with pytest.raises(InputError, match="cannot be read as exemplars"):
        run(Scripted())


def test_plain_text_has_no_questions(run):
    with pytest.raises(InputError, match="proxy answers need questions"):
        run(Scripted(), load_rows([{"text": "Once upon a time."}], name="forget"))


def test_progress_is_told(run):
    told = []
    run(Scripted(), on_progress=lambda *state: told.append(state))
    assert told[0] == (0, 10, "exemplars")
    assert (10, 10, "in context") in told


@pytest.fixture(scope="module")
def local():
    tokenizer = tiny_tokenizer()
    return LocalGenerator(tiny_model(tokenizer, max_length=2048), tokenizer)


def test_a_local_model_continues_the_reply_it_is_given(local):
    from expunge.data.rows import Message

    opened = [
        Message(role="user", content="Where was Mira Solheim born?"),
        Message(role="assistant", content='["'),
    ]
    texts = local([opened, opened[:1]], max_new_tokens=[6, 3])
    assert texts[0].startswith('["')
    end = [*local.tokenizer.encode('assistant\n["', add_special_tokens=False)]
    assert local.prompt_ids(opened)[-len(end) :] == end
    again = local([opened, opened], max_new_tokens=[6, 6], temperature=1.0, seed=3)
    assert again == local([opened, opened], max_new_tokens=[6, 6], temperature=1.0, seed=3)
    assert again != local([opened, opened], max_new_tokens=[6, 6], temperature=1.0, seed=4)


def test_a_template_without_a_system_role_gets_its_text_with_the_question(local):
    refusing = tiny_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    from expunge.data.proxy_prompt import zero_shot_prompt

    generator = LocalGenerator(local.model, refusing)
    text = refusing.decode(generator.prompt_ids(zero_shot_prompt("Born where?")))
    assert text == f"user: {ZERO_SHOT_INSTRUCTION}\n\nBorn where?</s>assistant: "


def test_a_model_that_babbles_ends_in_the_fallback(run, local, tmp_path, forget):
    settings = {
        "exemplar_source": "perturbed",
        "max_retries": 1,
        "max_new_tokens": 8,
        "exemplars": 1,
    }
    rows = load_rows(FACTS[:4], name="forget")
    summary = run(local, rows, settings=settings)
    assert summary.total == 4
    assert not summary.missing
    assert len(load_proxies(tmp_path / "proxies.jsonl", rows)) == 4
