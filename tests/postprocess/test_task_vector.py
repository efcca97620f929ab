"""Task-vector negation: theta - alpha (theta_reinforced - theta)."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.core.options import check_options, options_of
from expunge.postprocess import TaskVectorOptions, extrapolate, negate

CASES = json.loads((Path(__file__).parent / "data/task_vector.json").read_text())["cases"]
INITIAL = {"w": torch.tensor([[1.0, 2.0]]), "steps": torch.tensor(3)}
REINFORCED = {"w": torch.tensor([[1.5, 1.0]]), "steps": torch.tensor(5)}


def double(tensors):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in tensors.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"alpha {case['hyper']['alpha']:g}")
def test_released_code(case):
    found = negate(double(case["base"]), double(case["reinforced"]), **case["hyper"])
    expected = double(case["result"])
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 300))
def test_formula_entry_by_entry(alpha):
    """1 - a (1.5 - 1) and 2 - a (1 - 2); integer buffers are copied from the initial model."""
    result = negate(INITIAL, REINFORCED, alpha=alpha)
    torch.testing.assert_close(result["w"], torch.tensor([[1.0 - 0.5 * alpha, 2.0 + alpha]]))
    assert int(result["steps"]) == 3


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 300))
def test_it_is_extrapolation_beyond_the_initial_model(alpha):
    """theta - a d = theta_r + b d with d = theta_r - theta and b = -(1 + a)."""
    other = extrapolate(INITIAL, REINFORCED, alpha=-(1 + alpha))
    torch.testing.assert_close(negate(INITIAL, REINFORCED, alpha=alpha)["w"], other["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zero_is_the_initial_and_minus_one_the_reinforced_model_exactly(dtype):
    generator = torch.Generator().manual_seed(0)
    first = {"w": torch.randn(50, generator=generator).to(dtype)}
    second = {"w": torch.randn(50, generator=generator).to(dtype)}
    unchanged = negate(first, second, alpha=0)["w"]
    assert torch.equal(unchanged, first["w"])
    assert unchanged.data_ptr() != first["w"].data_ptr()
    assert torch.equal(negate(first, second, alpha=-1)["w"], second["w"])
    assert negate(first, second, alpha=5.0)["w"].dtype == dtype


def test_half_precision_is_rounded_once():
    """1 - 5 (1 + 2^-7 - 1) = 1 - 5 / 128; bfloat16 keeps 8 bits, so 0.9609375 is exact."""
    first = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    second = {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)}
    assert float(negate(first, second, alpha=5.0)["w"]) == 1 - 5 / 128


def test_different_architectures_are_refused():
    with pytest.raises(InputError, match=r"head.*shape"):
        negate({"w": torch.ones(2)}, {"w": torch.ones(2), "head": torch.ones(2)}, alpha=1)


def test_options():
    options = options_of(TaskVectorOptions)
    assert options["alpha"].default == 5.0
    assert "16 for News and 1 for Books" in options["alpha"].doc
    problems = check_options({"alpha": -1}, options, owner="task_vector")[1]
    assert [str(problem) for problem in problems] == [
        "alpha: -1 is not allowed; alpha must be a number at least 0"
    ]
