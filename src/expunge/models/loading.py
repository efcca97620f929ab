"""From a folder, a hub name or the embedded model to a tokenizer and weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expunge.core.errors import InputError, did_you_mean
from expunge.models.builtin import BUILTIN, unpack_builtin
from expunge.models.checks import check_model, hub_failure, know_combined
from expunge.models.fingerprints import model_fingerprint, tokenizer_fingerprint
from expunge.models.quiet import no_progress_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BUILTIN",
    "DTYPES",
    "DtypeName",
    "check_model",
    "load_model",
    "load_tokenizer",
    "model_fingerprint",
    "resolve_model",
    "tokenizer_fingerprint",
    "torch_dtype",
]

DtypeName = Literal["float32", "bfloat16"]
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")
"""Number formats that weights can be held in."""


def resolve_model(path: str | os.PathLike[str]) -> Path | str:
    """The folder that `path` stands for, or the hub name it is; unpacks the embedded model.

    Raises:
        InputError: The embedded model cannot be unpacked here.
    """
    if os.fspath(path) == BUILTIN:
        return unpack_builtin()
    folder = Path(path).expanduser()
    return folder if folder.is_dir() or isinstance(path, Path) else os.fspath(path)


def load_tokenizer(
    path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token pads with its end-of-sequence token.

    No token is ever added to the vocabulary, so the embedding keeps its size.

    Args:
        path: A folder in `transformers` format, a hub name, or `BUILTIN`.
        revision: Branch, tag or commit of a hub name.
        trust_remote_code: Run Python code that comes with the model.

    Raises:
        InputError: The model is not there or has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    _require(path, revision, trust_remote_code)
    source = resolve_model(path)
    try:
        with no_progress_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(_load_failure(path, "tokenizer", error)) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{os.fspath(path)}: the tokenizer has neither a padding nor an end-of-sequence "
                "token. Set eos_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: DtypeName = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A causal language model in eval mode on the CPU. Only safetensors are read, never a pickle.

    A folder that holds several models whose logits are combined gives a `CombinedModel`.

    Args:
        path: A folder in `transformers` format, a hub name, or `BUILTIN`.
        dtype: Number format of all weights.
        revision: Branch, tag or commit of a hub name.
        trust_remote_code: Run Python code that comes with the model.
        attn_implementation: As in `transformers`: "eager", "sdpa", ...; its own choice by default.

    Raises:
        InputError: The model is not there, is of the wrong kind, or lacks some of its weights.
    """
    from transformers import AutoModelForCausalLM

    number_format = torch_dtype(dtype)
    _require(path, revision, trust_remote_code)
    source = resolve_model(path)
    know_combined()
    try:
        with no_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=number_format,
                revision=revision,
                trust_remote_code=trust_remote_code,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
            )
    except InputError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(_load_failure(path, "weights", error)) from error
    # transformers fills what is missing with random numbers and only warns.
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{os.fspath(path)}: the weights lack {len(missing)} of the model's tensors, such as "
            f"{missing[0]}. Save the model again, or give the right config.json"
        )
    return model.eval()


def torch_dtype(name: str) -> torch.dtype:
    """The torch number format called `name`.

    Raises:
        InputError: It is none of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}. {did_you_mean(name, DTYPES)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _require(path: str | os.PathLike[str], revision: str | None, trust_remote_code: bool) -> None:
    problems = check_model(path, revision=revision, trust_remote_code=trust_remote_code)
    if problems:
        raise InputError(problems)


def _load_failure(path: str | os.PathLike[str], what: str, error: Exception) -> str:
    name = os.fspath(path)
    if not Path(name).expanduser().exists() and name != BUILTIN:
        return f"{name}: {hub_failure(error)}"
    return f"{name}: transformers cannot load the {what}: {error}"
