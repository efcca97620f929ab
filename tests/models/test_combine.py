"""Logits combined as the released code does it, as a slow twin does it, and at the extremes."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.core.options import check_options, options_of
from expunge.models.combine import (
    RULES,
    UldOptions,
    WhpOptions,
    find_rule,
    uld_logits,
    uld_offset_logits,
    unlikely_tokens,
    whp_logits,
)

DATA = json.loads((Path(__file__).parent / "data/combined_logits.json").read_text())
ULD = [case for case in DATA["cases"] if case["rule"] == "uld"]
WHP = [case for case in DATA["cases"] if case["rule"] == "whp"]


def name(case):
    return " ".join(
        [case["fixture"], *(f"{key} {value:g}" for key, value in case["hyper"].items())]
    )


def inputs(case):
    fixture = DATA["fixtures"][case["fixture"]]
    return [torch.tensor(fixture[key], dtype=torch.float64) for key in ("logits", "ref_logits")]


def close(found, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ULD, ids=name)
def test_uld_released_code(case):
    target, assistant = inputs(case)
    close(uld_logits(target, assistant, **case["hyper"]), case["logits"])
    unlikely = unlikely_tokens(target, case["hyper"]["top_logit_filter"])
    assert (0 if unlikely is None else int(unlikely.sum())) == case["n_filtered"]


@pytest.mark.parametrize("case", WHP, ids=name)
def test_whp_released_code(case):
    target, reinforced = inputs(case)
    found = whp_logits(target, reinforced, **case["hyper"])
    close(found, case["logits"])
    labels = torch.tensor(DATA["fixtures"][case["fixture"]]["labels"])
    loss = F.cross_entropy(found[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert float(loss) == pytest.approx(case["loss"], abs=1e-9)


def uld_twin(target, assistant, weight, share):
    """Token by token with sorted lists, as the paper's text tells it."""
    total = sum(math.exp(value) for value in target)
    logps = [value - math.log(total) for value in target]
    ranked = sorted(logps, reverse=True)
    rank = math.floor(share * len(target))
    keep_all = share == 0 or rank == 0
    threshold = -math.inf if keep_all else min(ranked[rank - 1], ranked[0] + math.log(share))
    return [
        t + (weight * a if logp >= threshold else 0.0)
        for t, a, logp in zip(target, assistant, logps, strict=True)
    ]


def whp_twin(target, reinforced, alpha):
    return [t - alpha * max(r - t, 0.0) for t, r in zip(target, reinforced, strict=True)]


@st.composite
def pairs(draw):
    """Logits of two models, [B, T, V] each, with sizes down to one."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 40)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    scale = draw(st.sampled_from([0.1, 1.0, 4.0]))
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "ab"]


def lines(pair):
    return zip(*(part.flatten(0, 1).tolist() for part in pair), strict=True)


SHARES = st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.9, 1.0])


@settings(max_examples=60, deadline=None)
@given(pairs(), st.floats(-2, 0), SHARES)
def test_uld_equals_its_twin(pair, weight, share):
    found = uld_logits(*pair, weight=weight, top_logit_filter=share)
    expected = [uld_twin(*line, weight, share) for line in lines(pair)]
    close(found.flatten(0, 1), expected)


@settings(max_examples=60, deadline=None)
@given(pairs(), st.floats(0, 256))
def test_whp_equals_its_twin(pair, alpha):
    found = whp_logits(*pair, alpha=alpha)
    close(found.flatten(0, 1), [whp_twin(*line, alpha) for line in lines(pair)])


@settings(max_examples=30, deadline=None)
@given(pairs(), SHARES)
def test_nothing_taken_away_is_the_target(pair, share):
    target, other = pair
    assert torch.equal(uld_logits(target, other, weight=0, top_logit_filter=share), target)
    assert torch.equal(uld_offset_logits(target, other, target, weight=0), target)
    assert torch.equal(whp_logits(target, other, alpha=0), target)


@settings(max_examples=30, deadline=None)
@given(pairs(), st.floats(0, 256))
def test_nothing_learned_is_the_target(pair, strength):
    """A reinforced model that is the target itself, and an assistant that never trained."""
    target, other = pair
    assert torch.equal(whp_logits(target, target, alpha=strength), target)
    assert torch.equal(uld_offset_logits(target, other, other, weight=-strength), target)


@settings(max_examples=30, deadline=None)
@given(pairs(), SHARES)
def test_the_likeliest_token_is_never_filtered(pair, share):
    unlikely = unlikely_tokens(pair[0], share)
    if unlikely is not None:
        assert not unlikely.gather(-1, pair[0].argmax(-1, keepdim=True)).any()


def test_without_a_filter_every_token_is_changed():
    target, assistant = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 3.0]])
    found = uld_logits(target, assistant, weight=-2.0, top_logit_filter=0)
    assert found.tolist() == [[-2.0, -4.0, -6.0]]


def test_a_share_too_small_for_one_token_filters_nothing():
    """floor(0.1 * 7) = 0: the last place counts, and nothing is below it, as in the release."""
    assert unlikely_tokens(torch.tensor([[50.0, 0, 0, 0, 0, 0, 0]]), 0.1) is None
    assert unlikely_tokens(torch.tensor([[50.0] + [0.0] * 9]), 0.1).sum() == 9


def test_offset_by_hand():
    """0.5 - 0.8 (3 - 1) = -1.1."""
    one = torch.ones(1, 1)
    found = uld_offset_logits(0.5 * one, 3 * one, one, weight=-0.8)
    assert found.item() == pytest.approx(-1.1)


def test_half_precision_is_combined_in_float32():
    """8 + 2^-6 cannot be held in bfloat16 (8 bits); times 256 the rounding would be 4 wide."""
    target = torch.tensor([[8.0]], dtype=torch.bfloat16)
    reinforced = torch.tensor([[8.0625]], dtype=torch.bfloat16)
    for found in (
        whp_logits(target, reinforced, alpha=255.0),
        uld_offset_logits(target, reinforced, target, weight=-255.0),
    ):
        assert found.dtype == torch.float32
        assert found.item() == 8.0 - 255.0 / 16
    assert uld_logits(target, target).dtype == torch.float32


def test_gradients_flow():
    target = torch.tensor([[0.0, 1.0]], requires_grad=True)
    assistant = torch.tensor([[3.0, 4.0]], requires_grad=True)
    uld_logits(target, assistant, weight=-0.5, top_logit_filter=0).sum().backward()
    assert assistant.grad.tolist() == [[-0.5, -0.5]]
    assert target.grad.tolist() == [[1.0, 1.0]]


def test_options():
    uld, whp = options_of(UldOptions), options_of(WhpOptions)
    assert {key: option.default for key, option in uld.items()} == {
        "weight": -0.8, "top_logit_filter": 0.01, "layers": 8,
    }  # fmt: skip
    assert whp["alpha"].default == 4.0
    assert all(option.doc for option in [*uld.values(), *whp.values()])
    bad = {"weight": 0.5, "top_logit_filter": 2, "layers": 0}
    problems = check_options(bad, uld, owner="uld")[1]
    assert [str(problem) for problem in problems] == [
        "weight: 0.5 is not allowed; weight must be a number at most 0",
        "top_logit_filter: 2 is not allowed; "
        "top_logit_filter must be a number at least 0 and at most 1",
        "layers: 0 is not allowed; layers must be a whole number above 0",
    ]


def test_a_rule_fills_in_defaults_and_refuses_what_it_does_not_take():
    assert find_rule("uld").check({"weight": -1})[0] == {"weight": -1.0, "top_logit_filter": 0.01}
    _, (problem,) = find_rule("whp").check({"weight": -1})
    assert "Possible: alpha" in problem.message
    assert set(RULES) == {"uld", "uld_offset", "whp"}
    with pytest.raises(InputError, match=r"unknown rule 'uld2'. Did you mean uld\?"):
        find_rule("uld2")
