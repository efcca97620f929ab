"""`expunge extrapolate`: two checkpoints of any tool, by number, by budget, by sweep."""

import json

import pytest
import torch

from expunge.core.errors import InputError
from expunge.models.export import save_model
from expunge.models.loading import load_model
from expunge.models.peft import LoraSettings, add_lora
from expunge.run.extrapolating import extrapolate_models
from expunge.run.ui import SilentUi
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts
from expunge.training.budget import Budget

TOKENIZER = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An initial model, one moved by noise, and rows."""
    root = tmp_path_factory.mktemp("models")
    initial, moved = tiny_model(TOKENIZER), tiny_model(TOKENIZER)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    save_model(root / "initial", initial, TOKENIZER, "")
    save_model(root / "moved", moved, TOKENIZER, "")
    rows = "\n".join(json.dumps(fact) for fact in toy_facts(6))
    (root / "rows.jsonl").write_text(rows)
    return root


def call(folders, output, **options):
    names = {"initial": str(folders / "initial"), "unlearned": str(folders / "moved")} | options
    return extrapolate_models(
        names.pop("initial"), names.pop("unlearned"), output, ui=SilentUi(), **names
    )


def test_a_number(folders, tmp_path):
    call(folders, tmp_path / "out", alpha=1.0)
    start, end = (load_model(folders / name).state_dict() for name in ("initial", "moved"))
    for name, value in load_model(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(value, end[name] + (end[name] - start[name]))
    record = json.loads((tmp_path / "out" / "extrapolation.json").read_text())
    assert record["alpha"] == 1.0
    assert record["initial"] != record["unlearned"]


def test_auto_stays_within_the_budget(folders, tmp_path):
    rows = str(folders / "rows.jsonl")
    found = call(folders, tmp_path / "out", alpha="auto", retain=rows, budget=Budget(utility=0.97))
    assert dict(found.search.curve).get(found.alpha, 1.0) >= 0.97
    assert (tmp_path / "out" / "config.json").exists()


def test_a_sweep_measures_and_writes_no_model(folders, tmp_path):
    rows = str(folders / "rows.jsonl")
    found = call(folders, tmp_path / "out", sweep=[-1.0, 0.0, 1.0], retain=rows, forget=rows)
    assert [point.alpha for point in found.sweep] == [-1.0, 0.0, 1.0]
    assert found.sweep[0].utility == pytest.approx(1.0)
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_adapter_folder(folders, tmp_path):
    model = add_lora(load_model(folders / "initial"), LoraSettings(r=2, dropout=0.0), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    model.save_pretrained(tmp_path / "adapter")
    call(folders, tmp_path / "out", unlearned=str(tmp_path / "adapter"), alpha=-1.0)
    start = load_model(folders / "initial").state_dict()
    for name, value in load_model(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(value, start[name])


def test_everything_wrong_is_named_before_weights_load(folders, tmp_path):
    other = tiny_model(TOKENIZER, num_layers=1)
    save_model(tmp_path / "other", other, TOKENIZER, "")
    with pytest.raises(InputError, match=r"num_hidden_layers: 2 in .* and 1 in"):
        call(folders, tmp_path / "out", unlearned=str(tmp_path / "other"))
    with pytest.raises(InputError) as caught:
        call(folders, folders, unlearned=str(tmp_path / "nothing"), alpha="auto")
    for word in ("UNLEARNED", "--retain", "--output"):
        assert word in str(caught.value)
