"""UIPE: theta_un + alpha (theta_un - theta_init)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import InputError
from expunge.postprocess import extrapolate, update_norm

INITIAL = {"w": torch.tensor([[1.0, 2.0]]), "steps": torch.tensor(3)}
UNLEARNED = {"w": torch.tensor([[1.5, 1.0]]), "steps": torch.tensor(5)}


@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2))
def test_formula_entry_by_entry(alpha):
    """1.5 + a (1.5 - 1) and 1 + a (1 - 2); integer buffers are copied from the unlearned model."""
    result = extrapolate(INITIAL, UNLEARNED, alpha=alpha)
    expected = torch.tensor([[1.5 + 0.5 * alpha, 1.0 - alpha]])
    torch.testing.assert_close(result["w"], expected)
    assert int(result["steps"]) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zero_is_the_unlearned_and_minus_one_the_initial_model_exactly(dtype):
    generator = torch.Generator().manual_seed(0)
    first = {"w": torch.randn(50, generator=generator).to(dtype)}
    second = {"w": torch.randn(50, generator=generator).to(dtype)}
    assert torch.equal(extrapolate(first, second, alpha=0)["w"], second["w"])
    assert torch.equal(extrapolate(first, second, alpha=-1)["w"], first["w"])
    assert extrapolate(first, second, alpha=0.3)["w"].dtype == dtype


def test_the_difference_of_half_precision_weights_is_formed_in_float32():
    first = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    second = {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)}
    result = extrapolate(first, second, alpha=0.5)["w"]
    assert float(result) == float(torch.tensor(1.0078125 + 0.00390625).bfloat16())


def test_norm_of_the_update():
    """sqrt(0.5^2 + 1^2)."""
    assert update_norm(INITIAL, UNLEARNED) == pytest.approx(1.25**0.5)


def test_different_architectures_are_refused_by_name_and_shape():
    with pytest.raises(InputError, match=r"head.*shape None.*\(2,\)"):
        extrapolate({"w": torch.ones(2)}, {"w": torch.ones(2), "head": torch.ones(2)}, alpha=1)
