"""The first layers of a model: what it computes when it leaves out the later ones."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from expunge.core.errors import InputError
from expunge.models.peft import LoraSettings, add_lora
from expunge.models.truncate import first_layers
from expunge.testing.tiny import tiny_model

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, "model.layers", {}),
    "tied": (LlamaForCausalLM, LlamaConfig, "model.layers", {"tie_word_embeddings": True}),
    "phi": (PhiForCausalLM, PhiConfig, "model.layers", {"pad_token_id": 0}),
    "qwen2": (
        Qwen2ForCausalLM, Qwen2Config, "model.layers",
        {
            "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
            "num_key_value_heads": 2,
        },
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, "gpt_neox.layers", {}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, "transformer.h", {}),
}  # fmt: skip
IDS = torch.tensor([[5, 20, 30, 40, 50, 11, 7], [3, 3, 9, 8, 50, 2, 1]])


@pytest.fixture(params=KINDS, ids=list(KINDS))
def kind(request):
    build, config, layers, extra = KINDS[request.param]
    torch.manual_seed(0)
    model = build(config(**SIZES, **extra)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model, layers


@torch.no_grad()
def by_hand(model, layers, num_layers):
    """Logits from the model's own pieces, the later layers made to pass their input on."""
    every = model.get_submodule(layers)
    returned = []
    hook = every[0].register_forward_hook(lambda _layer, _given, result: returned.append(result))
    model(IDS, use_cache=False)
    hook.remove()
    later = list(every[num_layers:])
    original = [layer.forward for layer in later]
    for layer in later:
        if isinstance(returned[0], tuple):  # some layers of older releases of transformers
            layer.forward = lambda hidden_states, *_, **__: (hidden_states,)
        else:
            layer.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        return model(IDS, use_cache=False).logits
    finally:
        for layer, forward in zip(later, original, strict=True):
            layer.forward = forward


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@torch.no_grad()
def test_equals_the_first_layers_run_by_hand(kind, num_layers):
    model, layers = kind
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = first_layers(model, num_layers)
    assert type(small) is type(model)
    assert len(small.get_submodule(layers)) == num_layers
    assert torch.equal(small(IDS).logits, by_hand(model, layers, num_layers))
    assert torch.equal(small(IDS).logits, small(IDS, use_cache=False).logits)
    assert len(model.get_submodule(layers)) == 4
    assert model.config.num_hidden_layers == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_copy_is_its_own(kind):
    model, _ = kind
    small = first_layers(model, 2)
    own = {id(tensor) for tensor in small.parameters()} | {id(small.config)}
    assert not own & ({id(tensor) for tensor in model.parameters()} | {id(model.config)})
    memory = {tensor.data_ptr() for tensor in model.parameters()}
    assert not memory & {tensor.data_ptr() for tensor in small.parameters()}
    configs = {id(m.config) for m in small.modules() if hasattr(m, "config")}
    assert configs == {id(small.config)}, "all of the copy reads the shortened config"


@torch.no_grad()
def test_the_copy_can_be_saved_and_loaded(kind, tmp_path):
    small = first_layers(kind[0], 3)
    small.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 3
    assert torch.equal(loaded(IDS).logits, small(IDS).logits)


@torch.no_grad()
def test_the_copy_generates_as_without_a_cache(kind):
    small = first_layers(kind[0], 2)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    kept = small.generate(IDS, **options)
    assert torch.equal(kept, small.generate(IDS, use_cache=False, **options))


def test_lists_with_an_entry_per_layer_are_shortened(kind):
    """Qwen2's second to fourth layer look at four tokens only; two layers keep one of each."""
    config = first_layers(kind[0], 2).config
    assert config.num_hidden_layers == 2
    if config.model_type == "qwen2":
        assert config.layer_types == ["full_attention", "sliding_attention"]
        assert len(kind[0].config.layer_types) == 4


@torch.no_grad()
def test_hidden_states_are_those_of_the_copy(tokenizer):
    """Also where the model has recorded hidden states before it was copied."""
    model = tiny_model(tokenizer, num_layers=3)
    whole = model(IDS, output_hidden_states=True).hidden_states
    short = first_layers(model, 2)(IDS, output_hidden_states=True).hidden_states
    assert len(short) == 3
    assert torch.equal(short[1], whole[1])
    assert len(model(IDS, output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize("num_layers", [0, -1, 3])
def test_more_layers_than_there_are(model, num_layers):
    with pytest.raises(InputError, match=rf"keep {num_layers} layers .* has 2. Possible: 1 to 2"):
        first_layers(model, num_layers)


def test_an_adapter_is_merged_first(model):
    with pytest.raises(ValueError, match="merge the adapter"):
        first_layers(add_lora(model, LoraSettings()), 1)


def test_a_model_without_a_list_of_layers(model):
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(InputError, match="LlamaForCausalLM: no list of 2 decoder layers"):
        first_layers(model, 1)


def test_a_list_of_experts_as_long_as_the_model_is_not_taken_for_it(model):
    """Two layers with two experts each; the outer list holds more."""
    for layer in model.model.layers:
        layer.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    small = first_layers(model, 1)
    assert len(small.model.layers) == 1
    assert len(small.model.layers[0].experts) == 2
