"""What a run did once is not done again: no training, no evaluation, no weights, no tokenising."""

import json
from collections import Counter

import pytest

from expunge.cli import main
from expunge.data.chat import ChatTemplate
from expunge.models import fingerprints
from expunge.run import measuring, pipelines
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts
from expunge.training import Trainer

FACTS = toy_facts(12, perturbed=True)


class Calls:
    """What a run did."""

    def __init__(self, monkeypatch):
        self.trained, self.evaluated, self.loaded, self.hashed = 0, 0, 0, 0
        self.encoded = Counter()
        self._count(monkeypatch, Trainer, "train", "trained")
        self._count(monkeypatch, measuring, "model_tables", "evaluated")
        self._count(monkeypatch, pipelines, "load_model", "loaded")
        self._count(monkeypatch, fingerprints, "fingerprint_file", "hashed")
        encode = ChatTemplate.encode

        def counted(template, messages, answer):
            self.encoded[tuple(messages), answer] += 1
            return encode(template, messages, answer)

        monkeypatch.setattr(ChatTemplate, "encode", counted)

    def _count(self, monkeypatch, place, name, attribute):
        monkeypatch.setattr(place, name, self._counted(getattr(place, name), attribute))

    def _counted(self, function, attribute):
        def counted(*arguments, **options):
            setattr(self, attribute, getattr(self, attribute) + 1)
            return function(*arguments, **options)

        return counted


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe with all stages, run once; its cache is that of this module."""
    place = tmp_path_factory.mktemp("second")
    patch = pytest.MonkeyPatch()
    patch.setenv("EXPUNGE_CACHE", str(place / "cache"))
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for name, rows in (("forget", FACTS[:4]), ("retain", FACTS[4:])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(lines)
    (place / "run.yaml").write_text(
        f"""
name: second
output_dir: {place}/run
model: {{path: {place}/base}}
data: {{forget: {place}/forget.jsonl, retain: {place}/retain.jsonl}}
method: NPO+GD
training: {{max_steps: 1, effective_batch_size: 4}}
finetune: {{training: {{max_steps: 1, effective_batch_size: 4}}}}
evaluation: {{benchmark: custom, max_new_tokens: 4}}
"""
    )
    with pytest.MonkeyPatch.context() as first:
        calls = Calls(first)
        assert main(["unlearn", str(place / "run.yaml")]) == 0
    yield place / "run.yaml", calls
    patch.undo()


def test_a_first_run_tokenises_every_row_once_and_hashes_every_weight_file_once(recipe):
    _, calls = recipe
    # Target, retain and unlearned model; base, target, retain and unlearned model.
    assert (calls.trained, calls.evaluated) == (3, 4)
    assert calls.hashed == 4
    assert {row for row, times in calls.encoded.items() if times > 1} == set()
    assert len(calls.encoded) >= len(FACTS)


def test_the_second_run_loads_no_weights(recipe, monkeypatch):
    path, _ = recipe
    calls = Calls(monkeypatch)
    assert main(["unlearn", str(path)]) == 0
    assert (calls.trained, calls.evaluated, calls.loaded, calls.hashed) == (0, 0, 0, 0)


def test_another_folder_unlearns_again_and_nothing_else(recipe, monkeypatch, tmp_path):
    path, _ = recipe
    calls = Calls(monkeypatch)
    assert main(["unlearn", str(path), "--output", str(tmp_path / "other")]) == 0
    # The same numbers come out, so even the tables of the new model are known.
    assert (calls.trained, calls.evaluated, calls.loaded, calls.hashed) == (1, 0, 1, 1)
    first = json.loads((path.parent / "run/evaluation/unlearned/results.json").read_text())
    again = json.loads((tmp_path / "other/evaluation/unlearned/results.json").read_text())
    assert again["scores"] == first["scores"]


def test_another_model_at_the_same_place_gets_its_own_tokenizer(tmp_path):
    from expunge.run.sections import ModelConfig
    from expunge.run.texts import run_tokenizer

    tiny_model(tiny_tokenizer()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    first = run_tokenizer(ModelConfig(path=str(tmp_path)))
    assert run_tokenizer(ModelConfig(path=str(tmp_path))) is first
    tiny_tokenizer(vocab_size=300).save_pretrained(tmp_path)
    assert len(run_tokenizer(ModelConfig(path=str(tmp_path)))) < len(first)
