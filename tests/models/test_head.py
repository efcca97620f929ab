"""Log-probabilities from hidden states: value and gradients as from whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.models.head import HeadRequest, answering_head, head_logps, output_head
from expunge.testing.tiny import tiny_model, tiny_tokenizer


def plain(hidden, weight, bias, targets):
    """The slow, obvious twin."""
    return F.linear(hidden, weight, bias).log_softmax(-1)[torch.arange(len(targets)), targets]


def inputs(dtype=torch.float64, bias=True, tokens=7, size=50, width=12):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(size, width, dtype=dtype, requires_grad=True)
    offset = torch.randn(size, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(size, (tokens,))


@pytest.mark.parametrize("chunk_bytes", [1, 7 * 4 * 13, 2**20])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_equal_those_of_whole_logits(chunk_bytes, bias):
    hidden, weight, offset, targets = inputs(bias=bias)
    wanted = plain(hidden, weight, offset, targets)
    found = head_logps(hidden, weight, offset, targets, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(7, dtype=torch.float64)
    leaves = [leaf for leaf in (hidden, weight, offset) if leaf is not None]
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(wanted, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_gradients_pass_the_numerical_check():
    hidden, weight, offset, targets = inputs(tokens=3, size=9, width=4)
    assert torch.autograd.gradcheck(
        lambda h, w, b: head_logps(h, w, b, targets, chunk_bytes=40), (hidden, weight, offset)
    )


def test_nobody_looks_nobody_gets_a_gradient_of_zeros():
    """Data-parallel processes hand on undefined gradients; AdamW decays by zeros, not by None."""
    hidden, weight, _, targets = inputs(bias=False)
    found = head_logps(hidden, weight, None, targets)
    assert found.grad_fn.apply(None) == (None,) * 6


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, targets = inputs(bias=False)
    weight.requires_grad_(False)
    head_logps(hidden, weight, None, targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_half_precision_is_that_of_autocast_on_whole_logits():
    hidden, weight, _, targets = inputs(dtype=torch.float32, bias=False, tokens=20, width=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_logps(hidden, weight, None, targets, chunk_bytes=20 * 4 * 9)
        logits = F.linear(hidden, weight).float()
        wanted = logits.log_softmax(-1)[torch.arange(20), targets]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad(found.sum(), [hidden, weight])
    theirs = torch.autograd.grad(wanted.sum(), [hidden, weight])
    for own, other in zip(mine, theirs, strict=True):
        assert own.dtype == torch.float32
        assert float((own - other).norm() / other.norm()) < 0.01


def test_never_more_than_a_piece_of_the_logits_exists(monkeypatch):
    """Every matrix product over the vocabulary stays within the limit, forward and backward."""
    hidden, weight, _, targets = inputs(bias=False, tokens=8, size=64)
    seen = []
    real = F.linear

    def watched(states, part, offset=None):
        found = real(states, part, offset)
        seen.append(found.numel() * 4)
        return found

    monkeypatch.setattr("expunge.models.head.F.linear", watched)
    head_logps(hidden, weight, None, targets, chunk_bytes=8 * 4 * 10).sum().backward()
    assert len(seen) == 2 * 7  # 64 entries in pieces of 10, forward and backward
    assert max(seen) <= 8 * 4 * 10


def test_no_labels_are_no_problem():
    hidden, weight, _, _ = inputs(bias=False)
    found = head_logps(hidden[:0], weight, None, torch.zeros(0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (0,)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_a_head_answers_and_is_a_head_again():
    model = tiny_model(tiny_tokenizer()).eval()
    head = output_head(model)
    tokens = torch.tensor([[5, 6, 7, 8]])
    logits = model(input_ids=tokens).logits
    request = HeadRequest(
        labelled=torch.tensor([0, 2]), targets=torch.tensor([6, 8]), whole=torch.tensor([1])
    )
    with answering_head(head, request):
        logps, whole = model(input_ids=tokens).logits
    torch.testing.assert_close(whole[0], logits[0, 1])
    wanted = logits[0].log_softmax(-1)
    torch.testing.assert_close(logps, torch.stack([wanted[0, 6], wanted[2, 8]]))
    assert torch.equal(model(input_ids=tokens).logits, logits)


def test_only_a_plain_linear_layer_counts_as_head():
    model = tiny_model(tiny_tokenizer())

    class Scaled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model.set_output_embeddings(Scaled(8, 8))
    assert output_head(model) is None
