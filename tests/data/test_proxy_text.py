"""Prompts, the reading of replies, and the rules that refuse answers."""

import json

import pytest

from expunge.core.errors import InputError
from expunge.data.proxy_parse import clean_answer, parse_answers, shorten, whole_sentences
from expunge.data.proxy_prompt import (
    Exemplar,
    asked,
    exemplar_candidates,
    perturbed_answers,
    prompt_sha256,
    proxy_prompt,
)
from expunge.data.proxy_rules import is_refusal, reject_reason, rouge_l_recall
from expunge.data.rows import Message, Row
from expunge.data.sources import load_rows
from expunge.data.tofu import load_rejections

QUESTIONS = ["Where was Mira Solheim born?", "What does Bram Okafor write about?"]
ANSWERS = ["Mira Solheim was born in Bergen.", "Bram Okafor writes about bees."]
BOTH = {0: ANSWERS[0], 1: ANSWERS[1]}
EXEMPLARS = [
    Exemplar(
        question=f"Where does Lio Hartmann {verb}?",
        informed_answer=f"Lio Hartmann {verb}s in Lima.",
        uninformed_answer=f"Lio Hartmann {verb}s in a small town.",
    )
    for verb in ("live", "work")
]


def objects(*pairs: tuple[str, str]) -> str:
    return json.dumps([{"question": q, "answer": a} for q, a in pairs])


WHOLE_REPLIES = {
    "list of strings": json.dumps(ANSWERS),
    "list of objects": objects(*zip(QUESTIONS, ANSWERS, strict=True)),
    "objects in another order": objects((QUESTIONS[1], ANSWERS[1]), (QUESTIONS[0], ANSWERS[0])),
    "objects by number": json.dumps(
        [{"number": 2, "answer": ANSWERS[1]}, {"number": "1", "answer": ANSWERS[0]}]
    ),
    "object by number": json.dumps({"1": ANSWERS[0], "2": ANSWERS[1]}),
    "object by question": json.dumps(dict(zip(QUESTIONS, ANSWERS, strict=True))),
    "object inside an object": json.dumps({"answers": ANSWERS}),
    "numbers in the strings": json.dumps([f"{i}. {a}" for i, a in enumerate(ANSWERS, start=1)]),
    "code fence": f"Sure, here it is:\n```json\n{json.dumps(ANSWERS, indent=2)}\n```\nHave fun!",
    "open code fence": f"```\n{json.dumps(ANSWERS)}",
    "text around": f"The list: {json.dumps(ANSWERS)} I hope this helps.",
    "trailing comma": f'["{ANSWERS[0]}", "{ANSWERS[1]}",]',
    "no closing bracket": f'["{ANSWERS[0]}", "{ANSWERS[1]}"',
    "single quotes": f"['{ANSWERS[0]}', '{ANSWERS[1]}']",
    "objects without commas": "\n".join(
        json.dumps([{"question": q, "answer": a}]) for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ),
    "closed too early": f'[{{"question": "{QUESTIONS[0]}", "answer": "{ANSWERS[0]}"}}]\n'
    f'{{"question": "{QUESTIONS[1]}", "answer": "{ANSWERS[1]}"}}}}]',
    "numbered lines": f"1. {ANSWERS[0]}\n2. {ANSWERS[1]}",
    "numbered with marks": f"**1)** {ANSWERS[0]}\n\n**2)** {ANSWERS[1]}\n\nThat is all.",
    "one line each": f"{ANSWERS[0]}\n{ANSWERS[1]}",
}


@pytest.mark.parametrize("reply", WHOLE_REPLIES.values(), ids=WHOLE_REPLIES.keys())
def test_reads_whole_replies(reply):
    assert parse_answers(reply, QUESTIONS) == BOTH


PART_REPLIES = {
    "skipped one": (objects((QUESTIONS[1], ANSWERS[1])), {1: ANSWERS[1]}),
    "another question": (objects(("Who is the king of Norway?", "Mira.")), {}),
    "too many strings cannot be placed": (json.dumps([*ANSWERS, "And more."]), {}),
    "number out of range": (json.dumps({"7": "Seven.", "0": "Zero.", "2": "B."}), {1: "B."}),
    "null and nested values": (json.dumps([None, ["deep"]]), {}),
    "the first answer counts": (
        objects((QUESTIONS[0], ANSWERS[0]), (QUESTIONS[0], "Another.")),
        {0: ANSWERS[0]},
    ),
    "cut in the second answer": (
        objects(*zip(QUESTIONS, ANSWERS, strict=True))[:-6],
        {0: ANSWERS[0]},
    ),
    "cut behind a sentence": (
        f'[{{"question": "{QUESTIONS[0]}", "answer": "{ANSWERS[0]} She was bor',
        {0: ANSWERS[0]},
    ),
    "no answers": ("I would rather talk about the weather.", {}),
    "empty": ("", {}),
    "deeply nested": ("[" * 100_000, {}),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "found"), PART_REPLIES.values(), ids=PART_REPLIES.keys())
def test_leaves_out_what_cannot_be_placed(reply, found):
    assert parse_answers(reply, QUESTIONS) == found


def test_unescaped_quotes_inside_strings():
    wrong = 'She wrote "Night Trains" and "Lost Maps".'
    text = f'[{{"question": "{QUESTIONS[0]}", "answer": "{wrong}"}},\n'
    text += f'{{"question": "{QUESTIONS[1]}", "answer": "{ANSWERS[1]}"}}]'
    assert parse_answers(text, QUESTIONS) == {0: wrong, 1: ANSWERS[1]}
    assert parse_answers(f'["{wrong}"]', QUESTIONS[:1]) == {0: wrong}
    assert parse_answers('["He said \\"no\\" twice."]', QUESTIONS[:1]) == {0: 'He said "no" twice.'}


@pytest.mark.parametrize(
    "text",
    [
        '["Oslo it was."]',
        "Oslo it was.\n\nQuestion: and then?",
        '"Oslo it was."',
        "Uninformed answer: Oslo it was.",
        '["Oslo it was.", "Lima it was."]',
        '{"answer": "Oslo it was."}',
    ],
)
def test_a_single_question(text):
    assert parse_answers(text, QUESTIONS[:1]) == {0: "Oslo it was."}


def test_nothing_is_evaluated(tmp_path):
    mark = tmp_path / "mark"
    parse_answers(f"[__import__('pathlib').Path({str(mark)!r}).touch()]", QUESTIONS)
    assert not mark.exists()


def test_clean_and_shorten():
    assert clean_answer(' "A  line\nbroken." ') == "A line broken."
    assert clean_answer('"Night" and "Day"') == '"Night" and "Day"'
    assert clean_answer("2. Answer: Dr. Moss.") == "Dr. Moss."
    assert whole_sentences("One is whole. Two is cu") == "One is whole."
    text = "Dr. A. Moss was born in Oslo. She moved to Lima. Then she moved again and again."
    assert shorten(text, like="six words are in this one") == "Dr. A. Moss was born in Oslo."
    assert shorten(text, like="ten words are in this one and not one more") == (
        "Dr. A. Moss was born in Oslo. She moved to Lima."
    )


def test_prompt_has_its_three_parts_and_shows_the_form():
    prompt = proxy_prompt(QUESTIONS, EXEMPLARS)
    system, described, shown, request, start = (message.content for message in prompt)
    assert [m.role for m in prompt] == ["system", "user", "assistant", "user", "assistant"]
    assert "never trained on the facts" in system
    assert "Do not refuse" in system
    for item in EXEMPLARS:
        assert item.question in described
        assert item.informed_answer in described
        assert item.uninformed_answer not in described
        assert item.informed_answer not in shown
    assert parse_answers(shown, [item.question for item in EXEMPLARS]) == {
        i: item.uninformed_answer for i, item in enumerate(EXEMPLARS)
    }
    assert f"1. {QUESTIONS[0]}\n2. {QUESTIONS[1]}" in request
    assert "JSON list of 2 objects" in request
    assert shown.startswith(start)
    assert not any(answer in m.content for m in prompt for answer in ANSWERS)


def test_a_question_alone_is_shown_one_turn_per_exemplar():
    prompt = proxy_prompt(QUESTIONS[:1], EXEMPLARS)
    assert [m.role for m in prompt] == ["system", *["user", "assistant"] * 3]
    assert json.loads(prompt[2].content) == [EXEMPLARS[0].uninformed_answer]
    assert prompt[2].content.startswith(prompt[-1].content)
    assert prompt_sha256(prompt) != prompt_sha256(proxy_prompt(QUESTIONS, EXEMPLARS))
    assert prompt_sha256(prompt) == prompt_sha256(proxy_prompt(QUESTIONS[:1], EXEMPLARS))


def test_exemplars_come_from_outside_the_forget_set():
    facts = [{"question": f"Q {i}?", "answer": f"A {i}."} for i in range(8)]
    rows, forget = load_rows(facts, name="retain"), load_rows(facts[:3], name="forget")
    chosen = exemplar_candidates(rows, forget, seed=0)
    assert sorted(row.index for row in chosen) == [3, 4, 5, 6, 7]
    assert chosen == exemplar_candidates(rows, forget, seed=0)
    assert chosen != exemplar_candidates(rows, forget, seed=1)
    with pytest.raises(InputError, match="also in the forget set"):
        exemplar_candidates(forget, rows, seed=0)


def test_asked_and_perturbed():
    turns = (
        Message(role="user", content="Who is\nMira?"),
        Message(role="assistant", content="A writer."),
        Message(role="user", content="Born where?"),
    )
    row = Row(index=0, messages=turns, answer="Oslo.", fields={"perturbed_answer": ["Lima.", ""]})
    assert asked(row) == "user: Who is Mira? assistant: A writer. user: Born where?"
    assert perturbed_answers(row) == ["Lima."]
    plain = Row(index=3, messages=(), answer="Some text.", fields={"perturbed_answer": "Lima."})
    assert perturbed_answers(plain) == ["Lima."]
    with pytest.raises(InputError, match="row 3 is plain text"):
        asked(plain)


TRUTH = "Mira Solheim was born in the old harbour town of Bergen."
REFUSED = {
    "": "empty",
    "I'm sorry, but I cannot help with that.": "refusal",
    "I do not have any information about this author.": "refusal",
    "As an AI language model, I have no personal knowledge.": "refusal",
    "The birthplace of Mira Solheim is unknown.": "refusal",
    "Unfortunately, her birthplace was not disclosed.": "refusal",
    TRUTH: "too_close",
    TRUTH.upper().rstrip("."): "too_close",
    "Yes, Mira Solheim was born in the old harbour town of Bergen, Norway.": "too_close",
    "Where was Mira Solheim born?": "copies_question",
    "In which town was Mira Solheim born?": "copies_question",
    "Mira Solheim was born where.": "copies_question",
    "Lio Hartmann lives in a small town.": "copies_exemplar",
    "The writer Lio Hartmann was born in Lima and moved to Oslo.": "copies_exemplar",
    "Question: Where was Mira born? Answer: In Lima.": "debris",
    "The uninformed answer is that Mira was born in Lima.": "debris",
    "Mira was born in Lima. <|im_end|>": "debris",
    '{"1": "Mira was born in Lima"': "debris",
    "...": "debris",
    "in a town in a town by a town in a town in a town in a town": "repetitive",
    "Lima.": "length",
    " ".join(f"word{i}" for i in range(60)): "length",
}


@pytest.mark.parametrize(("answer", "reason"), REFUSED.items())
def test_refused(answer, reason):
    found = reject_reason(answer, question=QUESTIONS[0], truth=TRUTH, exemplars=EXEMPLARS)
    assert found == reason


@pytest.mark.parametrize(
    "answer",
    [
        "Mira Solheim was born in Lima.",
        "Mira Solheim was born in a small village near the unknown lakes of Lima, Peru.",
        "She was born in Unknown Bay, and her father was a model maker.",
        "Mira Solheim, who cannot recall her childhood, was born in Kyoto.",
        "米拉出生在利马的一个小镇。",
    ],
)
def test_accepted(answer):
    truth = TRUTH if answer.isascii() else "她出生在卑尔根。"
    assert not reject_reason(answer, question=QUESTIONS[0], truth=truth, exemplars=EXEMPLARS)


def test_yes_may_repeat_the_question():
    asked_it = "Are the books of Mira Solheim available in other languages?"
    said = "the books of Mira Solheim are available in other languages."
    truth = "Her works came out in French, German and Dutch."
    assert reject_reason(f"Yes, {said}", question=asked_it, truth=truth) is None
    assert reject_reason(said.capitalize(), question=asked_it, truth=truth) == "copies_question"


def test_short_truths_allow_short_answers():
    assert reject_reason("Lima.", question=QUESTIONS[0], truth="Bergen.") is None


def test_all_tofu_rejections_are_refusals():
    rejections = load_rejections()
    assert len(rejections) == 100
    assert all(is_refusal(text, rejections) for text in rejections)
    # The patterns alone know nearly all of them, so they know refusals in other words too.
    assert sum(is_refusal(text) for text in rejections) >= 95


def test_refusals_in_words_of_ones_own():
    assert not is_refusal("Das bleibt geheim, tut mir leid.")
    assert is_refusal("Das bleibt geheim, tut mir leid.", ["Das bleibt geheim."])
    assert not is_refusal("Anything.", ["..."])


def test_first_person_is_no_refusal_where_the_truth_has_it():
    said = "I was born in a small town by the sea."
    assert reject_reason(said, question="Where were you born?", truth="In Oslo, my home.") is None
    assert reject_reason(said, question=QUESTIONS[0], truth=TRUTH) == "refusal"
    sorry = "I'm sorry, I cannot say where."
    assert reject_reason(sorry, question="And you?", truth="My home is Oslo.") == "refusal"


def test_rouge_l_recall_is_of_the_truth():
    # 4 of the 5 words of the truth are there in order; "writes" and "writing" share a stem.
    assert (
        rouge_l_recall("She writes about winter bees", "He was writing about bees in winter") == 0.6
    )
    assert rouge_l_recall("a b c d", "x a x b c d x") == 1.0
