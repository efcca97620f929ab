"""The product: a normal transformers folder that needs no Expunge to be used."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import RunError
from expunge.core.files import atomic_folder
from expunge.models.card import model_card
from expunge.models.combined_folder import MODEL_TYPE
from expunge.models.peft import is_peft
from expunge.models.quiet import no_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["model_card", "save_model"]


def save_model(
    folder: Path | str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str
) -> Path:
    """Write weights (safetensors), configs, tokenizer and model card; replaces `folder` at once.

    Args:
        folder: Where; an older model there stays until the new one is complete.
        model: A plain model, or a `CombinedModel`, whose parts go into sub-folders. Its number
            format is kept.
        tokenizer: Its tokenizer.
        card: Text of README.md.

    Returns:
        The folder.

    Raises:
        ValueError: The model still carries an adapter.
        RunError: The disk is full or the place may not be written.
    """
    from safetensors import SafetensorError

    if any(is_peft(part) for part in _parts(model)):
        raise ValueError("merge the adapter before saving, or the folder would hold only a part")
    folder = Path(folder)
    try:
        with atomic_folder(folder) as temporary:
            with contextlib.ExitStack() as stack:
                stack.enter_context(no_progress_bars())
                for part in _parts(model):
                    stack.enter_context(_mended(part))
                model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            mode = (temporary / "README.md").stat().st_mode
            for file in temporary.rglob("*.safetensors"):
                # safetensors makes its files private to the user, whatever the umask says.
                file.chmod(mode)
    except SafetensorError as error:
        # A full disk arrives as this, not as an OSError.
        raise RunError(
            f"the weights could not be written to {folder}: {error}. Free some space and run the "
            "same command again; what was there before is untouched"
        ) from error
    return folder


def _parts(model: Any) -> list[Any]:
    """The model and, if it is a combined one, the models inside it."""
    if model.config.model_type != MODEL_TYPE:
        return [model]
    return [model, *model.parts.values()]


@contextlib.contextmanager
def _mended(model: Any) -> Iterator[None]:
    """Inside the block the model's generation config is one that can be saved."""
    generation = model.generation_config
    model.generation_config = _savable(generation)
    try:
        yield
    finally:
        model.generation_config = generation


def _savable(generation: Any) -> Any:
    """The generation config, mended where transformers would refuse to write it.

    Several published models set a temperature but not `do_sample`; after a long run that must not
    be the reason why nothing is saved. Their authors meant to sample.
    """
    try:
        generation.validate(strict=True)
    except ValueError:
        generation = copy.deepcopy(generation)
        generation.do_sample = True
    return generation
