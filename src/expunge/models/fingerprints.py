"""Content hashes of models and tokenizers, so that results know what they belong to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError, RunError
from expunge.core.files import atomic_write_json, cache_root
from expunge.core.fingerprint import LENGTH, fingerprint, fingerprint_file
from expunge.models.builtin import BUILTIN, unpack_builtin
from expunge.models.checks import hub_failure, is_hub_name
from expunge.models.combined_folder import MODEL_TYPE, part_folders

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Say where a config has been, not what the model computes.
_VOLATILE = ("_name_or_path", "transformers_version", "_commit_hash")
_MEMO_SIZE = 500  # model folders remembered


def model_fingerprint(
    model: str | os.PathLike[str] | PreTrainedModel, *, revision: str | None = None
) -> str:
    """Fingerprint of a model's config and weights; of a combined model, those of all its parts.

    A folder is hashed by content (remembered until a file's size or time changes), a hub name by
    its commit, a live model by its parameters as they are now. The three kinds differ even for
    equal weights.

    Raises:
        InputError: No such folder, or the hub does not give the name.
    """
    if not isinstance(model, str | os.PathLike):
        return _live_fingerprint(model)
    if os.fspath(model) == BUILTIN:
        return _folder_fingerprint(unpack_builtin())
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _folder_fingerprint(folder)
    if not is_hub_name(model):
        raise InputError(f"{model}: no such folder")
    return _hub_fingerprint(os.fspath(model), revision)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of vocabulary, merge rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core = json.loads(backend.to_str())
        # The last call left these behind; they are not part of the tokenizer.
        core = {key: core[key] for key in core if key not in ("padding", "truncation")}
    else:
        core = [type(tokenizer).__name__, tokenizer.get_vocab()]
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint([core, specials, tokenizer.chat_template])


def _folder_fingerprint(folder: Path) -> str:
    places = [folder, *(part_folders(folder) or {}).values()]
    found = [file for place in places for file in place.glob("*.safetensors")]
    found += [file for place in places for file in place.glob("config.json")]
    files = {file.relative_to(folder).as_posix(): file for file in sorted(found)}
    state = [[name, file.stat().st_size, file.stat().st_mtime_ns] for name, file in files.items()]
    memo_file = cache_root() / "fingerprints.json"
    memo = _read_memo(memo_file)
    key = str(folder.resolve())
    known = memo.pop(key, None)
    if isinstance(known, Mapping) and known.get("files") == state:
        return str(known["fingerprint"])
    value = fingerprint([[name, _file_content(file)] for name, file in files.items()])
    memo[key] = {"files": state, "fingerprint": value}
    # Forgetting costs only time, so a cache that cannot be written is no failure.
    with contextlib.suppress(OSError, RunError):
        atomic_write_json(memo_file, dict(list(memo.items())[-_MEMO_SIZE:]))
    return value


def _read_memo(file: Path) -> dict[str, Any]:
    try:
        memo = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _file_content(file: Path) -> Any:
    if file.name != "config.json":
        return fingerprint_file(file)
    config = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in _VOLATILE}


def _hub_fingerprint(name: str, revision: str | None) -> str:
    from transformers.utils import cached_file

    try:
        file = cached_file(name, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {hub_failure(error)}") from error
    # The hub client keeps every commit in a folder of that name, and a commit never changes.
    return fingerprint(["hub", name, Path(file).parent.name])


def _live_fingerprint(model: PreTrainedModel) -> str:
    import torch

    digest = hashlib.sha256()
    models = [model]
    if model.config.model_type == MODEL_TYPE:
        models += model.parts.values()
    for one in models:
        config = one.config.to_dict()
        own = {key: value for key, value in config.items() if key not in _VOLATILE}
        digest.update(fingerprint(json.loads(json.dumps(own, default=str))).encode())
    stored = set(model.state_dict())
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    for name, tensor in [*model.named_parameters(), *buffers]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:LENGTH]
