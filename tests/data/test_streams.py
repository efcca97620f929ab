"""Every stream's examples, and that they belong to the rows a pick names."""

import pytest

from expunge.core.errors import InputError
from expunge.data.plan import Pick
from expunge.data.sources import load_rows
from expunge.data.streams import Streams
from expunge.data.templates import make_template
from expunge.testing.tiny import tiny_tokenizer, toy_facts

TOKENIZER = tiny_tokenizer("smollm2")
TEMPLATE = make_template(TOKENIZER)
FACTS = toy_facts(10)
FORGET = load_rows(FACTS[:4], name="forget")
RETAIN = load_rows(FACTS[4:], name="retain")
REJECTIONS = ("No idea.", "I cannot say.", "Ask someone else.")
PROXIES = [f"It is number {i}." for i in range(4)]


def build(forget=FORGET, retain=RETAIN, **options):
    options = {"max_length": 128, "rejections": REJECTIONS, **options}
    return Streams(forget, retain, template=TEMPLATE, **options)


def said(example):
    return TOKENIZER.decode(example.input_ids[example.num_prompt :])


def asked(example):
    return TOKENIZER.decode(example.input_ids[: example.num_prompt])


def test_a_pick_names_one_example_of_every_stream():
    streams = build(proxy_answers=PROXIES)
    pick = Pick(2, 5, 1)

    def one(stream):
        (example,) = streams.examples(stream, [pick])
        return example

    end = "<|im_end|>"
    assert said(one("forget")) == FACTS[2]["answer"] + end
    assert said(one("retain")) == FACTS[4 + 5]["answer"] + end
    assert said(one("alternate")) == said(one("retain_alternate")) == "I cannot say." + end
    assert said(one("proxy")) == "It is number 2." + end
    assert asked(one("forget")) == asked(one("alternate")) == asked(one("proxy"))
    assert asked(one("retain")) == asked(one("retain_alternate")) != asked(one("forget"))
    assert [one(s).index for s in ("forget", "alternate", "proxy")] == [2, 2, 2]
    assert [one(s).index for s in ("retain", "retain_alternate")] == [5, 5]


def test_picks_of_a_plan_fit():
    streams = build(proxy_answers=PROXIES)
    plan = streams.plan(batch_size=3, seed=1)
    assert (plan.num_forget, plan.num_retain, plan.num_templates) == (4, 6, 3)
    for step in range(4):
        for stream in ("forget", "retain", "alternate", "retain_alternate", "proxy"):
            assert len(streams.examples(stream, plan.step(step))) == len(plan.step(step))


def test_fixed_streams_are_in_order():
    streams = build(proxy_answers=PROXIES)
    for stream, length in {"forget": 4, "retain": 6, "proxy": 4}.items():
        assert [example.index for example in streams.fixed(stream)] == list(range(length))
    with pytest.raises(InputError, match="no fixed examples"):
        streams.fixed("alternate")


def test_alternates_are_encoded_once():
    streams = build()
    picks = [Pick(0, 1, 2)] * 2
    first, second = streams.examples("alternate", picks)
    assert first is second


def test_dropped_rows_leave_the_streams_aligned():
    """Row 1 is too long; its proxy goes with it and the rest closes up."""
    facts = [FACTS[0], {"question": "Who? " * 200, "answer": "Mira."}, FACTS[2]]
    streams = build(
        load_rows(facts, name="forget"),
        max_length=100,
        on_too_long="drop",
        proxy_answers=["zero", "one", "two"],
    )
    assert [example.index for example in streams.fixed("forget")] == [0, 1]
    assert [said(example) for example in streams.fixed("proxy")] == [
        "zero<|im_end|>",
        "two<|im_end|>",
    ]
    (alternate,) = streams.examples("alternate", [Pick(1, 0, 0)])
    assert FACTS[2]["question"] in asked(alternate)
    # An index is a place in the fixed stream, where reference values are looked up.
    assert [example.index for example in (*streams.fixed("proxy"), alternate)] == [0, 1, 1]


def test_a_long_proxy_is_cut_rather_than_lost():
    proxies = ["x " * 400, *PROXIES[1:]]
    streams = build(on_too_long="drop", proxy_answers=proxies)
    assert [len(example.input_ids) <= 128 for example in streams.fixed("proxy")] == [True] * 4
    with pytest.raises(InputError, match="1 of 4 rows are longer"):
        build(proxy_answers=proxies)


def test_a_long_rejection_is_cut_rather_than_stopping_a_run():
    streams = build(rejections=("no " * 400,))
    (example,) = streams.examples("alternate", [Pick(0, 0, 0)])
    assert len(example.input_ids) == 128


@pytest.mark.parametrize(
    ("stream", "options", "advice"),
    [
        ("retain", {"retain": None}, "data.retain"),
        ("retain_alternate", {"retain": None}, "data.retain"),
        ("proxy", {}, "the verb proxies"),
        ("alternate", {"rejections": ()}, "rejections"),
    ],
)
def test_a_stream_without_data_says_what_to_give(stream, options, advice):
    with pytest.raises(InputError, match=advice):
        build(**options).examples(stream, [Pick(0, 0, 0)])


def test_unknown_stream():
    with pytest.raises(InputError, match="possible: forget, retain, proxy, reserve, alternate"):
        build().examples("idk", [Pick(0, 0, 0)])


def test_as_many_proxies_as_rows():
    with pytest.raises(InputError, match="3 proxy answers for 4 rows"):
        build(proxy_answers=PROXIES[:3])


def test_plain_text_is_cut_and_has_no_questions():
    text = load_rows([{"text": "A tale of a lighthouse and a lost map. " * 8}], name="forget")
    streams = build(text, max_length=16, text_form="short_last", retain=None)
    assert streams.num_forget > 5
    assert [example.index for example in streams.fixed("forget")] == list(range(streams.num_forget))
    assert all(len(example.input_ids) <= 16 for example in streams.fixed("forget"))
    with pytest.raises(InputError, match="no questions to answer otherwise"):
        streams.examples("alternate", [Pick(0, 0, 0)])
    with pytest.raises(InputError, match="no questions for proxy answers"):
        build(text, retain=None, proxy_answers=["x"])
