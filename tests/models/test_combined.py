"""A combined model answers, is saved, loaded and evaluated like any other model."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from expunge.core.errors import InputError, RunError
from expunge.data import load_rows, make_template
from expunge.evaluation import run_probes
from expunge.evaluation.probes import EvaluationSettings, Probe
from expunge.models import combined as module
from expunge.models.checks import check_model
from expunge.models.combine import uld_logits, uld_offset_logits, whp_logits
from expunge.models.combined import CombinedConfig, CombinedModel, combine_models
from expunge.models.export import save_model
from expunge.models.fingerprints import model_fingerprint
from expunge.models.forward import accepts_logits_to_keep
from expunge.models.generate import generate_texts
from expunge.models.loading import load_model, load_tokenizer
from expunge.models.peft import LoraSettings, add_lora
from expunge.models.truncate import first_layers
from expunge.run.api import evaluate
from expunge.testing.tiny import tiny_model, tiny_tokenizer, toy_facts

ULD = {"weight": -0.8, "top_logit_filter": 0.05}
IDS = torch.tensor([[5, 20, 30, 40, 50, 60], [7, 300, 21, 100, 11, 12]])


def lively(model: Any, seed: int = 1) -> Any:
    """The model with larger, slightly moved weights, so that it does not repeat one token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0).add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def make_uld(tokenizer: Any, **options: Any) -> CombinedModel:
    target = lively(tiny_model(tokenizer, num_layers=3, max_length=128))
    assistant = lively(first_layers(target, 2), seed=2)
    return combine_models("uld", {"target": target, "assistant": assistant}, **{**ULD, **options})


def make_offset(tokenizer: Any) -> CombinedModel:
    target = lively(tiny_model(tokenizer, num_layers=3, max_length=128))
    base = first_layers(target, 1)
    parts = {"base_assistant": base, "target": target, "assistant": lively(first_layers(base, 1))}
    return combine_models("uld_offset", parts, weight=-0.7)


def make_whp(tokenizer: Any) -> CombinedModel:
    """Sliding windows in one part only, of another width and with another context."""
    sizes = {
        "vocab_size": len(tokenizer), "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 2, "eos_token_id": 3,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = LlamaForCausalLM(
            LlamaConfig(hidden_size=16, num_hidden_layers=1, max_position_embeddings=64, **sizes)
        )
        reinforced = Qwen2ForCausalLM(
            Qwen2Config(
                hidden_size=8, num_hidden_layers=3, max_position_embeddings=48,
                use_sliding_window=True, sliding_window=4, max_window_layers=1, **sizes,
            )
        )  # fmt: skip
    parts = {"target": lively(target), "reinforced": lively(reinforced)}
    return combine_models("whp", parts, alpha=2.0)


MAKERS = {"uld": make_uld, "uld_offset": make_offset, "whp": make_whp}


@pytest.fixture(params=MAKERS, ids=list(MAKERS))
def any_rule(request: pytest.FixtureRequest, tokenizer: Any) -> CombinedModel:
    return MAKERS[request.param](tokenizer)


@pytest.fixture
def uld(tokenizer: Any) -> CombinedModel:
    return make_uld(tokenizer)


@pytest.fixture
def uld_folder(uld: CombinedModel, tokenizer: Any, tmp_path: Path) -> Path:
    return save_model(tmp_path / "combined", uld, tokenizer, "# A card\n")


@torch.no_grad()
def naive_logits(model: CombinedModel, ids: Any, **inputs: Any) -> torch.Tensor:
    """The rule on what each part says alone, without any cache."""
    ids = torch.as_tensor(ids)
    said = [part(input_ids=ids, use_cache=False, **inputs).logits for part in model.parts.values()]
    options = dict(model.config.options)
    rule = {"uld": uld_logits, "uld_offset": uld_offset_logits, "whp": whp_logits}
    return rule[model.config.rule](*said, **options)


def naive_text(model: CombinedModel, prompt: list[int], num: int) -> list[int]:
    """Token by token, everything computed again for each."""
    ids = list(prompt)
    for _ in range(num):
        ids.append(int(naive_logits(model, [ids])[0, -1].argmax()))
    return ids[len(prompt) :]


# --- logits ---


@torch.no_grad()
def test_logits_are_the_rule_on_the_parts_logits(any_rule: CombinedModel) -> None:
    found = any_rule(IDS)
    assert torch.equal(found.logits, naive_logits(any_rule, IDS))
    assert torch.equal(any_rule(IDS, return_dict=False)[0], found.logits)


@torch.no_grad()
def test_no_weight_is_the_target(tokenizer: Any) -> None:
    model = make_uld(tokenizer, weight=0.0)
    assert torch.equal(model(IDS).logits, model.target(IDS).logits)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4]), torch.tensor([-1])])
@torch.no_grad()
def test_only_wanted_positions(uld: CombinedModel, keep: Any) -> None:
    chosen = slice(-keep, None) if isinstance(keep, int) else keep
    found = uld(IDS, logits_to_keep=keep).logits
    torch.testing.assert_close(found, uld(IDS).logits[:, chosen])
    assert accepts_logits_to_keep(uld)


@torch.no_grad()
def test_a_part_that_knows_no_positions_to_keep(
    uld: CombinedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = uld.assistant.forward
    expected = uld(IDS).logits

    def forward(input_ids: Any, attention_mask: Any = None, past_key_values: Any = None) -> Any:
        return inner(input_ids, attention_mask, past_key_values=past_key_values)

    monkeypatch.setattr(uld.assistant, "forward", forward)
    torch.testing.assert_close(uld(IDS).logits, expected)
    torch.testing.assert_close(uld(IDS, logits_to_keep=2).logits, expected[:, -2:])
    chosen = torch.tensor([1, 3])
    torch.testing.assert_close(uld(IDS, logits_to_keep=chosen).logits, expected[:, chosen])


@torch.no_grad()
def test_padding_changes_nothing(any_rule: CombinedModel) -> None:
    """Left-padded with its own positions, a row says what it says alone."""
    ids = torch.tensor([[9, 9, 9, *IDS[0].tolist()]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = any_rule(ids, attention_mask=mask, position_ids=places).logits[:, 3:]
    torch.testing.assert_close(found, any_rule(IDS[:1]).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_chunks_change_nothing(any_rule: CombinedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = any_rule(IDS).logits
    monkeypatch.setattr(module, "CHUNK", 5 * whole.shape[-1])
    torch.testing.assert_close(any_rule(IDS).logits, whole)


def test_loss_is_the_mean_over_shifted_labels(uld: CombinedModel) -> None:
    labels = IDS.clone()
    labels[:, :2] = -100
    result = uld(IDS, labels=labels)
    expected = F.cross_entropy(result.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    assert all(p.grad is not None for p in uld.parameters())


@torch.no_grad()
def test_hidden_states_are_the_targets(uld: CombinedModel) -> None:
    found = uld(IDS, output_hidden_states=True).hidden_states
    expected = uld.target(IDS, output_hidden_states=True).hidden_states
    assert len(found) == 4
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert uld(IDS).hidden_states is None


# --- cache and generation ---


@torch.no_grad()
def test_the_cache_holds_every_part(any_rule: CombinedModel) -> None:
    """Filled piece by piece, then with rows taken out: as without any cache."""
    cache = DynamicCache(config=any_rule.config)
    first = any_rule(IDS[:, :3], past_key_values=cache, use_cache=True)
    assert first.past_key_values is cache
    layers = sum(part.config.num_hidden_layers for part in any_rule.parts.values())
    assert len(cache.layers) == layers == any_rule.config.num_hidden_layers
    cache.batch_select_indices(torch.tensor([1, 1, 0]))
    mask = torch.ones(3, 6, dtype=torch.long)
    order = IDS[[1, 1, 0]]
    rest = any_rule(order[:, 3:], attention_mask=mask, past_key_values=cache, use_cache=True)
    whole = naive_logits(any_rule, order)
    torch.testing.assert_close(first.logits, whole[[2, 0], :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rest.logits, whole[:, 3:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_part_gets_layers_of_its_own_kind(tokenizer: Any) -> None:
    """Made from the combined config alone, a cache would hold more than the windows need."""
    model = make_whp(tokenizer)
    caches = [
        DynamicCache(),
        DynamicCache(config=model.config),
        DynamicCache(config=model.target.config),
    ]
    for cache in caches:
        model(IDS, past_key_values=cache, use_cache=True)
        assert cache.is_sliding == [False, False, True, True]
        assert cache.layers[3].keys.shape[-2] == 3, "a window of 4 remembers 3 tokens"


@torch.no_grad()
def test_a_cache_comes_back_unless_it_is_not_wanted(uld: CombinedModel) -> None:
    assert uld(IDS).past_key_values.get_seq_length() == 6
    assert uld(IDS, use_cache=False).past_key_values is None


@torch.no_grad()
def test_a_cache_of_another_model_is_refused(uld: CombinedModel) -> None:
    cache = uld.target(IDS, use_cache=True).past_key_values
    with pytest.raises(InputError, match="cache has 3 layers and the parts together have 5"):
        uld(IDS, past_key_values=cache)
    with pytest.raises(InputError, match="cannot use a StaticCache; use a DynamicCache"):
        uld.generate(IDS, max_new_tokens=2, cache_implementation="static")


def test_generate_equals_token_by_token(any_rule: CombinedModel) -> None:
    prompt = IDS[:1]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = any_rule.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
    assert found == naive_text(any_rule, prompt[0].tolist(), 12)
    assert len(set(found)) > 3, "a model that repeats itself shows nothing"
    uncached = any_rule.generate(prompt, use_cache=False, **options)[0, prompt.shape[1] :]
    assert uncached.tolist() == found


def test_sampling_draws_from_the_combined_logits(uld: CombinedModel) -> None:
    """transformers' own sampling, replayed from the same random numbers without a cache."""
    torch.manual_seed(3)
    found = uld.generate(IDS[:1], max_new_tokens=6, do_sample=True, top_k=0, eos_token_id=None)
    torch.manual_seed(3)
    ids = IDS[:1].tolist()[0]
    for _ in range(6):
        shares = naive_logits(uld, [ids])[:, -1].softmax(-1)
        ids.append(int(torch.multinomial(shares, 1)))
    assert found[0].tolist() == ids


def test_beams(uld: CombinedModel) -> None:
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    found = uld.generate(IDS[:1], **options)
    assert torch.equal(found, uld.generate(IDS[:1], use_cache=False, **options))


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_our_batches_equal_generate_one_by_one(
    any_rule: CombinedModel, tokenizer: Any, batch_tokens: int
) -> None:
    """Prompts of many lengths; rows end at different times, so the batch shrinks."""
    generator = torch.Generator().manual_seed(0)
    lengths = [9, 3, 20, 4, 17, 1, 9, 12]
    prompts = [torch.randint(10, 250, (n,), generator=generator).tolist() for n in lengths]
    options: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None}
    said = []
    for prompt in prompts:
        out = any_rule.generate(torch.tensor([prompt]), pad_token_id=0, **options)
        said.append(out[0, len(prompt) :].tolist())
    stops = {said[0][4], said[2][9], said[3][1]}
    found = generate_texts(
        any_rule,
        prompts,
        tokenizer=tokenizer,
        max_new_tokens=14,
        batch_tokens=batch_tokens,
        stop_ids=stops,
    )
    for tokens, generation in zip(said, found, strict=True):
        ends = [i for i, token in enumerate(tokens) if token in stops]
        assert list(generation.token_ids) == tokens[: ends[0] if ends else None]
    assert len({len(generation.token_ids) for generation in found}) > 2


# --- making ---


def test_the_config_speaks_for_all_parts(tokenizer: Any) -> None:
    config = make_whp(tokenizer).config
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == 48, "the shorter of the two"
    assert config.num_hidden_layers == 4
    assert config.eos_token_id == 3
    assert config.options == {"alpha": 2.0}


def test_vocabularies_must_be_equal(tokenizer: Any) -> None:
    other = tiny_model(tiny_tokenizer(vocab_size=300))
    sizes = rf"target has {len(tokenizer)}, assistant has {other.config.vocab_size} tokens"
    with pytest.raises(InputError, match=rf"share one vocabulary, but {sizes}.*the same model"):
        combine_models("uld", {"target": tiny_model(tokenizer), "assistant": other})


def test_impossible_combinations(model: Any) -> None:
    with pytest.raises(InputError, match=r"uld combines target, assistant; it was given target$"):
        combine_models("uld", {"target": model})
    with pytest.raises(InputError, match="unknown rule 'sum'"):
        combine_models("sum", {"target": model})
    parts = {"target": model, "reinforced": model}
    with pytest.raises(InputError, match="alpha: -1 is not allowed; alpha must be a number at"):
        combine_models("whp", parts, alpha=-1)
    with pytest.raises(InputError, match="has no option weight"):
        combine_models("whp", parts, weight=-1)
    with pytest.raises(InputError, match="use combine_models, or load a folder"):
        CombinedModel(CombinedConfig())


def test_parts_are_not_copied_and_ends_are_the_targets(model: Any) -> None:
    model.generation_config.eos_token_id = [7, 8]
    made = combine_models("whp", {"target": model, "reinforced": copy.deepcopy(model)})
    assert made.target is model
    assert made.generation_config.eos_token_id == [7, 8]
    assert made.generation_config is not model.generation_config
    assert made.get_input_embeddings() is model.get_input_embeddings()
    assert made.get_output_embeddings() is None


@torch.no_grad()
def test_types_and_modes_reach_every_part(uld: CombinedModel) -> None:
    expected = uld(IDS).logits
    half = copy.deepcopy(uld).to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    found = half(IDS).logits
    assert found.dtype == torch.float32, "the difference is not taken in half precision"
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert uld.to(torch.float64)(IDS).logits.dtype == torch.float64
    uld.train()
    assert all(part.training for part in uld.parts.values())
    assert not uld.eval().assistant.training
    assert uld.to("meta").device.type == "meta"


# --- saving and loading ---


@torch.no_grad()
def test_a_folder_loads_as_it_was_saved(
    any_rule: CombinedModel, tokenizer: Any, tmp_path: Path, capfd: Any
) -> None:
    folder = save_model(tmp_path / "combined", any_rule, tokenizer, "# A card\n")
    loaded = load_model(folder)
    assert capfd.readouterr().err == "", "no progress bars and no warnings"
    assert isinstance(loaded, CombinedModel)
    assert not loaded.training
    assert loaded.config.rule == any_rule.config.rule
    assert loaded.config.options == any_rule.config.options
    assert torch.equal(loaded(IDS).logits, any_rule(IDS).logits)
    assert model_fingerprint(loaded) == model_fingerprint(any_rule)
    assert len(load_tokenizer(folder)) == len(tokenizer)
    again = save_model(tmp_path / "again", loaded, tokenizer, "# A card\n")
    assert model_fingerprint(again) == model_fingerprint(folder)


def test_the_layout_of_the_folder(uld_folder: Path, tmp_path: Path) -> None:
    files = {file.relative_to(uld_folder).as_posix() for file in uld_folder.rglob("*")}
    assert {
        "config.json", "generation_config.json", "tokenizer.json", "README.md", "target",
        "target/config.json", "target/model.safetensors",
        "assistant/config.json", "assistant/model.safetensors",
    } <= files  # fmt: skip
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py"))]
    config = json.loads((uld_folder / "config.json").read_text())
    assert config["model_type"] == "expunge-combined"
    assert (config["rule"], config["options"]) == ("uld", ULD)
    for file in uld_folder.rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), "nothing names this machine"
    modes = {file.stat().st_mode for file in uld_folder.rglob("*") if file.is_file()}
    assert len(modes) == 1, "all files can be read by the same people"


@torch.no_grad()
def test_each_part_is_a_plain_model(uld: CombinedModel, uld_folder: Path) -> None:
    part = LlamaForCausalLM.from_pretrained(uld_folder / "assistant")
    assert torch.equal(part(IDS).logits, uld.assistant(IDS).logits)
    with safe_open(uld_folder / "assistant" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys()), "tied weights are stored once"
    loaded = load_model(uld_folder)
    assert loaded.assistant.lm_head.weight is loaded.assistant.model.embed_tokens.weight


@torch.no_grad()
def test_the_auto_classes_know_it(uld: CombinedModel, uld_folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(uld_folder), CombinedConfig)
    loaded = AutoModelForCausalLM.from_pretrained(uld_folder)
    assert isinstance(loaded, CombinedModel)
    assert torch.equal(loaded(IDS).logits, uld(IDS).logits)
    direct = CombinedModel.from_pretrained(uld_folder.parent, subfolder=uld_folder.name)
    assert torch.equal(direct(IDS).logits, uld(IDS).logits)


def test_number_format_and_attention_reach_every_part(uld_folder: Path) -> None:
    loaded = load_model(uld_folder, dtype="bfloat16", attn_implementation="eager")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for part in loaded.parts.values():
        assert part.config._attn_implementation == "eager"


def test_generation_settings_are_kept(uld: CombinedModel, tokenizer: Any, tmp_path: Path) -> None:
    """Those of the whole; a sloppy one of a part is mended, as published models have it."""
    uld.generation_config.max_new_tokens = 17
    uld.assistant.generation_config.temperature = 0.6
    folder = save_model(tmp_path / "x", uld, tokenizer, "")
    loaded = load_model(folder)
    assert loaded.generation_config.max_new_tokens == 17
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    (folder / "generation_config.json").unlink()
    assert load_model(folder).generation_config.eos_token_id == tokenizer.eos_token_id


def test_an_adapter_in_a_part_is_merged_first(
    uld: CombinedModel, tokenizer: Any, tmp_path: Path
) -> None:
    uld.assistant = add_lora(uld.assistant, LoraSettings())
    assert uld(IDS).logits.shape == (2, 6, len(tokenizer)), "it runs"
    with pytest.raises(ValueError, match="merge the adapter"):
        save_model(tmp_path / "x", uld, tokenizer, "")


def test_foreign_weights_are_not_saved(uld: CombinedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="saved without state_dict"):
        uld.save_pretrained(tmp_path, state_dict={"a": torch.ones(1)})


def test_a_failed_save_leaves_the_old_folder(
    uld: CombinedModel, uld_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_fingerprint(uld_folder)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uld.assistant, "save_pretrained", fail)
    with pytest.raises(RunError, match="ree some space"):
        save_model(uld_folder, uld, tokenizer, "new")
    assert model_fingerprint(uld_folder) == before


# --- fingerprints ---


def test_the_fingerprint_covers_rule_and_parts(uld_folder: Path, tmp_path: Path) -> None:
    seen = {model_fingerprint(uld_folder)}

    def changed(name: str, file: str, **values: Any) -> str:
        other = tmp_path / name
        shutil.copytree(uld_folder, other)
        config = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps({**config, **values}))
        return model_fingerprint(other)

    assert changed("same", "config.json", transformers_version="0") in seen
    seen.add(changed("a", "config.json", options={**ULD, "weight": -0.7}))
    seen.add(changed("b", "config.json", rule="uld_offset"))
    seen.add(changed("c", "target/config.json", rms_norm_eps=1.0))
    seen.add(changed("d", "assistant/config.json", rms_norm_eps=1.0))
    weights = uld_folder / "assistant" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    seen.add(model_fingerprint(uld_folder))
    assert len(seen) == 6
    (uld_folder / "notes").mkdir()
    shutil.copy(weights, uld_folder / "notes")
    assert model_fingerprint(uld_folder) in seen, "other folders do not belong to it"


def test_the_live_fingerprint_covers_rule_and_parts(uld: CombinedModel) -> None:
    seen = {model_fingerprint(uld)}
    uld.config.options = {**ULD, "weight": -0.7}
    seen.add(model_fingerprint(uld))
    uld.assistant.config.rms_norm_eps = 1.0
    seen.add(model_fingerprint(uld))
    with torch.no_grad():
        uld.assistant.model.norm.weight.add_(1)
    seen.add(model_fingerprint(uld))
    assert len(seen) == 4


# --- checks ---


def test_a_good_folder_has_no_problems(uld_folder: Path) -> None:
    assert check_model(uld_folder) == []


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


FAULTS = {
    "no part": (lambda f: shutil.rmtree(f / "assistant"), r"assistant: this part .* is missing"),
    "no weights": (
        lambda f: (f / "target/model.safetensors").unlink(), "target: no weights: expected model",
    ),
    "cut weights": (
        lambda f: (f / "target/model.safetensors").write_bytes(b"x"), "target: .*cut short",
    ),
    "part of a wrong kind": (
        lambda f: edit(f / "target/config.json", model_type="vit"), "target: vit is not a causal",
    ),
    "code in a part": (
        lambda f: edit(f / "target/config.json", model_type="mine", auto_map={"A": "b.C"}),
        "target: needs the Python code",
    ),
    "unknown rule": (
        lambda f: edit(f / "config.json", rule="ulx"), "unknown rule 'ulx'. Did you mean uld",
    ),
    "no rule": (lambda f: edit(f / "config.json", rule=None), "unknown rule 'None'"),
    "unknown option": (
        lambda f: edit(f / "config.json", options={"wait": 1}), "wait: uld_logits has no option",
    ),
    "bad options": (lambda f: edit(f / "config.json", options=[1]), "options must be a mapping"),
    "vocabularies": (
        lambda f: edit(f / "assistant/config.json", vocab_size=9), "assistant has 9 tokens",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer: expected"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_before_weights_are_read(uld_folder: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(uld_folder)
    with pytest.raises(InputError, match=message) as caught:
        load_model(uld_folder)
    assert len(caught.value.problems) == 1


def test_all_faults_are_told_at_once(uld_folder: Path) -> None:
    for fault in ("no part", "no weights", "unknown option", "no tokenizer"):
        FAULTS[fault][0](uld_folder)
    assert len(check_model(uld_folder)) == 4


def test_parts_of_other_sizes_are_refused_though_their_configs_agree(
    uld_folder: Path, tokenizer: Any
) -> None:
    """transformers would fill a missing layer with random numbers."""
    edit(uld_folder / "assistant/config.json", num_hidden_layers=5)
    with pytest.raises(InputError, match=r"lack 27 of the model's tensors, such as assistant\."):
        load_model(uld_folder)


# --- evaluation ---


def test_probes_equal_the_naive_twin(any_rule: CombinedModel, tokenizer: Any) -> None:
    template = make_template(tokenizer, "plain")
    facts = [
        {**fact, "question": fact["question"][:9], "answer": fact["answer"][:12]}
        for fact in toy_facts(4)
    ]
    facts[0]["perturbed_answer"] = ["no", "not so"]
    rows = load_rows(facts, name="forget")
    probes = [Probe(name="forget", rows=rows)]
    settings = EvaluationSettings(max_new_tokens=5)
    table = run_probes(any_rule, tokenizer, template, probes, settings)["forget"]
    for i, row in enumerate(rows):
        prompt, said = template.encode(row.messages, row.answer)
        at = naive_logits(any_rule, [[*prompt, *said]])[0, len(prompt) - 1 : -1]
        expected = at.double().log_softmax(-1)[torch.arange(len(said)), said].tolist()
        assert table["answer_logps"][i] == pytest.approx(expected, abs=1e-3, rel=1e-4)
        text = naive_text(any_rule, prompt, 5)
        stops = [k for k, token in enumerate(text) if token in template.stop_ids]
        assert table["generation_ids"][i] == text[: stops[0] if stops else None]


def test_a_folder_is_evaluated_like_any_other(uld_folder: Path, tokenizer: Any) -> None:
    facts = toy_facts(6)
    found = evaluate(uld_folder, facts[:3], facts[3:], max_new_tokens=4)
    live = evaluate(load_model(uld_folder), facts[:3], facts[3:], tokenizer=tokenizer,
                    max_new_tokens=4)  # fmt: skip
    scores = {name: score.value for name, score in found.results.scores.items()}
    assert scores == {name: score.value for name, score in live.results.scores.items()}
    assert any(value is not None for value in scores.values())
