"""A saved model is complete, portable and plain; its card tells no secrets and cannot be abused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.core.errors import RunError
from expunge.core.results import (
    DataSummary,
    MethodSummary,
    ModelResults,
    ModelSummary,
    RunManifest,
    Score,
)
from expunge.models.card import escape_markdown
from expunge.models.export import model_card, save_model
from expunge.models.peft import LoraSettings, add_lora

IDS = torch.tensor([[5, 20, 30, 40, 50, 60]])


@torch.no_grad()
def test_transformers_alone_loads_the_folder(folder: Path, model: Any, tokenizer: Any) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    reader = AutoTokenizer.from_pretrained(folder)
    assert reader.chat_template == tokenizer.chat_template
    assert reader("Where was Mira born?").input_ids == tokenizer("Where was Mira born?").input_ids
    assert (folder / "README.md").read_text() == "# A card\n"


def test_saving_is_silent(tmp_path: Path, model: Any, tokenizer: Any, capfd: Any) -> None:
    save_model(tmp_path / "x", model, tokenizer, "")
    assert capfd.readouterr().err == ""


def test_tied_weights_are_stored_once(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_bfloat16_stays_bfloat16(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    folder = save_model(tmp_path / "half", model.bfloat16(), tokenizer, "")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_nothing_names_this_machine(tmp_path: Path, folder: Path, tokenizer: Any) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    again = save_model(tmp_path / "again", loaded, AutoTokenizer.from_pretrained(folder), "")
    for file in again.glob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_all_files_can_be_read_by_the_same_people(folder: Path) -> None:
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_the_old_model_is_replaced_as_a_whole(folder: Path, model: Any, tokenizer: Any) -> None:
    (folder / "stale.txt").touch()
    save_model(folder, model, tokenizer, "new")
    assert (folder / "README.md").read_text() == "new"
    assert not (folder / "stale.txt").exists()
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    "error",
    [SafetensorError("No space left on device (os error 28)"), OSError(errno.ENOSPC, "full")],
)
def test_a_full_disk_leaves_the_old_model(
    folder: Path, model: Any, tokenizer: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(model), "save_pretrained", fail)
    with pytest.raises(RunError, match="ree some space"):
        save_model(folder, model, tokenizer, "new")
    assert (folder / "README.md").read_text() == "# A card\n"
    assert list(folder.parent.iterdir()) == [folder]


def test_an_adapter_is_not_saved_as_a_model(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="merge the adapter"):
        save_model(tmp_path / "x", add_lora(model, LoraSettings()), tokenizer, "")
    assert not (tmp_path / "x").exists()


def test_a_sloppy_generation_config_is_mended(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    model.generation_config.temperature = 0.6  # without do_sample, as some published models have
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "plain")
    folder = save_model(tmp_path / "x", model, tokenizer, "")
    stored = json.loads((folder / "generation_config.json").read_text())
    assert stored["do_sample"] is True
    assert stored["temperature"] == 0.6
    assert model.generation_config.do_sample is not True, "the live config is left alone"


# --- the card ---


def manifest(**changes: Any) -> RunManifest:
    values: dict[str, Any] = {
        "name": "authors",
        "command": "expunge unlearn run.yaml",
        "status": "finished",
        "started": "2026-01-02T03:04:05+00:00",
        "seed": 7,
        "method": MethodSummary(
            notation="NPO+GD", terms=["forget/npo: weight 1.0"], hyperparameters={"beta": 0.1}
        ),
        "data": {
            "forget": DataSummary(
                name="forget", origin="/home/jo/secret/f.jsonl", num_rows=20, fingerprint="ab12"
            )
        },
        "models": {"target": ModelSummary(path="/home/jo/models/target", fingerprint="cd34")},
        "versions": {"torch": "2.13.0"},
        "notes": ["Only 20 rows."],
    }
    return RunManifest(**{**values, **changes})


def results(role: str, scores: dict[str, Score]) -> ModelResults:
    return ModelResults(
        role=role,
        model=role,
        model_fingerprint="ff",
        benchmark="tofu",
        benchmark_version=1,
        scores=scores,
        created="2026-01-02T03:04:05+00:00",
    )


def front_matter(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(header)
    return loaded


def test_the_card_tells_method_data_and_limits() -> None:
    card = model_card(manifest())
    assert front_matter(card) == {"library_name": "transformers", "tags": ["expunge", "unlearning"]}
    for text in ("method NPO+GD", "forget/npo: weight 1.0", "beta: 0.1", "ab12", "cd34", "2.13.0"):
        assert text in card
    assert "Only 20 rows." in card
    assert "nothing here shows that no trace" in card
    assert "Nothing was measured" in card


def test_the_card_tells_no_place_of_this_machine() -> None:
    card = model_card(manifest())
    assert "/home" not in card
    assert "secret" not in card
    assert "f.jsonl" in card


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("owner/model-1.5", "owner/model-1.5"),
        ("builtin:smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("runs/a/model", None),
        ("/home/jo", None),
        ("../x", None),
    ],
)
def test_the_base_model_is_named_where_it_has_a_public_name(path: str, base: str | None) -> None:
    card = model_card(manifest(models={"base": ModelSummary(path=path)}))
    assert front_matter(card).get("base_model") == base


def test_the_card_tabulates_the_models_in_their_order() -> None:
    low = Score(value=0.123456, n=20, better="lower", unit="probability")
    absent = Score(n=0, reason="there is no retain model", better="higher")
    card = model_card(
        manifest(),
        [
            results("unlearned", {"forget/probability": low, "forget_quality": absent}),
            results("base", {"forget/probability": low.model_copy(update={"value": 0.5})}),
        ],
    )
    assert "| score | base | unlearned |  |" in card
    assert r"| forget/probability | 0.5 (n = 20) | 0.1235 (n = 20) | lower is better |" in card
    assert r"| forget\_quality |  | absent: there is no retain model | higher is better |" in card


def test_a_fine_tuned_model_does_not_claim_to_be_unlearned() -> None:
    card = model_card(manifest(method=None, notes=[]))
    assert front_matter(card)["tags"] == ["expunge"]
    assert "unlearn" not in card.split("---\n", 2)[2].lower()
    assert "Fine-tuned with Expunge" in card


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b\n\n# new heading\n\n| c |",
    "[click](javascript:alert(1)) ![x](http://example.org/x.png)",
    "**bold** `code` ~~gone~~ $x$ &amp; \\",
    "- list",
    "1. list",
    "--- \n---",
    "=====",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_shown_as_it_is(text: str) -> None:
    """Rendered in a heading, a list item and a table cell, it gives one run of text again."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = escape_markdown(text)
    for source in (f"# {shown}", f"- {shown}", f"| a |\n| --- |\n| {shown} |"):
        tokens = markdown.parse(source)
        (inline,) = [t for t in tokens if t.type == "inline" and t.content != "a"]
        assert all(child.type.startswith("text") for child in inline.children or [])
        words = "".join(child.content for child in inline.children or [])
        assert words == " ".join(text.split())
        lists = [t for t in tokens if t.type.endswith("list_open")]
        assert len(lists) == source.startswith("- "), "the text opened a list of its own"


def test_a_hostile_name_cannot_leave_the_front_matter() -> None:
    name = "x\n---\n# owned\n---\n"
    card = model_card(manifest(name=name, models={"base": ModelSummary(path="a/b\n---\nc: d")}))
    assert "base_model" not in front_matter(card)
    assert "\n# owned" not in card
