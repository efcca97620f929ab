"""Tokenizer and template of a run: the check, the training and the evaluation share one of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.fingerprint import fingerprint
from expunge.data.remembered import RememberedTemplate
from expunge.models import loading
from expunge.models.builtin import BUILTIN, builtin_folder
from expunge.run.check_data import build_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from expunge.data import Template
    from expunge.run.config import RunConfig
    from expunge.run.sections import ModelConfig


@dataclass(kw_only=True)
class _Shared:
    """What this process loaded last.

    Attributes:
        key: Fingerprint of the model's small files, and of how they are read.
        tokenizer: Its tokenizer.
        templates: Templates for it, by their settings.
    """

    key: str = ""
    tokenizer: Any = None
    templates: dict[str, Template] = field(default_factory=dict)


_LAST = _Shared()


def run_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; the one of the last call while its files are the same.

    It is shared, so it must not be changed.

    Raises:
        InputError: The model is not there or has no usable tokenizer.
    """
    key = _state(model)
    if _LAST.key != key:
        tokenizer = loading.load_tokenizer(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        # Again: loading is what unpacks the embedded model.
        _LAST.key, _LAST.tokenizer, _LAST.templates = _state(model), tokenizer, {}
    tokenizer = _LAST.tokenizer
    return tokenizer


def run_template(config: RunConfig) -> Template:
    """The template of a run; it tokenises a row once, whoever asks.

    Raises:
        InputError: There is no tokenizer, or an option does not go with the template.
    """
    tokenizer = run_tokenizer(config.model)
    key = config.template.model_dump_json()
    if key not in _LAST.templates:
        _LAST.templates[key] = RememberedTemplate(build_template(config.template, tokenizer))
    return _LAST.templates[key]


def _state(model: ModelConfig) -> str:
    """Fingerprint of a model's place and of everything there but the weights."""
    folder = builtin_folder() if model.path == BUILTIN else Path(model.path).expanduser()
    files = []
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.suffix != ".safetensors" and file.is_file():
                facts = file.stat()
                files.append([file.name, facts.st_size, facts.st_mtime_ns])
    return fingerprint([model.path, str(folder), model.revision, model.trust_remote_code, files])
