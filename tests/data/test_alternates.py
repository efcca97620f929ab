"""The alternates file: what is read, what belongs to which row, what a training set is."""

import json

import pytest

from expunge.core.errors import InputError
from expunge.core.fingerprint import fingerprint
from expunge.data.alternate_prompt import alternate_prompt, read_alternate
from expunge.data.alternates import (
    AlternateLine,
    AlternateSettings,
    expand,
    load_alternates,
    match_alternates,
    read_alternates,
    summarize_alternates,
    write_alternates,
)
from expunge.data.sources import load_rows

FACTS = [
    {"question": f"Where was person {i} born?", "answer": f"Person {i} was born in town {i}."}
    for i in range(3)
]


@pytest.fixture
def forget():
    return load_rows(FACTS, name="forget")


def save(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def by_hand(i, text="In a village.", **more):
    return {"question": FACTS[i]["question"], "alternate": text, **more}


def test_lines_come_back_as_they_were_written(tmp_path):
    line = AlternateLine(
        id="0a",
        question="Où ? \u2028",
        answer="Là.",
        alternate="Ici « là ».",
        generator="sampled",
        rejected=("refusal", "too_close"),
        prompt_sha256="ab",
        model="m",
        settings="cd",
        made=fingerprint("Ici « là »."),
    )
    path = tmp_path / "a.jsonl"
    write_alternates(path, [line, line])
    assert read_alternates(path) == [line, line]
    assert list(json.loads(path.read_text().split("\n")[0]))[:4] == [
        "id", "question", "answer", "alternate",
    ]  # fmt: skip
    assert not line.by_hand


def test_a_file_made_by_hand_needs_two_columns(tmp_path, forget):
    lines = [by_hand(2), by_hand(0, "A."), by_hand(1, answer=FACTS[1]["answer"]), by_hand(0, "B.")]
    path = save(tmp_path / "a.jsonl", *lines)
    assert load_alternates(path, forget) == [["A.", "B."], ["In a village."], ["In a village."]]
    assert all(line.by_hand for line in read_alternates(path))


def test_load_lists_every_problem(tmp_path, forget):
    path = save(tmp_path / "a.jsonl", by_hand(0), by_hand(0, "  "))
    with pytest.raises(InputError) as caught:
        load_alternates(path, forget)
    message = str(caught.value)
    assert "row 0: 'Where was person 0 born?' has an empty alternate" in message
    assert "row 1: 'Where was person 1 born?' has no alternate answer" in message
    assert "expunge alternates" in message
    assert "row 2" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "Who is that?", "alternate": "x"}, "no question of the forget set"),
        (by_hand(1, answer="Person 1 was born at sea."), "made for other data"),
    ],
)
def test_lines_that_fit_no_row(tmp_path, forget, line, said):
    path = save(tmp_path / "a.jsonl", *(by_hand(i) for i in range(3)), line)
    with pytest.raises(InputError, match=f"alternate 4.*{said}"):
        load_alternates(path, forget)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "q", "alternate": "a"', "line 1: ends in the middle"),
        ('{"question": "q"}', "alternate holds nothing"),
        ('{"question": "q", "alternate": ["a"]}', "alternate holds a list"),
    ],
)
def test_broken_files(tmp_path, text, said):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_alternates(path)


def test_a_missing_file_says_how_to_make_it(tmp_path, forget):
    with pytest.raises(InputError, match="expunge alternates"):
        load_alternates(tmp_path / "none.jsonl", forget)


def test_repeated_questions_are_told_apart_by_their_answers():
    facts = [
        {"question": "Born where?", "answer": "In Oslo."},
        {"question": "Born where?", "answer": "In Lima."},
        {"question": "Born where?", "answer": "In Oslo."},
    ]
    lines = [
        AlternateLine(question="Born  where?", alternate="for Lima", answer="In Lima."),
        AlternateLine(question="Born where?", alternate="for Oslo", answer="In  Oslo."),
        AlternateLine(question="Born where?", alternate="for all"),
    ]
    matched = match_alternates(lines, load_rows(facts, name="forget"), source="a")
    texts = [[line.alternate for line in some] for some in matched.values()]
    assert texts == [["for Oslo", "for all"], ["for Lima", "for all"], ["for Oslo", "for all"]]


def test_the_training_set_has_one_row_per_alternate(forget):
    rows, alternates = expand(forget, [["a", "b"], ["c"], ["d", "e"]])
    assert alternates == ["a", "b", "c", "d", "e"]
    assert [row.question for row in rows] == [FACTS[i]["question"] for i in (0, 0, 1, 2, 2)]
    assert [row.answer for row in rows] == [FACTS[i]["answer"] for i in (0, 0, 1, 2, 2)]
    assert [row.index for row in rows] == list(range(5))
    assert rows.name == "forget"
    assert rows.fingerprint != forget.fingerprint


def test_one_alternate_each_changes_nothing(forget):
    assert expand(forget, [["a"], ["b"], ["c"]]).rows.fingerprint == forget.fingerprint


@pytest.mark.parametrize(
    ("alternates", "said"),
    [([["a"], ["b"]], "for 2 rows and 3 rows"), ([["a"], [], ["c"]], "row 1 .* has no alternate")],
)
def test_every_row_needs_one(forget, alternates, said):
    with pytest.raises(InputError, match=said):
        expand(forget, alternates)


def test_summary_counts_and_measures(forget):
    def line(i, text, **more):
        values = {"generator": "sampled", "settings": "now", "made": fingerprint(text), **more}
        return AlternateLine(alternate=text, **FACTS[i], **values)

    matched = {
        0: [line(0, "Person 0 was born in a village.", rejected=("empty",)), line(0, "At sea.")],
        1: [line(1, "Somewhere.", made="other"), line(1, "Elsewhere.", settings="before")],
        2: [line(2, "", generator="none", rejected=("repeats_another",) * 3)],
    }
    summary = summarize_alternates(matched, forget, per_question=2, settings="now", written=2)
    assert (summary.total, summary.alternates, summary.short) == (3, 4, 1)
    assert summary.generators == {"sampled": 3, "hand": 1}
    assert summary.rejected == {"empty": 1, "repeats_another": 3}
    assert summary.other_settings == 1
    # Truths have 7 words; the first alternate has 5 of them in order, the others none.
    assert summary.mean_rouge_l_recall == pytest.approx(5 / 7 / 4)
    assert any("server does not sample" in said for said in summary.lines())
    assert json.dumps(summary.as_dict())


def test_summary_of_nothing(forget):
    summary = summarize_alternates({i: [] for i in range(3)}, forget, per_question=5)
    assert summary.mean_rouge_l_recall is None
    assert summary.lines()[0] == "0 alternates for 3 questions: none"


def test_settings_check_all_their_values():
    with pytest.raises(InputError) as caught:
        AlternateSettings(per_question=0, temperature=0)
    assert [problem.where for problem in caught.value.problems] == [
        "alternates.per_question",
        "alternates.temperature",
    ]


def test_the_prompt_shows_question_and_answer(forget):
    user, start = alternate_prompt(forget[1])
    assert user.content.startswith(
        "Question: Where was person 1 born?\nAnswer: Person 1 was born in town 1.\n"
    )
    assert "plausible" in user.content
    assert (start.role, start.content) == ("assistant", "Alternate answer:")


def test_plain_text_has_no_question():
    with pytest.raises(InputError, match="plain text"):
        alternate_prompt(load_rows([{"text": "Once."}], name="forget")[0])


@pytest.mark.parametrize(
    ("reply", "alternate"),
    [
        ("Alternate answer: He was born in Perth.", "He was born in Perth."),
        ("Alternate answer:", ""),
        ("**Alternative Answer:** He was born in Perth.", "He was born in Perth."),
        ("The alternate answer: He was born\nin Perth.", "He was born in Perth."),
        ("Answer: In Perth.\n\nQuestion: And Bob?\nAnswer: In Rome.", "In Perth."),
        ('"In Perth."', "In Perth."),
        ("In Perth. He moved to", "In Perth."),
        ("In Perth", "In Perth"),
        ("Question: where?", ""),
        ("An answer came to him in Perth.", "An answer came to him in Perth."),
    ],
)
def test_replies_end_at_a_new_question(reply, alternate):
    assert read_alternate(reply) == alternate
