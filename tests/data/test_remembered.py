"""A row is written once, and remembering changes no token."""

from functools import cached_property

from expunge.data import load_rows, make_template
from expunge.data.encode import encode_rows
from expunge.data.remembered import RememberedTemplate
from expunge.data.templates import Template
from expunge.testing.tiny import tiny_tokenizer, toy_facts

TOKENIZER = tiny_tokenizer()
ROWS = load_rows(toy_facts(6), name="forget")


class Counting:
    """A template that counts its work."""

    def __init__(self) -> None:
        self.template: Template = make_template(TOKENIZER)
        self.encoded = 0

    name = "counting"
    tokenizer = TOKENIZER

    @cached_property
    def stop_ids(self):
        return self.template.stop_ids

    def fingerprint(self):
        return self.template.fingerprint()

    def encode(self, messages, answer):
        self.encoded += 1
        return self.template.encode(messages, answer)


def test_no_row_is_written_twice_and_tokens_are_the_same():
    counting = Counting()
    template = RememberedTemplate(counting)
    wanted = encode_rows(ROWS, counting.template, max_length=256)

    assert encode_rows(ROWS, template, max_length=256) == wanted
    assert encode_rows(ROWS, template, max_length=200) == wanted
    assert counting.encoded == len(ROWS)
    assert template.encode(ROWS[0].messages, "Something else.") != template.encode(
        ROWS[0].messages, ROWS[0].answer
    )
    assert template.encode(ROWS[0].messages, None).answer == []
    assert template.fingerprint() == counting.fingerprint()
    assert (template.name, template.stop_ids) == (counting.name, counting.stop_ids)


def test_a_caller_may_change_its_lists():
    template = RememberedTemplate(make_template(TOKENIZER))
    first = template.encode(ROWS[0].messages, "A")
    first.prompt.append(7)
    first.answer.clear()
    assert template.encode(ROWS[0].messages, "A") == template.template.encode(ROWS[0].messages, "A")


def test_memory_is_bounded():
    counting = Counting()
    size = sum(map(len, counting.encode(ROWS[0].messages, "A")))
    template = RememberedTemplate(counting, max_tokens=size)
    for answer in ("A", "A", "B", "A"):
        template.encode(ROWS[0].messages, answer)
    assert counting.encoded == 1 + 3
