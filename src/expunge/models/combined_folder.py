"""Where the parts of a combined model are; light, so that a folder can be looked at without torch.

```text
FOLDER/config.json             model_type, rule and options
FOLDER/generation_config.json
FOLDER/tokenizer.json ...      one tokenizer for all parts
FOLDER/target/                 a plain transformers model: config and weights
FOLDER/assistant/              another one
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_TYPE = "expunge-combined"
"""`model_type` of a combined model."""

PARTS: dict[str, tuple[str, ...]] = {
    "uld": ("target", "assistant"),
    "uld_offset": ("target", "assistant", "base_assistant"),
    "whp": ("target", "reinforced"),
}
"""Sub-folders of each rule; the first holds the model to unlearn."""


def is_combined(config: Mapping[str, Any]) -> bool:
    """Whether this is the content of a combined model's config.json."""
    return config.get("model_type") == MODEL_TYPE


def part_folders(folder: Path) -> dict[str, Path] | None:
    """Folders of the parts by name, there or not; None if this is not a combined model.

    Empty when the rule is unknown.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not is_combined(config):
        return None
    return {name: folder / name for name in PARTS.get(str(config.get("rule")), ())}
