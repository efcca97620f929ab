"""Optimizers agree with torch's where they must, and small updates of bfloat16 weights arrive."""

import pytest
import torch

from expunge.core.errors import InputError
from expunge.training import optimizers
from expunge.training.arguments import TrainingArguments
from expunge.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from expunge.training.optimizers import (
    NarrowAdamW,
    make_optimizer,
    rounding_rule,
    set_learning_rate,
    stochastically_rounded,
)

SHAPES = [(6, 5), (7,), (3, 4)]


def weights(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES
    ]


def run_steps(optimizer, parameters, first=0, last=12):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        set_learning_rate(optimizer, 0.02 / (1 + step))
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


def stepped(optimizer, parameters):
    run_steps(optimizer, parameters)
    return [parameter.detach().clone() for parameter in parameters]


def plain_adamw(parameters, weight_decay=0.1):
    """The textbook: one tensor at a time, as torch does it without a fused kernel."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, foreach=False, fused=False)


def test_the_fused_optimizer_gives_the_numbers_of_the_plain_one():
    ours, theirs = weights(), weights()
    optimizer = make_optimizer(ours, TrainingArguments(weight_decay=0.1))
    assert optimizer.defaults["fused"] is True
    for a, b in zip(stepped(optimizer, ours), stepped(plain_adamw(theirs), theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_float32_weights_are_updated_as_by_torch(chunk):
    ours, theirs = weights(), weights()
    groups = optimizers._groups(ours, 0.1)
    optimizer = NarrowAdamW(groups, chunk=chunk)
    for a, b in zip(stepped(optimizer, ours), stepped(plain_adamw(theirs), theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_weights_that_are_not_contiguous():
    values = torch.randn(5, 6)
    ours = [torch.nn.Parameter(values.clone().t())]
    theirs = [torch.nn.Parameter(values.t().contiguous())]
    assert not ours[0].is_contiguous()
    a = stepped(NarrowAdamW(ours, weight_decay=0.1), ours)[0]
    torch.testing.assert_close(a, stepped(plain_adamw(theirs), theirs)[0], rtol=1e-6, atol=1e-7)


def test_float32_masters_are_the_float32_trajectory():
    """With the gradients of bfloat16 weights; the weights are the masters, rounded once."""
    ours, theirs = (
        weights(torch.bfloat16),
        [torch.nn.Parameter(p.detach().float()) for p in weights(torch.bfloat16)],
    )
    arguments = TrainingArguments(weight_decay=0.1, master_weights="float32")
    optimizer = make_optimizer(ours, arguments)
    reference = plain_adamw(theirs)
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator).bfloat16()
            b.grad = a.grad.float()
        set_learning_rate(optimizer, 1e-3)
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(optimizer.state[a]["master"], b.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(a.detach(), optimizer.state[a]["master"].bfloat16())


@pytest.mark.parametrize(
    ("rule", "expected"), [("none", 0.0), ("float32", 0.03), ("stochastic_rounding", 0.03)]
)
def test_small_updates_arrive(rule, expected):
    """300 updates of 1e-4 on weights of 1, whose neighbours are 0.0039 and 0.0078 away."""
    parameter = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
    arguments = TrainingArguments(learning_rate=1e-4, weight_decay=0.0, master_weights=rule)
    optimizer = make_optimizer([parameter], arguments)
    for _ in range(300):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    moved = 1 - float(parameter.detach().double().mean())
    # Standard deviation of the mean: at most sqrt(300) * 0.002 / sqrt(2000) = 0.0008.
    assert moved == pytest.approx(expected, abs=0.004)


def test_a_second_moment_in_bfloat16_can_fall():
    """Rounded to the nearest it would stay where it is: a step takes a thousandth of it."""
    parameter = torch.nn.Parameter(torch.zeros(2000, dtype=torch.bfloat16))
    optimizer = NarrowAdamW([parameter], lr=0.0, weight_decay=0.0)
    for step in range(600):
        parameter.grad = torch.full_like(parameter, float(step < 300))
        optimizer.step()
    moment = optimizer.state[parameter]["exp_avg_sq"]
    assert moment.dtype == torch.bfloat16
    expected = (1 - 0.999**300) * 0.999**300
    assert float(moment.double().mean()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("value", [1.001, -1.001, 3.3e-5, -250.4, 0.0])
def test_stochastic_rounding_is_right_on_average(value):
    values = torch.full((200_000,), value)
    rounded = stochastically_rounded(values, seed=3).double()
    gap = float(rounded.max() - rounded.min())
    spread = gap / 2 / 200_000**0.5
    assert float(rounded.mean()) == pytest.approx(float(values[0]), abs=5 * spread + 1e-12)
    assert len(rounded.unique()) == (1 if value == 0 else 2)
    low, high = float(rounded.min()), float(rounded.max())
    assert low <= float(values[0]) <= high


def test_what_bfloat16_can_hold_is_left_alone():
    values = torch.randn(1000).bfloat16()
    assert torch.equal(stochastically_rounded(values.float(), seed=1), values)
    extremes = torch.tensor([float("inf"), float("-inf")])
    assert torch.equal(stochastically_rounded(extremes).float(), extremes)
    assert bool(stochastically_rounded(torch.tensor([float("nan")])).isnan().all())


def test_rounding_of_pieces_and_steps_is_uncorrelated():
    """Pieces share a block of random bits; their errors must not add up."""
    noise = optimizers._Tools(0, 1, 20_000, torch.device("cpu"))
    errors = []
    for _ in range(4):
        target = torch.empty(20_000, dtype=torch.bfloat16)
        values = torch.full((20_000,), 1.001)
        noise.round_into(target, values)
        errors.append(target.float() - 1.001)
    later = torch.empty(20_000, dtype=torch.bfloat16)
    optimizers._Tools(0, 2, 20_000, torch.device("cpu")).round_into(
        later, torch.full((20_000,), 1.001)
    )
    errors.append(later.float() - 1.001)
    table = torch.corrcoef(torch.stack(errors)) - torch.eye(5)
    assert float(table.abs().max()) < 0.05


@pytest.mark.parametrize("rule", ["none", "float32", "stochastic_rounding"])
@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_a_resumed_optimizer_goes_on_bit_for_bit(rule, state_dtype):
    def fresh():
        parameters = weights(torch.bfloat16)
        arguments = TrainingArguments(master_weights=rule, seed=4)
        optimizer = make_optimizer(parameters, arguments)
        if isinstance(optimizer, NarrowAdamW) and state_dtype is not None:
            optimizer.state_dtype = state_dtype
        return optimizer, parameters

    straight, expected = fresh()
    run_steps(straight, expected)
    stopped, before = fresh()
    run_steps(stopped, before, 0, 5)
    saved = {name: value.clone() for name, value in optimizer_tensors(stopped).items()}
    resumed, after = fresh()
    for old, new in zip(before, after, strict=True):
        new.data.copy_(old.data)
    load_optimizer_tensors(resumed, saved)
    for name, value in optimizer_tensors(resumed).items():
        assert torch.equal(value, saved[name])
        assert value.dtype == saved[name].dtype
    run_steps(resumed, after, 5)
    for a, b in zip(expected, after, strict=True):
        assert torch.equal(a, b)


def test_two_seeds_round_differently():
    first, second = weights(torch.bfloat16), weights(torch.bfloat16)
    one = stepped(make_optimizer(first, TrainingArguments(seed=0)), first)
    other = stepped(make_optimizer(second, TrainingArguments(seed=1)), second)
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("dtype", "wanted", "expected"),
    [
        (torch.float32, "auto", "none"),
        (torch.float32, "float32", "none"),
        (torch.bfloat16, "auto", "stochastic_rounding"),
        (torch.bfloat16, "none", "none"),
        (torch.bfloat16, "float32", "float32"),
    ],
)
def test_rule_for_the_weights(dtype, wanted, expected):
    arguments = TrainingArguments(master_weights=wanted)
    assert rounding_rule(weights(dtype), arguments) == expected


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(optimizers, "_installed", lambda name: False)
    arguments = TrainingArguments(optimizer="adamw_8bit")
    with pytest.raises(InputError, match=r"pip install 'expunge\[8bit\]'"):
        make_optimizer(weights(), arguments)
    assert "adamw_8bit" in optimizers.optimizer_fault(arguments)
    assert optimizers.optimizer_fault(TrainingArguments()) == ""


def test_what_eight_bits_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr(optimizers, "_installed", lambda name: name == "bitsandbytes")
    narrow = weights(torch.bfloat16)
    for rule, advice in (("float32", "optimizer=adamw"), ("stochastic_rounding", "torchao")):
        arguments = TrainingArguments(optimizer="adamw_8bit", master_weights=rule)
        with pytest.raises(InputError, match=advice):
            make_optimizer(narrow, arguments)
    auto = TrainingArguments(optimizer="adamw_8bit")
    assert rounding_rule(narrow, auto) == "none"


class Nested:
    """An optimizer whose state has parts and counters that are no tensors."""

    def __init__(self):
        shared = torch.arange(4.0)
        self.state = {
            0: {"step": 3, "parts": {"codes": torch.ones(2, dtype=torch.uint8), "map": shared}},
            1: {"step": 4, "parts": {"codes": torch.zeros(1, dtype=torch.uint8), "map": shared}},
        }

    def state_dict(self):
        return {"state": self.state, "param_groups": []}

    def load_state_dict(self, state_dict):
        self.loaded = state_dict["state"]


def test_nested_state_is_saved_flat_and_comes_back(tmp_path):
    from safetensors.torch import load_file, save_file

    optimizer = Nested()
    flat = optimizer_tensors(optimizer)
    save_file(flat, tmp_path / "state.safetensors")
    load_optimizer_tensors(optimizer, load_file(tmp_path / "state.safetensors"))
    assert optimizer.loaded[1]["step"] == 4
    assert type(optimizer.loaded[0]["step"]) is int
    assert torch.equal(optimizer.loaded[0]["parts"]["codes"], torch.ones(2, dtype=torch.uint8))
    assert torch.equal(optimizer.loaded[1]["parts"]["map"], torch.arange(4.0))


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_eight_bit_moments_resume(package, dtype, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setattr(optimizers, "_installed", lambda name: name == package)
    arguments = TrainingArguments(optimizer="adamw_8bit", seed=2)

    def fresh():
        generator = torch.Generator().manual_seed(0)
        parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
            for shape in [(64, 128), (128, 64), (5,)]
        ]
        return make_optimizer(parameters, arguments), parameters

    straight, expected = fresh()
    start = [p.detach().clone() for p in expected]
    run_steps(straight, expected, 0, 6)
    assert not torch.equal(start[0], expected[0])
    stopped, before = fresh()
    run_steps(stopped, before, 0, 3)
    saved = {name: value.clone() for name, value in optimizer_tensors(stopped).items()}
    resumed, after = fresh()
    for old, new in zip(before, after, strict=True):
        new.data.copy_(old.data)
    load_optimizer_tensors(resumed, saved)
    run_steps(resumed, after, 3, 6)
    for a, b in zip(expected, after, strict=True):
        assert torch.equal(a, b)
