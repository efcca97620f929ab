"""Answers by vLLM, with a fake in its place that takes and gives what vLLM documents."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from expunge.core.errors import InputError, RunError
from expunge.data import load_rows, make_template
from expunge.evaluation import EvaluationSettings, Probe, run_probes
from expunge.evaluation.store import EvaluationStore
from expunge.models.generate import generate_texts
from expunge.models.generate_vllm import generate_batches_vllm
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

TOKENIZER = tiny_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model():
    model = tiny_model(TOKENIZER, max_length=128)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    return model


@dataclass(kw_only=True)
class SamplingParams:
    """Arguments and defaults as in vllm/sampling_params.py, as far as they matter here."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True

    def __post_init__(self):
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass
class Recorder:
    engines: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    folders: list = field(default_factory=list)
    reason: str | None = None


@pytest.fixture
def vllm(monkeypatch):
    """A module `vllm` whose engine runs the saved model with transformers, one prompt at a time."""
    recorder = Recorder()

    class LLM:
        def __init__(self, model, **options):
            from transformers import AutoModelForCausalLM

            recorder.engines.append(options)
            recorder.folders.append(Path(model))
            self.model = AutoModelForCausalLM.from_pretrained(model)
            self.longest = options["max_model_len"]

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
            recorder.calls.append((prompts, sampling_params))
            pairs = zip(prompts, sampling_params, strict=True)
            return [SimpleNamespace(outputs=[self._one(*pair)]) for pair in pairs]

        def _one(self, prompt, params):
            ids = prompt["prompt_token_ids"]
            assert params.temperature == 0
            assert len(ids) + params.max_tokens <= self.longest
            out = self.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=params.max_tokens,
                do_sample=False,
                eos_token_id=params.stop_token_ids or -1,
            )[0, len(ids) :].tolist()
            stopped = out[-1] in (params.stop_token_ids or [])
            # As vLLM does it, the token that stopped is among the tokens.
            reason = recorder.reason or ("stop" if stopped else "length")
            return SimpleNamespace(text="", token_ids=out, finish_reason=reason, stop_reason=None)

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams, fake.TokensPrompt = LLM, SamplingParams, dict
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return recorder


def prompts(count=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(10, 500, (3 + n,), generator=generator).tolist() for n in range(count)]


def by_vllm(model, asked, **options):
    found = {}
    for part in generate_batches_vllm(model, asked, tokenizer=TOKENIZER, **options):
        found.update(part)
    return [found[position] for position in range(len(asked))]


def test_equals_our_own_generation(model, vllm):
    said = generate_texts(model, prompts(), tokenizer=TOKENIZER, max_new_tokens=12, stop_ids=())
    stops = {said[0].token_ids[4], said[1].token_ids[0]}
    limits = [12, 12, 0, 3, 12, 1]
    options = {"max_new_tokens": limits, "stop_ids": stops}
    ours = generate_texts(model, prompts(), tokenizer=TOKENIZER, **options)
    assert by_vllm(model, prompts(), **options) == ours
    assert ours[1].finished
    assert not ours[3].finished
    (((_, params),)) = vllm.calls
    assert [p.max_tokens for p in params] == [12, 12, 3, 12, 1]  # vLLM refuses 0
    assert all(p.ignore_eos and not p.detokenize for p in params)


def test_the_model_is_saved_for_as_long_as_it_is_needed(model, vllm):
    by_vllm(model, prompts(1), max_new_tokens=2, stop_ids=())
    (folder,) = vllm.folders
    assert not folder.exists()
    assert vllm.engines[0]["dtype"] == "float32"
    assert vllm.engines[0]["max_model_len"] == 3 + 2


def test_a_saved_model_is_used_where_it_lies(model, vllm, tmp_path):
    model.save_pretrained(tmp_path)
    by_vllm(model, prompts(1), max_new_tokens=2, stop_ids=(), folder=tmp_path)
    assert vllm.folders == [tmp_path]


def test_many_prompts_go_in_parts(model, vllm, monkeypatch):
    monkeypatch.setattr("expunge.models.generate_vllm.PART", 4)
    by_vllm(model, prompts(6), max_new_tokens=1, stop_ids=())
    assert [len(asked) for asked, _ in vllm.calls] == [4, 2]
    assert len(vllm.engines) == 1


def test_an_answer_that_was_given_up_is_an_error(model, vllm):
    vllm.reason = "abort"
    with pytest.raises(RunError, match="'abort'"):
        by_vllm(model, prompts(1), max_new_tokens=2, stop_ids=())


def test_an_adapter_must_be_merged_first(vllm):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny_model(TOKENIZER), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InputError, match="Merge the adapter"):
        by_vllm(wrapped, prompts(1), max_new_tokens=2, stop_ids=())


def evaluated(model, tmp_path, **options):
    template = make_template(TOKENIZER, "auto")
    rows = load_rows(toy_facts(3), name="forget")
    return run_probes(
        model,
        TOKENIZER,
        template,
        [Probe(name="forget", rows=rows)],
        EvaluationSettings(max_new_tokens=6, **options),
        store=EvaluationStore(tmp_path / options.get("generator", "own")),
    )["forget"]


def test_an_evaluation_with_vllm_has_a_table_of_its_own(model, vllm, tmp_path):
    own = evaluated(model, tmp_path)
    theirs = evaluated(model, tmp_path, generator="vllm")
    assert list(theirs["generation"]) == list(own["generation"])
    assert len(vllm.engines) == 1
    assert theirs.info["key"] != own.info["key"]
    assert theirs.info["settings"]["generator"] == "vllm"
    assert "generator" not in own.info["settings"]  # the key of tables from before the choice


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_nothing_is_started(model, tmp_path):
    with pytest.raises(InputError, match=r"pip install .expunge\[vllm\]"):
        evaluated(model, tmp_path, generator="vllm")
    assert not any(tmp_path.rglob("*"))


def test_only_known_generators():
    with pytest.raises(InputError, match="transformers"):
        EvaluationSettings(generator="transformer")
