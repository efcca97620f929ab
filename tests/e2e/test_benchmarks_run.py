"""Whole benchmarks on a two-layer model: requests in a row, three models of an experiment, MUSE."""

import json

import pytest

from expunge.cli import main
from expunge.run import pipelines
from expunge.testing.muse import tiny_muse
from expunge.testing.real_world import tiny_real_world
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts

FACTS = toy_facts(18, perturbed=True)
QUICK = "{learning_rate: 0.005, num_train_epochs: 2, effective_batch_size: 3, micro_batch_size: 3}"
TEACH = "{learning_rate: 0.02, num_train_epochs: 3, effective_batch_size: 6, micro_batch_size: 6}"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    texts = [f"{fact['question']} {fact['answer']}" for fact in FACTS]
    tokenizer = tiny_tokenizer(CHAT_TEMPLATES["smollm2"], texts=texts)
    tiny_model(tokenizer, max_length=2048).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    patch = pytest.MonkeyPatch()
    patch.setenv("EXPUNGE_CACHE", str(root / "cache"))
    yield root
    patch.undo()


def config(root, name, data, more):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
name: {name}
output_dir: {root}/{name}
model: {{path: {root}/base}}
data: {data}
method: NPO+GD
training: {QUICK}
finetune: {{training: {TEACH}}}
{more}
"""
    )
    return path


def results(folder, role="unlearned"):
    return json.loads((folder / "evaluation" / role / "results.json").read_text())["scores"]


@pytest.fixture(scope="module")
def continual(place):
    for i in range(3):
        write_jsonl(place / f"request_{i}.jsonl", FACTS[3 * i : 3 * i + 3])
    retain = write_jsonl(place / "keep.jsonl", FACTS[9:])
    requests = ", ".join(f"{place}/request_{i}.jsonl" for i in range(3))
    more = f"""
evaluation: {{benchmark: custom, max_new_tokens: 4, encoder: null, nli: null}}
scenario: {{requests: [{requests}], reference: fixed}}
"""
    data = f"{{forget: {place}/request_0.jsonl, retain: {retain}}}"
    file = config(place, "continual", data, more)
    assert run("run-benchmark", "continual", file) == 0
    return file, place / "continual"


def test_requests_start_from_each_other_and_are_asked_again(continual):
    _, folder = continual
    stages = [folder / f"request_0{i}" for i in (1, 2, 3)]
    starts = [json.loads((stage / "run.json").read_text())["models"]["target"] for stage in stages]
    ends = [json.loads((s / "run.json").read_text())["models"]["unlearned"] for s in stages]
    assert starts[1]["fingerprint"] == ends[0]["fingerprint"]
    assert starts[2]["fingerprint"] == ends[1]["fingerprint"]
    last = results(stages[2])
    assert {"request_01/probability", "request_02/probability"} <= set(last)
    # The rows of request 1 were scored by its own run under the name forget.
    again = results(stages[1])["request_01/probability"]["value"]
    own = results(stages[0])["forget/probability"]["value"]
    assert again != own
    before = results(stages[1], "target")["request_01/probability"]["value"]
    assert before == own


def test_rows_of_later_requests_are_kept_until_their_turn(continual):
    _, folder = continual
    kept = [
        len((folder / "data" / f"request_0{i}_retain.jsonl").read_text().splitlines())
        for i in (1, 2, 3)
    ]
    assert kept == [15, 12, 9]
    # What is measured stays the same.
    assert [results(folder / f"request_0{i}")["retain/probability"]["n"] for i in (1, 2, 3)] == [
        9,
        9,
        9,
    ]


def test_every_request_is_compared_with_a_model_that_saw_none_of_them(continual):
    _, folder = continual
    models = [
        json.loads((folder / f"request_0{i}" / "run.json").read_text())["models"] for i in (1, 2, 3)
    ]
    assert len({found["retain"]["fingerprint"] for found in models}) == 1
    assert results(folder / "request_03")["forget_quality"]["n"] == 3


def test_the_fixed_reference_is_the_first_target_model(continual):
    _, folder = continual
    text = (folder / "request_03" / "config.yaml").read_text()
    manifest = json.loads((folder / "request_01" / "run.json").read_text())
    assert f"reference: {manifest['models']['target']['path']}" in text


def test_the_report_of_a_scenario_has_all_requests(continual):
    _, folder = continual
    page = (folder / "report.html").read_text()
    assert all(f"request_0{i}" in page for i in (1, 2, 3))
    assert 'src="http' not in page


def test_a_second_call_trains_nothing(continual, monkeypatch):
    file, _ = continual

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(pipelines, "forget_job", refuse)
    monkeypatch.setattr(pipelines, "learn", refuse)
    assert run("run-benchmark", "continual", file) == 0


def test_related_knowledge_compares_three_models(place):
    more = """
evaluation: {benchmark: related_knowledge, max_new_tokens: 3, encoder: null, nli: null}
scenario: {facts: {num_facts: 2, num_related: 2}}
"""
    file = config(place, "related", "{forget: generated, retain: generated}", more)
    assert run("run-benchmark", "related_knowledge", file) == 0
    folder = place / "related"
    for arm in ("theta_1", "theta_2", "theta_3"):
        assert results(folder / arm)["target/rouge_l_recall"]["n"] == 2
    found = json.loads((folder / "relations.json").read_text())
    assert set(found) == {"theta_1", "theta_2", "theta_3"}
    assert found["theta_1"]["gradient_cosine"]["related"]["n"] == 2
    assert "Gradients and the update" in (folder / "report.html").read_text()


def test_muse_and_its_sustainability(place):
    tiny_muse(place / "muse")
    more = "evaluation: {benchmark: muse, max_new_tokens: 4, passes: [gradnorm, lowercase]}"
    data = "{forget: x.txt, retain: y.txt, max_length: 64}"
    file = config(place, "muse-run", data, more)
    assert run("run-benchmark", "muse", file, "--folder", place / "muse") == 0
    scores = results(place / "muse-run")
    measured = {key for key, score in scores.items() if score["value"] is not None}
    assert {"verbmem/rouge_l_f1", "knowmem_forget/rouge_l_f1", "privleak", "mia_min_k"} <= measured
    assert {"mia_gradnorm", "mia_lowercase_ratio"} <= measured
    again = ("muse_sustainability", file, "--folder", place / "muse", "--output", place / "sust")
    assert run("run-benchmark", *again) == 0
    assert results(place / "sust" / "request_02")["request_01/probability"]["n"] > 0


def test_real_people_are_asked_with_true_answers_and_trained_on_their_own(place):
    (place / "people").mkdir()
    tiny_real_world(place / "people")
    path = place / "people.yaml"
    path.write_text(
        f"""
name: people
output_dir: {place}/people-run
model: {{path: {place}/base}}
data: {{forget: forget.jsonl, retain: neighbor.jsonl}}
method: ME+GD
training: {QUICK}
evaluation: {{benchmark: real_world, max_new_tokens: 4}}
"""
    )
    assert run("run-benchmark", "real_world", path, "--folder", place / "people") == 0
    scores = results(place / "people-run")
    assert scores["forget/probability"]["value"] is not None
    assert scores["forget_efficacy"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "unknown benchmark to run"),
        (("muse",), "evaluation.options.folder"),
    ],
)
def test_what_is_missing_is_said(capsys, arguments, message):
    assert run("run-benchmark", *arguments) == 2
    assert message in capsys.readouterr().err
