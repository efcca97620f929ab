"""What is wrong with a model folder or name, found before any weights are read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError, Problem, did_you_mean
from expunge.models.builtin import BUILTIN, builtin_problems
from expunge.models.combined_folder import is_combined, part_folders

# One of these sets of files is enough to build a tokenizer from.
_TOKENIZER_FILES = (
    {"tokenizer.json"},
    {"tokenizer.model"},
    {"spiece.model"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
    {"tekken.json"},
)
_INDEX = "model.safetensors.index.json"


def check_model(
    path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> list[Problem]:
    """Everything that would keep a model from loading, without reading its weights.

    Args:
        path: A folder in `transformers` format, a hub name, or `BUILTIN`.
        revision: Branch, tag or commit of a hub name.
        trust_remote_code: Code that comes with the model may be run to read its config.

    Returns:
        One problem per thing to correct; empty when the model can be loaded.
    """
    name = os.fspath(path)
    if name.startswith("builtin:"):
        if name != BUILTIN:
            return [_problem(name, f"unknown embedded model. {did_you_mean(name, [BUILTIN])}")]
        return [_problem(name, problem.message) for problem in builtin_problems()]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _check_folder(folder, trust_remote_code)
    if folder.exists():
        return [_problem(name, "a model is a folder in transformers format; this is a file")]
    if not is_hub_name(path):
        return [_problem(name, "no such folder")]
    return _check_hub(name, revision, trust_remote_code)


def is_hub_name(path: str | os.PathLike[str]) -> bool:
    """Whether `path` can only mean a model on the hub: `name` or `owner/name`, no such folder."""
    if not isinstance(path, str) or Path(path).expanduser().exists():
        return False
    parts = path.split("/")
    return len(parts) <= 2 and all(parts) and path[0] not in "./~" and "\\" not in path


def _check_folder(folder: Path, trust_remote_code: bool) -> list[Problem]:
    where = str(folder)
    files = {file.name for file in folder.iterdir()}
    if "config.json" not in files:
        return [_problem(where, _why_no_config(folder, files))]
    problems = [_problem(where, text) for text in _config_faults(folder, trust_remote_code)]
    if not any(needed <= files for needed in _TOKENIZER_FILES):
        problems.append(
            _problem(
                where,
                "no tokenizer: expected tokenizer.json or tokenizer.model beside config.json. "
                "Copy it from the model this one was made from, "
                "or call save_pretrained of its tokenizer with this folder",
            )
        )
    parts = part_folders(folder)
    if parts is None:
        problems += [_problem(where, text) for text in _weight_faults(folder, files)]
    else:
        problems += _check_parts(folder, parts)
    return problems


def _check_parts(folder: Path, parts: Mapping[str, Path]) -> list[Problem]:
    """What is wrong with the models that a combined model is made of."""
    from expunge.models.combined import vocabulary_fault

    problems = []
    sizes = {}
    for part in parts.values():
        if not (part / "config.json").is_file():
            problems.append(
                _problem(str(part), "this part of the combined model is missing; save it again")
            )
            continue
        faults = _config_faults(part, trust_remote_code=False)
        faults += _weight_faults(part, {file.name for file in part.iterdir()})
        problems += [_problem(str(part), text) for text in faults]
        if not faults:
            sizes[part.name] = _read_json(part / "config.json").get("vocab_size")
    known = {name: size for name, size in sizes.items() if isinstance(size, int)}
    if len(set(known.values())) > 1:
        problems.append(_problem(str(folder), vocabulary_fault(known)))
    return problems


def _why_no_config(folder: Path, files: set[str]) -> str:
    if "adapter_config.json" in files:
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "BASE"
        return (
            f"only an adapter, not a model. Merge it into its base model {base} first: "
            "peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
            ".save_pretrained(NEW), and save the tokenizer there too"
        )
    if any(name.endswith(".gguf") for name in files):
        return (
            "a GGUF file is not trainable. Take the folder in transformers format it was made from"
        )
    nested = sorted(file.parent.name for file in folder.glob("*/config.json"))
    hint = f". Did you mean {folder / nested[0]}?" if nested else ""
    return f"no config.json, so this is no model folder{hint}"


def _config_faults(folder: Path, trust_remote_code: bool) -> list[str]:
    try:
        config = _read_json(folder / "config.json")
    except ValueError as error:
        return [f"config.json cannot be read: {error}"]
    if "auto_map" in config and not trust_remote_code:
        if config.get("model_type") not in _causal_types():
            return ["needs the Python code in its folder. Read it, then set trust_remote_code"]
        return []
    return [] if "auto_map" in config else causal_faults(config)


def causal_faults(config: Mapping[str, Any]) -> list[str]:
    """Why a model with this config cannot continue a text from left to right; empty if it can."""
    if is_combined(config):
        return _rule_faults(config)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return ["config.json names no model_type"]
    if config.get("is_encoder_decoder"):
        return [f"{kind} is an encoder-decoder model; only causal language models are supported"]
    if kind not in _causal_types():
        return [f"{kind} is not a causal language model that this transformers version knows"]
    return []


def _rule_faults(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the rule of a combined model and its options."""
    from expunge.models.combine import find_rule

    options = config.get("options", {})
    if not isinstance(options, dict):
        return [f"options must be a mapping of names to numbers, got {options!r}"]
    try:
        _, problems = find_rule(str(config.get("rule"))).check(options)
    except InputError as error:
        return [problem.message for problem in error.problems]
    return [str(problem) for problem in problems]


def know_combined() -> None:
    """Make transformers know the type of a combined model."""
    import expunge.models.combined  # noqa: F401


def _causal_types() -> Mapping[str, object]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names: Mapping[str, object] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return names


def _weight_faults(folder: Path, files: set[str]) -> list[str]:
    if _INDEX in files:
        try:
            shards = set(_read_json(folder / _INDEX)["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            return [f"{_INDEX} cannot be read: {error!r}"]
        missing = sorted(shards - files)
        if missing:
            return [f"{len(missing)} of {len(shards)} weight files missing: {', '.join(missing)}"]
    else:
        shards = {"model.safetensors"} & files
    if shards:
        return [text for name in sorted(shards) if (text := _damage(folder / name))]
    if any(name.endswith((".bin", ".pt", ".pth")) for name in files):
        return [
            "weights only as a pickle, which can run any code when opened, so it is not read. "
            "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW)"
        ]
    return ["no weights: expected model.safetensors"]


def _damage(file: Path) -> str | None:
    """Why a safetensors file is cut short or not one at all; None if its size fits its header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            return f"{file.name} is no safetensors file, or is cut short"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return f"{file.name} is no safetensors file"
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        return f"{file.name} is cut short: {size} bytes of {expected}. Copy or download it again"
    return None


def _check_hub(name: str, revision: str | None, trust_remote_code: bool) -> list[Problem]:
    from transformers import AutoConfig

    know_combined()
    try:
        config = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        return [_problem(name, hub_failure(error))]
    if "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return []
    return [_problem(name, text) for text in causal_faults(config.to_dict())]


def hub_failure(error: Exception) -> str:
    """A message for a model that is neither a folder nor, as far as we can see, on the hub."""
    if "trust_remote_code" in str(error):
        return "needs Python code from its repository. Read it, then set trust_remote_code"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        "no such folder, and the model hub did not give it (no network, a wrong name, or no "
        f"access). Give a folder in transformers format, or {BUILTIN}. The hub client said: "
        f"{reason}"
    )


def _read_json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"{file.name} holds no JSON object")
    return value


def _problem(where: str, message: str) -> Problem:
    return Problem(where=where, message=message)
