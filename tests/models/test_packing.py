"""Packed rows give what padded rows give, for every kind of model, or are not used."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from expunge.data.collate import collate
from expunge.data.encode import Example
from expunge.models.forward import StreamRequest, forward_streams
from expunge.models.packing import ATTENTION, PADDED, Layout, find_layout, is_packable, packable

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4}
KINDS = {
    "Llama": (GROUPED, True, True),
    "Qwen2": (GROUPED, True, True),
    "Qwen3": ({**GROUPED, "head_dim": 8}, True, True),
    "Mistral": ({**GROUPED, "sliding_window": 64}, True, True),
    "Mixtral": ({**GROUPED, "num_local_experts": 4}, True, True),
    "Phi": (GROUPED, True, True),
    "GPT2": (GPT2, True, True),
    "GPTNeoX": (SIZES, True, True),
    # Logits are scaled after the head, so it must not answer in their place.
    "Granite": ({**GROUPED, "logits_scaling": 3.0}, True, False),
    # Scores are capped, which no fused attention does.
    "Gemma2": ({**GROUPED, "head_dim": 8}, False, False),
    # Positions are in the mask.
    "Bloom": ({"vocab_size": 101, "hidden_size": 32, "n_layer": 2, "n_head": 4}, False, True),
}


def make(kind):
    sizes, *_ = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Freshly drawn models hardly look at other tokens; a leak between rows must show.
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


def rows(lengths, prompts, start=3):
    examples = [
        Example(
            index=i,
            input_ids=tuple((start + i * 11 + 5 * j) % 97 + 3 for j in range(length)),
            num_prompt=prompt,
        )
        for i, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]
    return collate(examples, pad_token_id=0)


def requests(reads=frozenset(), positions="labels"):
    forget = StreamRequest(rows=rows((5, 17, 9), (2, 8, 3)), reads=frozenset({"hidden"}))
    other = StreamRequest(rows=rows((12, 4), (1, 2), start=40), reads=reads, positions=positions)
    return {"forget": forget, "retain": other}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_supports_is_found_by_trying(kind):
    _, packed, fused = KINDS[kind]
    model = make(kind)
    before = model.config._attn_implementation
    layout = find_layout(model)
    assert (layout.packed, layout.fused_head) == (packed, fused)
    assert model.config._attn_implementation == before
    assert find_layout(model, packing="off").packed is False


@pytest.mark.parametrize("kind", [kind for kind, (_, packed, _) in KINDS.items() if packed])
@pytest.mark.parametrize("positions", ["labels", "unshifted", "nonpad"])
def test_packed_rows_have_the_values_and_gradients_of_padded_ones(kind, positions):
    model = make(kind)
    wanted = requests(frozenset({"logits", "activations"}), positions)

    def total(layout):
        model.zero_grad()
        outputs = forward_streams(model, wanted, pad_token_id=0, layout=layout)
        other, forget = outputs["retain"], outputs["forget"]
        selected = other.positions(positions)
        loss = forget.logps.sum() + forget.hidden[forget.hidden_mask].pow(2).sum()
        loss = loss + other.logits[selected].log_softmax(-1).pow(2).sum()
        loss = loss + other.activations[selected].pow(2).sum()
        loss.backward()
        return outputs, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    padded, slope = total(PADDED)
    with packable(model):
        packed, other_slope = total(find_layout(model))
    for name in wanted:
        torch.testing.assert_close(packed[name].logps, padded[name].logps, rtol=1e-4, atol=1e-4)
        assert torch.equal(packed[name].mask, padded[name].mask)
    assert float((slope - other_slope).norm() / slope.norm()) < 1e-4


def test_a_row_does_not_see_the_one_before():
    model = make("Llama")
    layout = find_layout(model)
    wanted = requests()
    other = {**wanted, "forget": replace(wanted["forget"], rows=rows((6, 3, 30), (1, 1, 1), 77))}
    with packable(model), torch.no_grad():
        first, second = (
            forward_streams(model, given, pad_token_id=0, layout=layout)["retain"].logps
            for given in (wanted, other)
        )
    torch.testing.assert_close(first, second)


def test_no_padding_goes_through_the_model(monkeypatch):
    model = make("Llama")
    seen = []
    real = model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda input_ids, **rest: seen.append(input_ids.shape) or real(input_ids, **rest),
    )
    with packable(model):
        layout = find_layout(model)
        seen.clear()
        forward_streams(model, requests(), pad_token_id=0, layout=layout)
    assert seen == [(1, 5 + 17 + 9 + 12 + 4)]


@pytest.mark.parametrize(
    "layout", [Layout(packed=True, longest=16), Layout(packed=False), Layout(bucket=32)]
)
def test_rows_that_do_not_fit_are_padded(monkeypatch, layout):
    model = make("Llama")
    seen = []
    real = model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda input_ids, **rest: seen.append(input_ids.shape) or real(input_ids, **rest),
    )
    with packable(model):
        found = forward_streams(model, requests(), pad_token_id=0, layout=layout)
    assert seen == [(5, 32 if layout.bucket == 32 else 17)]
    wanted = forward_streams(model, requests(), pad_token_id=0)
    torch.testing.assert_close(found["forget"].logps, wanted["forget"].logps)


def test_logits_of_padding_need_padding():
    """As-released forms average over padding, so its logits must be those of the model."""
    model = make("Llama")
    wanted = requests(frozenset({"logits"}), "all")
    padded = forward_streams(model, wanted, pad_token_id=0)["retain"].logits
    with packable(model):
        found = forward_streams(model, wanted, pad_token_id=0, layout=find_layout(model))
    torch.testing.assert_close(found["retain"].logits, padded, rtol=1e-4, atol=1e-4)


def test_a_model_that_was_not_made_packable_is_padded():
    model = make("Llama")
    assert not is_packable(model)
    layout = find_layout(model)
    found = forward_streams(model, requests(), pad_token_id=0, layout=layout)
    wanted = forward_streams(model, requests(), pad_token_id=0)
    torch.testing.assert_close(found["forget"].logps, wanted["forget"].logps)


def test_recomputed_activations_are_packed_too():
    model = make("Llama").train()
    layout = find_layout(model)

    def slopes():
        model.zero_grad()
        outputs = forward_streams(model, requests(), pad_token_id=0, layout=layout)
        (outputs["forget"].logps.sum() + outputs["retain"].logps.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    with packable(model):
        plain = slopes()
        model.gradient_checkpointing_enable()
        again = slopes()
    torch.testing.assert_close(again, plain)


def test_the_model_is_its_own_again_afterwards():
    model = make("Llama")
    model.set_attn_implementation("eager")
    with packable(model):
        assert model.config._attn_implementation == ATTENTION
        tokens = torch.tensor([[3, 4, 5], [6, 7, 0]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        inside = model(input_ids=tokens, attention_mask=mask).logits
    assert model.config._attn_implementation == "eager"
    outside = model(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(inside[mask.bool()], outside[mask.bool()], rtol=1e-4, atol=1e-4)
