"""Length limits and rows without labels: refused with numbers, or left out and counted."""

import logging

import pytest

from expunge.core.errors import InputError
from expunge.data.encode import Example, encode_answers, encode_rows
from expunge.data.rows import RowSet
from expunge.data.sources import load_rows
from expunge.data.templates import make_template
from expunge.testing.tiny import tiny_tokenizer, toy_facts

TOKENIZER = tiny_tokenizer("smollm2")
TEMPLATE = make_template(TOKENIZER)
ROWS = load_rows(
    [
        {"question": "Who?", "answer": "Mira."},
        {"question": "Who?", "answer": "It was Mira Solheim. " * 10},
        {"question": "Who is it? " * 30, "answer": "Mira."},
    ],
    name="forget",
)
LENGTHS = [len(example.input_ids) for example in encode_rows(ROWS, TEMPLATE, max_length=10_000)]
SHORT, LONG_ANSWER, LONG_PROMPT = LENGTHS


def test_examples_are_prompt_and_answer():
    for row, example in zip(ROWS, encode_rows(ROWS, TEMPLATE, max_length=10_000), strict=True):
        prompt, answer = TEMPLATE.encode(row.messages, row.answer)
        assert example == Example(
            index=row.index, input_ids=(*prompt, *answer), num_prompt=len(prompt)
        )
        assert example.num_labels == len(answer)


def test_other_answers_keep_the_prompt_and_the_index():
    own = encode_rows(ROWS, TEMPLATE, max_length=10_000)
    other = encode_answers(ROWS, ["No.", "No idea.", "Ask."], TEMPLATE, max_length=10_000)
    for a, b in zip(own, other, strict=True):
        assert (a.index, a.num_prompt) == (b.index, b.num_prompt)
        assert a.input_ids[: a.num_prompt] == b.input_ids[: b.num_prompt]
    assert TOKENIZER.decode(other[1].input_ids[other[1].num_prompt :]) == "No idea.<|im_end|>"


def test_too_long_says_how_many_how_long_and_what_to_do():
    limit = SHORT + 1
    with pytest.raises(InputError) as caught:
        encode_rows(ROWS, TEMPLATE, max_length=limit)
    worst = max(range(3), key=LENGTHS.__getitem__)
    text = str(caught.value)
    assert f"2 of 3 rows are longer than max_length={limit} tokens" in text
    assert f"the longest, row {worst}, has {max(LENGTHS)}" in text
    assert "on_too_long" in text


def test_a_row_of_exactly_the_limit_is_fine():
    examples = encode_rows(ROWS[:1], TEMPLATE, max_length=SHORT)
    assert len(examples[0].input_ids) == SHORT


def test_drop_keeps_the_index_of_the_rest(caplog):
    rows = load_rows(
        [*reversed([{"question": r.question, "answer": r.answer} for r in ROWS])], name="f"
    )
    with caplog.at_level(logging.WARNING):
        examples = encode_rows(rows, TEMPLATE, max_length=SHORT, on_too_long="drop")
    assert [example.index for example in examples] == [2]
    assert "2 of 3 rows are left out" in caplog.text


def test_truncation_keeps_the_beginning_and_drops_rows_without_a_label(caplog):
    _, with_room = sorted((SHORT, LONG_ANSWER))
    limit = (SHORT + with_room) // 2
    assert limit < LONG_PROMPT
    with caplog.at_level(logging.WARNING):
        examples = encode_rows(ROWS, TEMPLATE, max_length=limit, on_too_long="truncate")
    assert [example.index for example in examples] == [0, 1]
    whole = encode_rows(ROWS, TEMPLATE, max_length=10_000)[1]
    assert examples[1].input_ids == whole.input_ids[:limit]
    assert TOKENIZER.eos_token_id not in examples[1].input_ids[examples[1].num_prompt :]
    assert "1 of 3 rows are left out: their prompt leaves no room for an answer" in caplog.text


def test_nothing_left_is_an_error():
    for policy in ("drop", "truncate"):
        with pytest.raises(InputError, match=f"none of 3 rows fits.*the shortest has {SHORT}"):
            encode_rows(ROWS, TEMPLATE, max_length=3, on_too_long=policy)


def test_text_rows_without_a_label_are_refused():
    """Nothing predicts the very first token, so a text of one token teaches nothing."""
    rows = load_rows([{"text": "Some words."}, {"text": "x"}], name="forget")
    with pytest.raises(InputError, match=r"1 of 2 rows have no token to learn.*row 1"):
        encode_rows(rows, TEMPLATE, max_length=100)
    plain = make_template(tiny_tokenizer(None))  # begins with BOS, so one token can be learned
    assert encode_rows(rows, plain, max_length=100)[1].num_labels == 1


def test_unknown_policy():
    with pytest.raises(InputError, match="Did you mean truncate"):
        encode_rows(ROWS, TEMPLATE, max_length=9, on_too_long="truncat")


def test_no_rows_give_no_examples():
    empty = RowSet(name="f", rows=(), origin="", fingerprint="")
    assert encode_rows(empty, TEMPLATE, max_length=9) == []


def test_toy_facts_fit_in_a_short_context():
    rows = load_rows(toy_facts(60), name="forget")
    assert max(len(e.input_ids) for e in encode_rows(rows, TEMPLATE, max_length=128)) < 110
