"""Gradient norms against a slow twin, and what the pass leaves behind: nothing."""

import math

import numpy as np
import pytest
import torch

from expunge.core.errors import InputError
from expunge.evaluation.gradnorm import LabelledTokens, gradient_norms
from expunge.testing.tiny import tiny_model, tiny_tokenizer

SAMPLES = [
    LabelledTokens([5, 9, 40], [12, 33, 7, 60]),
    LabelledTokens([8], [21, 21, 3]),
    LabelledTokens([], [14, 2, 50, 31]),  # its first token is not predicted
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer, hidden_size=16).double()


def slow_norm(model, sample, *, p, drop_last):
    """One backward pass over full logits; every entry of every gradient counted by hand."""
    ids = [*sample.prompt, *sample.answer]
    model.zero_grad()
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(max(1, len(sample.prompt)), len(ids) - drop_last)
    loss = -sum(log_p[t - 1, ids[t]] for t in places) / len(places)
    loss.backward()
    norms = []
    for parameter in model.parameters():
        entries = parameter.grad.abs().flatten().numpy()
        norms.append(entries.max() if p == math.inf else (entries**p).sum() ** (1 / p))
    model.zero_grad(set_to_none=True)
    return np.mean(norms)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("drop_last", [True, False])
def test_equals_the_slow_twin(model, p, drop_last):
    expected = [slow_norm(model, sample, p=p, drop_last=drop_last) for sample in SAMPLES]
    found = gradient_norms(model, SAMPLES, p=p, drop_last=drop_last)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_model_without_a_choice_of_positions_gives_the_same(model):
    class Plain(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, use_cache):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    assert gradient_norms(Plain(model), SAMPLES) == pytest.approx(gradient_norms(model, SAMPLES))


def test_tied_weights_count_once(model):
    """Embedding and head are one tensor: untied copies give another mean over one tensor more."""
    tied = gradient_norms(model, SAMPLES[:1])
    names = [name for name, _ in model.named_parameters()]
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert len(list(model.named_parameters())) == len(names) + 1
    assert gradient_norms(model, SAMPLES[:1]) != pytest.approx(tied, rel=1e-6)


def test_the_model_is_left_as_it_was(model):
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = marker = torch.ones_like(parameters[1])
    model.train()
    model.lm_head.eval()
    gradient_norms(model, SAMPLES, parameters="all")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    assert parameters[1].grad is marker
    assert torch.equal(marker, torch.ones_like(marker))
    assert all(p.grad is None for i, p in enumerate(parameters) if i != 1)
    assert model.training
    assert not model.lm_head.training


def test_the_model_is_left_as_it_was_after_a_failure(model):
    model.requires_grad_(False).train()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradient_norms(model, SAMPLES, parameters="all", on_progress=stop)
    assert model.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_dropout_is_off(model):
    expected = gradient_norms(model, SAMPLES)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert gradient_norms(model, SAMPLES) == expected


def test_works_where_gradients_are_switched_off(model):
    expected = gradient_norms(model, SAMPLES)
    with torch.no_grad():
        assert gradient_norms(model, SAMPLES) == expected


def test_a_sample_without_labels_is_unscored(model):
    samples = [LabelledTokens([3, 4], [5]), LabelledTokens([3], []), LabelledTokens([], [5])]
    assert np.isnan(gradient_norms(model, samples)).all()
    with_last = gradient_norms(model, samples, drop_last=False)
    assert with_last[0] > 0
    assert np.isnan(with_last[1:]).all()


def test_a_frozen_model_is_explained(model):
    expected = gradient_norms(model, SAMPLES)
    model.requires_grad_(False)
    with pytest.raises(InputError, match='parameters="all"'):
        gradient_norms(model, SAMPLES)
    assert gradient_norms(model, SAMPLES, parameters="all") == expected


def test_only_trainable_parameters_count(model):
    model.requires_grad_(False)
    weight = model.model.norm.weight.requires_grad_(True)
    (found,) = gradient_norms(model, SAMPLES[:1])
    ids = [*SAMPLES[0].prompt, *SAMPLES[0].answer]
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    loss = -sum(log_p[t - 1, ids[t]] for t in (3, 4, 5)) / 3
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert found == pytest.approx(float(gradient.square().sum().sqrt()))


def test_the_order_of_samples_changes_nothing(model):
    forwards = gradient_norms(model, SAMPLES)
    assert gradient_norms(model, SAMPLES[::-1]) == forwards[::-1]


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan])
def test_a_norm_of_no_order_is_refused(model, p):
    with pytest.raises(InputError, match="above 0"):
        gradient_norms(model, SAMPLES, p=p)


def test_half_precision_is_close(tokenizer):
    exact = gradient_norms(tiny_model(tokenizer, hidden_size=16).double(), SAMPLES)
    rough = gradient_norms(tiny_model(tokenizer, hidden_size=16).bfloat16(), SAMPLES)
    assert rough == pytest.approx(exact, rel=0.05)
