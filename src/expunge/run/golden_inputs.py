"""The stored inputs that golden numbers were made with, and the layouts golden files come in."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

ASSET = "golden_inputs.json.xz"
SUFFIXES = (".json", ".json.xz")
"""How the name of a golden file ends."""


@cache
def golden_inputs() -> Mapping[str, Any]:
    """Packaged inputs: `fixtures` with logits by name, `worked` with the example of EGUP.

    The files with the expected numbers name a fixture; `scripts/pack_golden.py` makes the archive.
    """
    packed = files("expunge.run").joinpath("assets", ASSET).read_bytes()
    content: Mapping[str, Any] = json.loads(lzma.decompress(packed))
    return content


def read_json(path: Path) -> Any:
    """Content of a JSON file, compressed (`.xz`) or not.

    Raises:
        ValueError: It is not text, not JSON, or not a whole archive.
    """
    data = path.read_bytes()
    if path.suffix == ".xz":
        try:
            data = lzma.decompress(data)
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from None
    return json.loads(data.decode())


def fixtures_beside(path: Path) -> Mapping[str, Any]:
    """Fixtures for a golden file: those in its folder, else the packaged ones."""
    for suffix in SUFFIXES:
        file = path.parent / f"fixtures{suffix}"
        if file.is_file():
            fixtures: Mapping[str, Any] = read_json(file)["fixtures"]
            return fixtures
    packaged: Mapping[str, Any] = golden_inputs()["fixtures"]
    return packaged
