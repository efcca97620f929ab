"""Harness tasks: numbers equal a hand-made twin, and what cannot run says why."""

import json
import random

import numpy as np
import pytest
import torch

from expunge.core.errors import InputError, MissingExtraError
from expunge.core.results import load_record
from expunge.evaluation import harness_names
from expunge.evaluation.harness import HarnessResults, check_tasks, run_harness
from expunge.evaluation.harness_tasks import STANDARD_TASKS, HarnessTask, harness_task
from expunge.testing.tiny import tiny_model, tiny_tokenizer

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs:
  cache_dir: {folder}/cache
  data_files:
    train: {folder}/examples.json
    test: {folder}/{file}
training_split: train
fewshot_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
{more}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.5
"""
MISSING = """
task: tiny_missing
dataset_path: nobody/nothing_at_all
test_split: test
output_type: multiple_choice
doc_to_text: "x"
doc_to_choice: ["a", "b"]
doc_to_target: 0
"""
GENERATED = """
task: tiny_said
dataset_path: json
dataset_kwargs:
  cache_dir: {folder}/cache
  data_files:
    test: {folder}/first.json
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "nobody says this"
generation_kwargs:
  until: ["never"]
  max_gen_toks: 3
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
GROUP = """
group: {name}
task: [tiny_first, tiny_second]
{more}
metadata:
  version: 2
"""
MEAN = "aggregate_metric_list:\n  - metric: acc\n    weight_by_size: true"


def question(number, right):
    choices = ["born", "writes", "prize", "mother"]
    return {"question": f"Mira Solheim {number}", "choices": choices, "answer": right}


FIRST = [question(i, i % 4) for i in range(6)]
EXAMPLES = [question(k + 50, k % 4) for k in range(40)]
SECOND = [question(i + 10, 1) for i in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks of a user's own: two of choices, one without data, one generated, groups."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("first", FIRST), ("second", SECOND), ("examples", EXAMPLES)):
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = {"folder": folder, "more": "tag: tiny_tag"}
    texts = {
        "tiny_first": CHOICES.format(name="tiny_first", file="first.json", **choices),
        "tiny_second": CHOICES.format(name="tiny_second", file="second.json", **choices),
        "tiny_zero": CHOICES.format(
            name="tiny_zero", file="second.json", folder=folder, more="num_fewshot: 0"
        ),
        "tiny_missing": MISSING,
        "tiny_said": GENERATED.format(folder=folder),
        "tiny_group": GROUP.format(name="tiny_group", more=MEAN),
        "tiny_heap": GROUP.format(name="tiny_heap", more=""),
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _small_index(monkeypatch):
    """Reading all tasks of the harness takes half a minute; the standard ones will do."""
    real = harness_names._index
    monkeypatch.setattr(
        harness_names, "_index", lambda folders, *, whole: real(folders, whole=False)
    )


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


needs_harness = pytest.mark.skipif(
    harness_names.importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval"
)


def naive_accuracy(model, tokenizer, rows, *, begin=(), between=" "):
    """Share of rows whose right choice is the likeliest, each choice scored on its own.

    Args:
        begin: Token ids in front of everything.
        between: Text between question and choice.
    """

    def encode(text):
        return [*begin, *tokenizer.encode(text, add_special_tokens=False)]

    right = []
    for row in rows:
        scores = []
        for choice in row["choices"]:
            prompt, ids = encode(row["question"]), encode(row["question"] + between + choice)
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            scores.append(sum(logps[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))))
        right.append(int(np.argmax(scores)) == row["answer"])
    return right


@needs_harness
class TestRun:
    def test_equals_a_naive_twin(self, folder, model, tokenizer):
        """acc is the task's first metric; its error is that of a mean, deviation by n - 1."""
        found = run_harness(model, tokenizer, ["tiny_first"], include_path=folder)
        score = found.scores["lm_eval/tiny_first"]
        right = naive_accuracy(model, tokenizer, FIRST)
        mean, stderr = np.mean(right), np.std(right, ddof=1) / np.sqrt(len(right))
        assert 0 < mean < 1, "the twin proves nothing"
        assert score.value == pytest.approx(mean)
        assert (score.n, score.better, score.unit, score.reason) == (6, "higher", "acc", None)
        assert score.low == pytest.approx(max(0.0, mean - 1.96 * stderr))
        assert score.high == pytest.approx(min(1.0, mean + 1.96 * stderr))
        info = found.tasks["lm_eval/tiny_first"]
        assert (info.metric, info.version, info.num_fewshot) == ("acc,none", "1.5", 0)
        assert (info.num_questions, info.stderr) == (6, pytest.approx(stderr))
        assert found.versions["lm_eval"]

    def test_equals_simple_evaluate(self, folder, model, tokenizer, monkeypatch):
        """With and without examples in the prompt; the same ones are drawn."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        asked = []
        encode = HFLM.tok_encode

        def spy(self, string, *args, **kwargs):
            asked[-1].add(string)
            return encode(self, string, *args, **kwargs)

        monkeypatch.setattr(HFLM, "tok_encode", spy)
        manager = harness_names.task_manager(["tiny_first"], (folder,))
        for shots in (None, 2):
            asked.append(set())
            theirs = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3),
                tasks=["tiny_first"],
                num_fewshot=shots,
                task_manager=manager,
                log_samples=False,
            )["results"]["tiny_first"]
            task = HarnessTask(name="tiny_first", metric="acc_norm,none")
            asked.append(set())
            ours = run_harness(model, tokenizer, [task], num_fewshot=shots, include_path=folder)
            assert asked[-1] == asked[-2]
            assert ours.scores[task.key].value == theirs["acc_norm,none"]
            assert ours.tasks[task.key].stderr == theirs["acc_norm_stderr,none"]
            assert ours.tasks[task.key].num_fewshot == (shots or 0)

    def test_a_group_weighs_its_tasks_by_size(self, folder, model, tokenizer):
        names = ["tiny_group", "tiny_first", "tiny_second"]
        found = run_harness(model, tokenizer, names, include_path=folder)
        group, first, second = (found.scores[f"lm_eval/{name}"] for name in names)
        assert group.value == pytest.approx((6 * first.value + 2 * second.value) / 8)
        assert (group.n, group.better) == (8, "higher")
        assert found.tasks["lm_eval/tiny_group"].version == "2"

    def test_a_limit_is_seen_in_the_count(self, folder, model, tokenizer):
        found = run_harness(model, tokenizer, ["tiny_group"], limit=1, include_path=folder)
        assert found.scores["lm_eval/tiny_group"].n == 2
        assert found.tasks["lm_eval/tiny_group"].num_questions == 8
        assert found.settings["limit"] == 1

    def test_what_cannot_be_loaded_leaves_the_others(self, folder, model, tokenizer):
        seen = []
        found = run_harness(
            model,
            tokenizer,
            ["tiny_missing", "tiny_second"],
            include_path=folder,
            on_task=lambda key, score: seen.append((key, score.value)),
        )
        missing, second = found.scores["lm_eval/tiny_missing"], found.scores["lm_eval/tiny_second"]
        assert (missing.value, missing.n) == (None, 0)
        assert "nobody/nothing_at_all" in missing.reason
        assert "needs a network" in missing.reason
        assert second.value is not None
        assert seen == [("lm_eval/tiny_missing", None), ("lm_eval/tiny_second", second.value)]

    def test_a_metric_it_has_not_is_absent(self, folder, model, tokenizer):
        task = HarnessTask(name="tiny_second", metric="f1,none", better="lower", chance=0.25)
        found = run_harness(model, tokenizer, [task], include_path=folder)
        assert "no f1,none of it; it has: ['acc,none', 'acc_norm,none']" in (
            found.scores[task.key].reason
        )
        assert found.scores[task.key].better == "lower"
        assert found.tasks[task.key].chance == 0.25

    def test_a_task_that_fixes_no_examples_keeps_that(self, folder, model, tokenizer):
        found = run_harness(
            model, tokenizer, ["tiny_zero", "tiny_second"], num_fewshot=1, include_path=folder
        )
        assert {key: info.num_fewshot for key, info in found.tasks.items()} == {
            "lm_eval/tiny_zero": 0,
            "lm_eval/tiny_second": 1,
        }

    def test_beginning_token(self, folder, model, tokenizer, monkeypatch):
        """SmolLM2's tokenizer puts none there by itself; `add_bos` puts one, and only one."""
        seen = []
        forward = model.forward

        def watched(input_ids, *args, **kwargs):
            seen.append(input_ids[:, :2].tolist())
            return forward(input_ids, *args, **kwargs)

        monkeypatch.setattr(model, "forward", watched)
        bos = tokenizer.bos_token_id
        for add_bos in (None, True, False):
            seen.clear()
            run_harness(
                model,
                tokenizer,
                ["tiny_second", "tiny_said"],
                limit=2,
                add_bos=add_bos,
                include_path=folder,
            )
            prompts = [ids for batch in seen for ids in batch if len(ids) > 1]
            assert prompts
            assert {ids[0] == bos for ids in prompts} == {bool(add_bos)}
            assert not any(ids == [bos, bos] for ids in prompts)

    def test_a_declaration_says_how_it_is_asked_and_read(self, folder, model, tokenizer):
        """What is given for all tasks goes before the declaration."""
        task = HarnessTask(
            name="tiny_second",
            better="lower",
            add_bos=True,
            ideal=0.25,
            explanation="Wanted: 1/4",
        )
        found = run_harness(model, tokenizer, [task], include_path=folder)
        score = found.scores[task.key]
        assert (score.better, score.note) == ("lower", "Wanted: 1/4")
        assert score.two_sided == pytest.approx(abs(score.value - 0.25))
        assert found.tasks[task.key].add_bos is True
        other = run_harness(model, tokenizer, [task], add_bos=False, include_path=folder)
        assert other.tasks[task.key].add_bos is False

    def test_a_tokenizer_that_adds_it_is_not_made_to_twice(self, folder):
        tokenizer = tiny_tokenizer("llama2")
        model = tiny_model(tokenizer)
        scores = {
            add_bos: run_harness(
                model, tokenizer, ["tiny_first"], add_bos=add_bos, include_path=folder
            ).scores["lm_eval/tiny_first"]
            for add_bos in (None, True)
        }
        assert scores[None] == scores[True]
        begin = [tokenizer.bos_token_id]
        twin = naive_accuracy(model, tokenizer, FIRST, begin=begin)
        assert scores[True].value == pytest.approx(np.mean(twin))

    def test_chat_template(self, folder, model, tokenizer):
        """The system line of the template is part of the prompt."""
        task = ["tiny_first"]
        found = run_harness(model, tokenizer, task, apply_chat_template=True, include_path=folder)
        rows = []
        for row in FIRST:
            messages = [{"role": "user", "content": row["question"]}]
            asked = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            rows.append({**row, "question": asked})
        twin = naive_accuracy(model, tokenizer, rows, between="")
        assert found.scores["lm_eval/tiny_first"].value == pytest.approx(np.mean(twin))
        assert found.settings["apply_chat_template"] is True

    def test_nothing_around_it_is_changed(self, folder, tokenizer, capfd):
        tokenizer = tiny_tokenizer("smollm2", pad="none")
        model = tiny_model(tokenizer).train()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        expected = random.random(), np.random.rand(), torch.rand(1).item()
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        run_harness(model, tokenizer, ["tiny_second", "tiny_said"], include_path=folder)
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
        assert model.training
        assert tokenizer.pad_token is None
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert capfd.readouterr() == ("", "")

    def test_results_are_a_record(self, folder, model, tokenizer, tmp_path):
        found = run_harness(model, tokenizer, ["tiny_said"], include_path=folder)
        found.save(tmp_path / "harness.json")
        assert load_record(HarnessResults, tmp_path / "harness.json") == found
        assert found.scores["lm_eval/tiny_said"].value == 0.0

    def test_warnings_are_kept(self, folder, tokenizer):
        """A context of ten tokens is too short for a question with an example."""
        short = tiny_model(tokenizer, max_length=10)
        found = run_harness(short, tokenizer, ["tiny_second"], num_fewshot=2, include_path=folder)
        assert any("exceeds" in text for text in found.tasks["lm_eval/tiny_second"].warnings)

    @pytest.mark.parametrize(
        ("options", "where"),
        [
            ({"limit": 0}, "limit"),
            ({"limit": True}, "limit"),
            ({"num_fewshot": -1}, "num_fewshot"),
            ({"batch_size": "automatic"}, "batch_size"),
            ({"tasks": []}, "at least one"),
        ],
    )
    def test_arguments_are_checked(self, folder, model, tokenizer, options, where):
        given = {"tasks": ["tiny_second"], "include_path": folder, **options}
        with pytest.raises(InputError, match=where):
            run_harness(model, tokenizer, **given)

    def test_all_problems_come_before_any_work(self, folder, tokenizer):
        plain = tiny_tokenizer(None)
        with pytest.raises(InputError) as caught:
            run_harness(
                None, plain, ["tiny_frist"], include_path=folder, limit=-1, apply_chat_template=True
            )
        assert [problem.where for problem in caught.value.problems] == [
            "tiny_frist",
            "limit",
            "apply_chat_template",
        ]


@needs_harness
class TestNames:
    def test_the_papers_tasks_exist(self):
        assert check_tasks([*STANDARD_TASKS]) == []

    def test_what_is_wrong_is_said_together(self, folder):
        names = ["gsm8k", "tiny_secnod", "tiny_tag", "tiny_heap", "gsm8k"]
        problems = check_tasks(names, include_path=folder)
        assert [problem.where for problem in problems] == [
            "gsm8k",
            "tiny_secnod",
            "tiny_tag",
            "tiny_heap",
        ]
        messages = [problem.message for problem in problems]
        assert "more than once" in messages[0]
        assert "Did you mean tiny_second" in messages[1]
        assert "name tasks: tiny_first, tiny_second" in messages[2]
        assert "without a mean" in messages[3]

    def test_nothing_and_nowhere(self, tmp_path):
        assert check_tasks([]) == []
        (problem,) = check_tasks(["mmlu"], include_path=[tmp_path / "gone"])
        assert problem.where.endswith("gone")

    def test_the_index_grows_only_when_it_must(self, folder, monkeypatch):
        asked = []
        index = harness_names._index

        def spy(folders, *, whole):
            asked.append(whole)
            return index(folders, whole=False)

        monkeypatch.setattr(harness_names, "_index", spy)
        check_tasks(["mmlu", "tiny_first"], include_path=folder)
        assert asked == [False]
        check_tasks(["tiny_group"], include_path=folder)
        assert asked == [False, False, True]


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(harness_names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"expunge\[lm-eval\]"):
        check_tasks(["mmlu"])


def test_numbers_of_the_papers():
    """Section 12 of the metric register: key, shots and direction of each task."""
    assert {
        name: (task.metric, task.num_fewshot, task.better) for name, task in STANDARD_TASKS.items()
    } == {
        "arc_challenge": ("acc_norm,none", 0, "higher"),
        "mmlu": ("acc,none", 0, "higher"),
        "truthfulqa_mc1": ("acc,none", 0, "higher"),
        "triviaqa": ("exact_match,remove_whitespace", 0, "higher"),
        "gsm8k": ("exact_match,flexible-extract", 5, "higher"),
        "wmdp_bio": ("acc,none", 0, "lower"),
        "wmdp_cyber": ("acc,none", 0, "lower"),
        "wmdp_chem": ("acc,none", 0, "lower"),
    }
    assert harness_task("mmlu") is STANDARD_TASKS["mmlu"]
    assert harness_task("hellaswag") == HarnessTask(name="hellaswag")
    assert harness_task("mmlu").key == "lm_eval/mmlu"
