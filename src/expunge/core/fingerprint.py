"""Short content hashes that name data, models and settings; equal content, equal name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expunge.core.files import jsonable

LENGTH = 16  # hex digits; 64 bits are plenty to tell the runs of one lab apart


def fingerprint(value: Any) -> str:
    """Fingerprint of any JSON-like value; the order of mapping keys does not matter."""
    text = json.dumps(jsonable(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:LENGTH]


def fingerprint_chunks(chunks: Iterable[bytes]) -> str:
    """Fingerprint of a sequence of byte strings, each framed by its length."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()[:LENGTH]


def fingerprint_file(path: Path | str) -> str:
    """Fingerprint of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:LENGTH]


def fingerprint_folder(path: Path | str, patterns: Iterable[str] = ("*",)) -> str:
    """Fingerprint of the files of a folder that match any pattern: names and contents."""
    root = Path(path)
    files = sorted({file for pattern in patterns for file in root.glob(pattern) if file.is_file()})
    return fingerprint(
        [[file.relative_to(root).as_posix(), fingerprint_file(file)] for file in files]
    )
