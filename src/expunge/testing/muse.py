"""A made-up folder in the shape of the MUSE benchmark, small enough for a model of two layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDS = 4


def tiny_muse(folder: Path, *, rows: int = 4, folds: int = FOLDS) -> Path:
    """Write the folder and return it.

    Args:
        folder: Where; made if it is not there.
        rows: Rows of each set.
        folds: Forget sets of scal and sust; 0 for none.
    """
    texts = {
        name: " ".join(_sentence(name, i) for i in range(rows))
        for name in ("forget", "retain1", "retain2", "holdout", *map(str, range(2, folds + 1)))
    }
    for name in ("forget", "retain1", "retain2", "holdout"):
        write_text(folder / "raw" / f"{name}.txt", texts[name])
    sets = [texts["forget"], *(texts[str(i)] for i in range(2, folds + 1))]
    for i in range(1, folds + 1):
        write_text(folder / "scal" / f"forget_{i}.txt", "\n\n".join(sets[:i]))
        write_text(folder / "sust" / f"forget_{i}.txt", sets[i - 1])
    pairs = [_sentence("forget", i).rpartition(" ") for i in range(rows)]
    write_rows(folder / "verbmem" / "forget.jsonl", [{"prompt": p, "gt": gt} for p, _, gt in pairs])
    for side in ("forget", "retain"):
        known = [_question(side, i) for i in range(rows + 2)]
        write_rows(folder / "knowmem" / f"{side}_qa.jsonl", known[:rows])
        write_rows(folder / "knowmem" / f"{side}_qa_icl.jsonl", known[rows:])
    for name in ("forget", "retain", "holdout"):
        source = "retain1" if name == "retain" else name
        samples = [{"text": _sentence(source, i)} for i in range(rows)]
        write_rows(folder / "privleak" / f"{name}.jsonl", samples)
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write JSON lines."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _sentence(name: str, number: int) -> str:
    return f"In the {name} harbour the keeper number {number} wrote down {number + 3} ships."


def _question(side: str, number: int) -> dict[str, str]:
    question = f"How many ships did keeper {number} of the {side} harbour write down?"
    return {"question": question, "answer": f"{number + 3} ships"}
