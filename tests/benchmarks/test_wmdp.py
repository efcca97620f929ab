"""WMDP: texts of the user's own, and tasks that ask what is left."""

import pytest

from expunge.benchmarks import benchmarks
from expunge.benchmarks.wmdp import TEXT_TOKENS
from expunge.core.errors import InputError
from expunge.data import load_rows, make_template
from expunge.evaluation.harness_tasks import tasks_for
from expunge.evaluation.runner import run_probes
from expunge.testing.tiny import tiny_model, tiny_tokenizer

WMDP = benchmarks.get("wmdp")


def texts(n, word, name):
    rows = [{"text": f"{word} {i} " * 3, "title": str(i)} for i in range(n)]
    return load_rows(rows, name=name)


def built(forget, retain=None, **more):
    return {probe.name: probe for probe in WMDP.build_probes(forget, retain, **more)}


def test_few_rows_unless_told_otherwise():
    forget, retain = texts(70, "virus", "forget"), texts(60, "garden", "retain")
    probes = built(forget, retain)
    assert {name: len(probe.rows) for name, probe in probes.items()} == {"forget": 50, "retain": 50}
    assert not any(probe.generate or probe.variants for probe in probes.values())
    more = built(forget, retain, rows={"forget": None, "retain": 3})
    assert {name: len(probe.rows) for name, probe in more.items()} == {"forget": 70, "retain": 3}
    assert list(built(forget)) == ["forget"]


def test_topics_choose_the_tasks():
    """One topic is asked about it alone, none about both; mmlu always belongs to it."""

    def names(**options):
        return [task.name for task in tasks_for(WMDP.harness, options)]

    assert names() == ["wmdp_bio", "wmdp_cyber", "mmlu"]
    assert names(topic="bio") == ["wmdp_bio", "mmlu"]
    assert names(topic="cyber") == ["wmdp_cyber", "mmlu"]
    assert names(topic=None, mean="arithmetic") == names()
    forget = texts(2, "virus", "forget")
    built(forget, options={"topic": "cyber"})
    with pytest.raises(InputError, match=r"no topic 'bi0'\. Did you mean bio"):
        built(forget, options={"topic": "bi0"})
    assert WMDP.check_options({"topic": "bio"}) == []


def test_chance_is_what_is_wanted():
    for task in WMDP.harness:
        if task.name == "mmlu":
            assert (task.better, task.ideal) == ("higher", None)
        else:
            assert (task.better, task.chance, task.ideal) == ("lower", 0.25, 0.25)
            assert "25%" in task.explanation


def test_end_to_end_with_a_text_longer_than_the_limit():
    """The probability of a text is that of its first tokens, by hand."""
    import numpy as np
    import torch

    long = " ".join(f"virus{i}" for i in range(400))
    tokenizer = tiny_tokenizer("smollm2")
    model = tiny_model(tokenizer, max_length=TEXT_TOKENS)
    forget, retain = load_rows([{"text": long}], name="forget"), texts(3, "garden", "retain")
    template = make_template(tokenizer, "auto")
    tables = run_probes(model, tokenizer, template, WMDP.build_probes(forget, retain))
    ids = tokenizer.encode(long)[:TEXT_TOKENS]
    assert len(tokenizer.encode(long)) > TEXT_TOKENS
    # Nothing predicts the first token.
    assert len(tables["forget"]["answer_logps"][0]) == TEXT_TOKENS - 1
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = np.exp(np.mean([logps[t - 1, ids[t]].item() for t in range(1, len(ids))]))
    scores = WMDP.score_tables(tables).scores
    assert set(scores) == {"forget/probability", "retain/probability"}
    assert scores["forget/probability"].value == pytest.approx(expected, rel=1e-4)
    assert scores["retain/probability"].n == 3
    assert scores["forget/probability"].better == "lower"
    assert scores["retain/probability"].better == "higher"
