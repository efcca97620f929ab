"""An adapter changes nothing until it is trained, can be turned off, and is merged exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.core.errors import InputError
from expunge.models.export import save_model
from expunge.models.loading import load_model
from expunge.models.peft import (
    LoraSettings,
    adapter_off,
    add_lora,
    is_peft,
    merge,
    select_trainable,
)
from expunge.testing.tiny import tiny_model

IDS = torch.tensor([[5, 20, 30, 40, 50, 60], [9, 8, 7, 100, 101, 102]])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits  # type: ignore[no-any-return]


def trained(model: Any, **settings: Any) -> Any:
    """`model` with an adapter whose weights are all away from zero, as after training."""
    wrapped = add_lora(model, LoraSettings(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.05 * noise)
    return wrapped


def test_defaults_are_those_of_the_papers() -> None:
    settings = LoraSettings()
    assert (settings.r, settings.alpha, settings.dropout) == (8, 32, 0.05)
    assert settings.target_modules == "all-linear"


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(InputError) as caught:
        LoraSettings(r=0, alpha=-1, dropout=1.0, target_modules=())
    assert [problem.where for problem in caught.value.problems] == [
        "lora.r",
        "lora.alpha",
        "lora.dropout",
        "lora.target_modules",
    ]


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(model: Any) -> None:
    before = logits(model)
    wrapped = add_lora(model, LoraSettings()).eval()
    assert is_peft(wrapped)
    assert not is_peft(tiny_model_like(wrapped))
    assert torch.equal(logits(wrapped), before)
    names = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert any("mlp.up_proj" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)


def tiny_model_like(wrapped: Any) -> Any:
    return wrapped.get_base_model()


def test_the_adapter_depends_on_its_seed_and_on_nothing_else(tokenizer: Any) -> None:
    def first_weights(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        wrapped = add_lora(tiny_model(tokenizer), LoraSettings(), seed=seed)
        return next(p for name, p in wrapped.named_parameters() if "lora_A" in name).detach()

    assert torch.equal(first_weights(3, noise=1), first_weights(3, noise=2))
    assert not torch.equal(first_weights(3, noise=1), first_weights(4, noise=1))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    add_lora(tiny_model(tokenizer), LoraSettings())
    assert torch.equal(torch.rand(2), expected), "the process-wide random state moved"


def test_adapter_off_gives_the_model_from_before(model: Any) -> None:
    before = logits(model)
    wrapped = trained(model)
    assert (logits(wrapped) - before).abs().max() > 1e-3
    with adapter_off(wrapped):
        assert torch.equal(logits(wrapped), before)
    assert (logits(wrapped) - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no adapter to turn off"), adapter_off(model):
        pass


def test_dropout_of_the_adapter_works_in_training_only(model: Any) -> None:
    wrapped = trained(model, dropout=0.5)
    assert torch.equal(logits(wrapped), logits(wrapped))
    wrapped.train()
    assert not torch.equal(logits(wrapped), logits(wrapped))


def test_the_merged_model_computes_what_the_adapter_did(model: Any, tmp_path: Path) -> None:
    wrapped = trained(model)
    expected = logits(wrapped)
    merged = merge(wrapped)
    assert not is_peft(merged)
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert all(p.requires_grad for p in merged.parameters())
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_the_merged_model_is_saved_as_a_plain_one(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    wrapped = trained(model)
    expected = logits(wrapped)
    folder = save_model(tmp_path / "merged", merge(wrapped), tokenizer, "")
    assert not list(folder.glob("adapter*"))
    torch.testing.assert_close(logits(load_model(folder)), expected, atol=1e-5, rtol=0)


def test_merging_bfloat16_rounds_once(tokenizer: Any) -> None:
    """W + s B A in float32, then one rounding; bfloat16 arithmetic would round three times."""
    wrapped = trained(tiny_model(tokenizer).bfloat16())
    layer = wrapped.get_base_model().model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype == torch.float32
    exact = layer.get_base_layer().weight.float() + 32 / 8 * (b @ a)
    merged = merge(wrapped)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, exact.bfloat16())


def test_merging_bfloat16_into_float32_keeps_a_small_update(tokenizer: Any) -> None:
    def wrapped() -> Any:
        model = trained(tiny_model(tokenizer).bfloat16())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(1e-4)
        return model

    name = "model.layers.0.mlp.up_proj.weight"
    before = tiny_model(tokenizer).bfloat16().state_dict()[name].float()
    rounded = merge(wrapped()).state_dict()[name].float()
    kept = merge(wrapped(), dtype=torch.float32)
    assert {p.dtype for p in kept.parameters()} == {torch.float32}
    changed = (kept.state_dict()[name] != before).float().mean()
    assert changed > 0.99
    assert (rounded != before).float().mean() < 0.2


def test_an_adapter_goes_where_it_is_asked_to(model: Any) -> None:
    wrapped = add_lora(model, LoraSettings(target_modules=("q_proj", "v_proj")))
    names = {name.split(".")[-4] for name, _ in wrapped.named_parameters() if "lora_" in name}
    assert names == {"q_proj", "v_proj"}


def test_an_adapter_that_fits_nowhere_names_what_exists(model: Any) -> None:
    with pytest.raises(InputError, match=r"'query'.*all-linear.*q_proj"):
        add_lora(model, LoraSettings(target_modules="query"))


def test_a_second_adapter_is_refused(model: Any) -> None:
    wrapped = add_lora(model, LoraSettings())
    with pytest.raises(InputError, match="adapter already"):
        add_lora(wrapped, LoraSettings())
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge(tiny_model_like(merge(wrapped)) if is_peft(model) else model)


# --- full fine-tuning ---


def test_all_parameters_train_by_default(model: Any) -> None:
    model.requires_grad_(False)
    names = select_trainable(model)
    assert names == [name for name, _ in model.named_parameters()]
    assert all(p.requires_grad for p in model.parameters())


def test_a_pattern_selects_parameters_and_freezes_the_others(model: Any) -> None:
    names = select_trainable(model, r"layers\.1\.mlp")
    assert names == [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names


def test_a_tied_parameter_is_found_under_both_names(model: Any) -> None:
    assert select_trainable(model, "lm_head") == ["model.embed_tokens.weight"]
    assert model.lm_head.weight.requires_grad


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("layers.(", "no regular expression"), ("layer7", r"matches no.*model\.layers\.0\.self_attn")],
)
def test_a_pattern_that_selects_nothing_is_refused(model: Any, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_trainable(model, pattern)
