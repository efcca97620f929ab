"""The distance of two model folders equals the norm of all differences."""

import pytest
import torch

from expunge.models.tensors import update_distance
from expunge.testing.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer("smollm2")


def test_equals_the_norm_of_all_differences(tmp_path):
    model = tiny_model(TOKENIZER)
    model.save_pretrained(tmp_path / "a")
    total = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn_like(parameter)
            parameter += step
            total += float(step.double().square().sum())
    model.save_pretrained(tmp_path / "b", max_shard_size="100KB")
    found = update_distance(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found == pytest.approx(total**0.5, rel=1e-5)
    assert update_distance(str(tmp_path / "a"), str(tmp_path / "a")) == 0.0


def test_other_models_have_no_distance(tmp_path):
    tiny_model(TOKENIZER).save_pretrained(tmp_path / "a")
    assert update_distance(str(tmp_path / "a"), "some/hub-name") is None
