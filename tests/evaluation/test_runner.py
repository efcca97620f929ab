"""Probes on a model: the tables equal a naive twin, and an interrupted run goes on."""

import pytest
import torch

from expunge.core.errors import InputError
from expunge.data import load_rows, make_template
from expunge.evaluation import runner
from expunge.evaluation.probes import EvaluationSettings, Probe
from expunge.evaluation.runner import run_probes
from expunge.evaluation.store import EvaluationStore, TablePool
from expunge.evaluation.tables import COLUMNS
from expunge.models.fingerprints import model_fingerprint
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

TOKENIZER = tiny_tokenizer("smollm2")
TEMPLATE = make_template(TOKENIZER, "auto")
SETTINGS = EvaluationSettings(max_new_tokens=6)
FACTS = toy_facts(9, perturbed=True)
PLAIN = [{key: fact[key] for key in ("question", "answer")} for fact in toy_facts(15)[9:]]


@pytest.fixture(scope="module")
def model():
    return tiny_model(TOKENIZER)


@pytest.fixture(scope="module")
def probes():
    return [
        Probe(name="forget", rows=load_rows(FACTS, name="forget")),
        Probe(name="retain", rows=load_rows(PLAIN, name="retain")),
    ]


@pytest.fixture(scope="module")
def tables(model, probes):
    return run_probes(model, TOKENIZER, TEMPLATE, probes, SETTINGS)


def naive_logps(model, row, answer):
    prompt, said = TEMPLATE.encode(row.messages, answer)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *said]])).logits[0].double()
    at = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return at[torch.arange(len(said)), said].tolist()


def test_tables_equal_the_naive_twin(model, probes, tables):
    for probe in probes:
        table = tables[probe.name]
        for i, row in enumerate(probe.rows):
            logps = naive_logps(model, row, row.answer)
            assert table["answer_logps"][i] == pytest.approx(logps, abs=1e-5)
            assert len(table["answer_greedy"][i]) == len(logps)
            prompt = TEMPLATE.encode(row.messages, None)[0]
            assert table["prompt_tokens"][i] == len(prompt)
            out = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
            assert table["generation_ids"][i] == out[0, len(prompt) :].tolist()
    forget, rows = tables["forget"], probes[0].rows
    for i, row in enumerate(rows):
        expected = naive_logps(model, row, row.fields["paraphrased_answer"])
        assert forget["paraphrase_logps"][i] == pytest.approx(expected, abs=1e-5)
        for logps, wrong in zip(
            forget["perturbed_logps"][i], row.fields["perturbed_answer"], strict=True
        ):
            assert logps == pytest.approx(naive_logps(model, row, wrong), abs=1e-5)


def test_rows_keep_their_order(probes, tables):
    for probe in probes:
        table = tables[probe.name]
        assert list(table["index"]) == list(range(len(probe.rows)))
        assert list(table["question"]) == [row.question for row in probe.rows]
        assert list(table["answer"]) == [row.answer for row in probe.rows]


def test_columns_nobody_filled_are_missing(tables):
    assert set(tables["forget"].columns) == set(COLUMNS) - {"original_answer"}
    assert set(COLUMNS) - set(tables["retain"].columns) == {
        "original_answer",
        "paraphrase_logps",
        "perturbed_logps",
    }


@pytest.mark.parametrize(
    "settings",
    [
        EvaluationSettings(max_new_tokens=6, batch_tokens=1),
        EvaluationSettings(max_new_tokens=6, batch_tokens=700, share_prefix=False),
    ],
)
def test_batching_and_sharing_change_nothing(model, probes, tables, settings):
    """Other padding, other neighbours, shared prompts or not: the same tables to 1e-5."""
    found = run_probes(model, TOKENIZER, TEMPLATE, probes, settings)
    for name, table in tables.items():
        assert found[name].info["key"] == table.info["key"]
        for ours, theirs in zip(found[name]["answer_logps"], table["answer_logps"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert found[name]["generation"] == table["generation"]


def test_the_order_of_rows_changes_nothing_but_the_order(model, tables):
    rows = load_rows(FACTS[::-1], name="forget")
    found = run_probes(model, TOKENIZER, TEMPLATE, [Probe(name="forget", rows=rows)], SETTINGS)
    for ours, theirs in zip(
        found["forget"]["answer_logps"], tables["forget"]["answer_logps"][::-1], strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-5)


class Killed(RuntimeError):
    pass


def counting(monkeypatch):
    """Counts rows whose answers are scored and rows that are generated."""
    counts = {"scored": 0, "generated": 0}
    score, generate = runner.score_answers, runner.generate_batches

    def score_answers(model, jobs, **options):
        counts["scored"] += len(jobs)
        return score(model, jobs, **options)

    def generate_batches(model, prompts, **options):
        counts["generated"] += len(prompts)
        return generate(model, prompts, **options)

    monkeypatch.setattr(runner, "score_answers", score_answers)
    monkeypatch.setattr(runner, "generate_batches", generate_batches)
    return counts


def same_tables(found, expected):
    for name, table in expected.items():
        for column, values in table.columns.items():
            if column.endswith("logps"):
                assert str(found[name][column]) == str(values) or all(
                    str(a) == str(b) for a, b in zip(found[name][column], values, strict=True)
                ), column
            else:
                assert list(found[name][column]) == list(values), column


@pytest.mark.parametrize("die_at", [("scoring answers", 6), ("generating answers", 5)])
def test_a_killed_run_goes_on_where_it_was(model, probes, tmp_path, monkeypatch, die_at):
    store = EvaluationStore(tmp_path)
    settings = EvaluationSettings(max_new_tokens=6, batch_tokens=500)
    straight = run_probes(model, TOKENIZER, TEMPLATE, probes, settings)
    stage, least = die_at

    def die(done, total, label):
        if label == stage and done >= least:
            raise Killed

    counts = counting(monkeypatch)
    with pytest.raises(Killed):
        run_probes(model, TOKENIZER, TEMPLATE, probes, settings, store=store, on_progress=die)
    first = dict(counts)
    seen = []
    found = run_probes(
        model,
        TOKENIZER,
        TEMPLATE,
        probes,
        settings,
        store=store,
        on_progress=lambda *told: seen.append(told),
    )
    assert seen[0][0] >= (least if stage == "scoring answers" else 15)
    again = counts["scored"] - first["scored"] + counts["generated"] - first["generated"]
    assert again <= 30 - least - (15 if stage == "generating answers" else 0)
    same_tables(found, straight)


def test_complete_probes_are_not_run_again(model, probes, tmp_path, monkeypatch):
    store = EvaluationStore(tmp_path)
    first = run_probes(model, TOKENIZER, TEMPLATE, probes[:1], SETTINGS, store=store)
    counts = counting(monkeypatch)
    found = run_probes(model, TOKENIZER, TEMPLATE, probes, SETTINGS, store=store)
    assert counts == {"scored": 6, "generated": 6}  # the retain rows only
    assert list(found) == ["forget", "retain"]
    for column in ("answer_logps", "perturbed_logps", "paraphrase_logps"):
        # Stored as float32, which is what they are.
        assert found["forget"][column] == first["forget"][column]
    run_probes(model, TOKENIZER, TEMPLATE, probes, SETTINGS, store=store)
    assert counts == {"scored": 6, "generated": 6}


def test_whatever_decides_a_table_makes_another_key(model, probes):
    def key(**changes):
        base = {
            "model": model,
            "template": TEMPLATE,
            "probe": probes[0],
            "settings": SETTINGS,
            **changes,
        }
        origin = runner._origin(
            model_fingerprint(base["model"]),
            "float32",
            TOKENIZER,
            base["template"],
            base["settings"],
        )
        return runner._info(base["probe"], origin)["key"]

    other = Probe(name="forget", rows=probes[0].rows[:5])
    silent = Probe(name="forget", rows=probes[0].rows, generate=False)
    keys = [
        key(),
        key(model=tiny_model(TOKENIZER, seed=1)),
        key(template=make_template(TOKENIZER, "plain")),
        key(probe=other),
        key(probe=silent),
        key(settings=EvaluationSettings(max_new_tokens=7)),
        key(settings=EvaluationSettings(max_new_tokens=6, max_length=50)),
        key(settings=EvaluationSettings(max_new_tokens=6, generator="vllm")),
    ]
    assert len(set(keys)) == len(keys)
    assert key(settings=EvaluationSettings(max_new_tokens=6, batch_tokens=9)) == keys[0]
    assert key(model=tiny_model(TOKENIZER)) == keys[0]


def test_length_limits(model, probes):
    """80 tokens in total: a prompt of 78 leaves 2 for the answer, scored or generated."""
    settings = EvaluationSettings(max_new_tokens=6, max_total_tokens=80, max_length=80)
    table = run_probes(model, TOKENIZER, TEMPLATE, probes[:1], settings)["forget"]
    for prompt, logps, generated in zip(
        table["prompt_tokens"], table["answer_logps"], table["generation_tokens"], strict=True
    ):
        room = max(0, 80 - prompt)
        assert len(logps) == room
        assert generated == min(6, room)
    assert 0 in map(len, table["answer_logps"])


def test_plain_text_rows(model):
    rows = load_rows([{"text": "Mira Solheim was born in Bergen."}, {"text": "Oslo."}], name="t")
    probe = Probe(name="forget", rows=rows, generate=False)
    table = run_probes(model, TOKENIZER, TEMPLATE, [probe], SETTINGS)["forget"]
    assert "generation" not in table
    ids = TOKENIZER("Oslo.", add_special_tokens=False).input_ids
    # Nothing predicts the first token.
    with torch.no_grad():
        at = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = [float(at[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    assert table["answer_logps"][1] == pytest.approx(expected, abs=1e-5)


def test_rows_longer_than_the_context_are_all_named(probes):
    small = tiny_model(TOKENIZER, max_length=85)
    with pytest.raises(InputError) as caught:
        run_probes(small, TOKENIZER, TEMPLATE, probes, SETTINGS)
    assert "evaluation has" in str(caught.value)
    assert "sees only 85" in str(caught.value)
    assert len(caught.value.problems) > 3


def test_wrong_answers_must_be_texts():
    rows = load_rows([{"question": "q", "answer": "a", "perturbed_answer": [1]}], name="forget")
    with pytest.raises(InputError, match="forget row 0: perturbed_answer must be a list"):
        Probe(name="forget", rows=rows).perturbed(rows[0])


def test_settings_are_checked():
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        EvaluationSettings(max_new_tokens=0)


def test_probe_names_differ(model, probes):
    with pytest.raises(ValueError, match="same name"):
        run_probes(model, TOKENIZER, TEMPLATE, [probes[0], probes[0]], SETTINGS)


def test_moments_of_the_true_answer_equal_the_naive_twin(model, probes, tables):
    for i, row in enumerate(probes[0].rows):
        prompt, said = TEMPLATE.encode(row.messages, row.answer)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *said]])).logits[0].double()
        log_p = logits[len(prompt) - 1 : -1].log_softmax(-1)
        mean = (log_p.exp() * log_p).sum(-1)
        variance = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1)
        assert tables["forget"]["answer_logp_mean"][i] == pytest.approx(mean.tolist(), abs=1e-5)
        assert tables["forget"]["answer_logp_var"][i] == pytest.approx(variance.tolist(), abs=1e-5)


def test_a_text_to_be_continued_has_no_template_and_no_end(model):
    rows = load_rows([{"question": "The harbour of Port Keel ", "answer": "lies west."}], name="x")
    probe = Probe(name="verbmem", rows=rows, continuation=True, max_new_tokens=3, variants=False)
    table = run_probes(model, TOKENIZER, TEMPLATE, [probe], SETTINGS)["verbmem"]
    prompt = TOKENIZER("The harbour of Port Keel ", add_special_tokens=False)["input_ids"]
    whole = TOKENIZER("The harbour of Port Keel lies west.", add_special_tokens=False)["input_ids"]
    assert table["prompt_tokens"] == [len(prompt)]
    assert len(table["answer_logps"][0]) >= len(whole) - len(prompt)
    assert TOKENIZER.eos_token_id not in whole
    assert table["generation_tokens"][0] <= 3


def test_generations_are_cut_at_a_mark_and_references_to_a_length(model):
    rows = load_rows([{"question": "Where?", "answer": "one two three four five six"}], name="x")
    whole = run_probes(model, TOKENIZER, TEMPLATE, [Probe(name="a", rows=rows)], SETTINGS)["a"]
    said = whole["generation"][0]
    mark = said[2:4]
    probe = Probe(name="a", rows=rows, cut_at=("never said", mark), reference_tokens=2)
    table = run_probes(model, TOKENIZER, TEMPLATE, [probe], SETTINGS)["a"]
    assert table["generation"][0] == said[: said.index(mark)]
    assert table["finished"] == [True]
    kept = TOKENIZER("one two three four five six", add_special_tokens=False)["input_ids"][:2]
    assert table["answer"][0] == TOKENIZER.decode(kept)


def test_the_pool_gives_a_table_back_under_another_name(model, probes, tmp_path, monkeypatch):
    pool = TablePool(tmp_path)
    first = run_probes(model, TOKENIZER, TEMPLATE, [probes[0]], SETTINGS, store=pool)
    monkeypatch.setattr(runner, "_score", lambda *args, **options: pytest.fail("computed again"))
    renamed = Probe(name="task_01", rows=probes[0].rows)
    again = run_probes(model, TOKENIZER, TEMPLATE, [renamed], SETTINGS, store=pool)
    assert again["task_01"].probe == "task_01"
    assert again["task_01"]["generation"] == first["forget"]["generation"]
