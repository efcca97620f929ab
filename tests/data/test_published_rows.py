"""The released constructions, followed by hand on a tokenizer with one token per letter.

BOS = 1, EOS = padding = 2, `a` = 3, `b` = 4, and so on.
"""

import pytest

from expunge.data.encode import encode_rows
from expunge.data.golden import ToyTokenizer, check_data_case
from expunge.data.published import (
    open_unlearning_chat_row,
    open_unlearning_text_row,
    published_row,
)
from expunge.data.sources import load_rows
from expunge.data.templates import make_template, phi_template, plain_template
from expunge.testing.tiny import tiny_tokenizer, toy_facts

TOY = ToyTokenizer("abcdefghij")
N = -100


def row(max_length, mask=True):
    """Prompt `a` `b` `c`, answer tag `d`, answer `e`."""
    return published_row(
        TOY,
        "b",
        "e",
        question_start="a",
        question_end="c",
        answer_tag="d",
        max_length=max_length,
        mask=mask,
    )


def test_one_end_label_at_the_first_padding_place():
    ids, labels, attention = row(9)
    assert ids == [1, 3, 4, 5, 6, 7, 2, 2, 2]
    assert labels == [N, N, N, N, 6, 7, 2, N, N]
    assert attention == [1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_a_full_row_has_no_end_label():
    assert row(6).labels == [N, N, N, N, 6, 7]
    assert row(6).attention_mask == [1] * 6


def test_a_truncated_row_may_lose_every_label():
    assert row(5).labels == [N, N, N, N, 6]
    assert row(3).labels == [N, N, N]
    assert row(3).input_ids == [1, 3, 4]


def test_without_mask_the_whole_padded_row_is_labelled():
    assert row(9, mask=False).labels == row(9).input_ids


def test_open_unlearning_chat_masks_the_prompt_and_ends_once():
    template = plain_template(
        TOY, question_start="a", question_end="b", answer_start="c", answer_lead="", turn_end="d"
    )
    one = open_unlearning_chat_row(template, ["e"], ["f"])
    assert one.input_ids == [1, 3, 7, 4, 5, 8, 2]
    assert one.labels == [N, N, N, N, N, 8, 2]
    two = open_unlearning_chat_row(template, ["e", "g"], ["f", "h"], generate=True)
    assert two.input_ids == [1, 3, 7, 4, 5, 8, 6, 3, 9, 4, 5]
    assert two.labels == [1, 3, 7, 4, 5, 8, 6, 3, 9, 4, 5, 10, 2]


def test_open_unlearning_text_counts_its_length_behind_the_prefix():
    cut = open_unlearning_text_row(TOY, "cdef", prefix="ab", max_length=2)
    assert cut.input_ids == [1, 3, 4, 5, 6]
    assert cut.labels == [N, N, N, 5, 6]
    spaced = open_unlearning_text_row(TOY, "c", prefix="a", max_length=5, insert_space=True)
    assert spaced.input_ids == [1, 3, 0, 5]


@pytest.mark.parametrize("name", ["llama2", "phi"])
def test_our_rows_carry_the_labels_of_the_published_ones(name):
    """Equal where no token crosses the border; the end label is there in both."""
    tokenizer = tiny_tokenizer(None)
    template = make_template(tokenizer, name)
    rows = load_rows(toy_facts(10), name="forget")
    for fact, example in zip(rows, encode_rows(rows, template, max_length=90), strict=True):
        released = published_row(
            tokenizer,
            fact.question,
            fact.answer,
            question_start=template.question_start,
            question_end=template.question_end,
            answer_tag=template.answer_lead,
            max_length=90,
        )
        labels = [label for label in released.labels if label != N]
        assert list(example.input_ids[example.num_prompt :]) == labels
        length = len(example.input_ids)
        assert list(example.input_ids) == released.input_ids[:length]


def test_phi_marker_is_prompted_where_open_unlearning_prompts_it():
    tokenizer = tiny_tokenizer(None)
    rows = load_rows(toy_facts(1), name="forget")
    trained = encode_rows(rows, phi_template(tokenizer), max_length=90)[0]
    prompted = encode_rows(rows, phi_template(tokenizer, answer_marker="prompted"), max_length=90)[
        0
    ]
    assert trained.num_labels > prompted.num_labels
    assert trained.num_prompt < prompted.num_prompt


def test_golden_cases_pass_fail_or_are_not_ours():
    header = {"ALPHABET": TOY.alphabet}
    case = {
        "group": "qa_to_tensors",
        "template": {"question_start_tag": "a", "question_end_tag": "c", "answer_tag": "d"},
        "max_length": 9,
        "question": "b",
        "answer": "e",
        **row(9)._asdict(),
    }
    assert check_data_case(case, header) == []
    wrong = {**case, "labels": [*case["labels"][:-1], 2]}
    (difference,) = check_data_case(wrong, header)
    assert difference.startswith("labels: [")
    assert check_data_case({"group": "muse_mia_scores"}, header) is None
    assert check_data_case({}, header) is None


def test_golden_muse_and_few_shot_prompts():
    header = {"ALPHABET": "abcdefgh"}
    case = {"group": "muse_raw_chunks", "text": "abc", "max_len": 3}
    assert check_data_case({**case, "input_ids": [[1, 3, 4], [1, 5, 1]]}, header) == []
    assert check_data_case({**case, "input_ids": [[1, 3, 4], [1, 5]]}, header)
    prompt = "Question: Who?\nAnswer: Mira.\n\nQuestion: Where?\nAnswer: "
    case = {"group": "knowmem_prompt", "icl": [["Who?", "Mira."]], "question": "Where?"}
    assert check_data_case({**case, "history": [{"prompt": prompt}]}, header) == []
    assert check_data_case({**case, "history": [{"prompt": prompt.strip()}]}, header)
