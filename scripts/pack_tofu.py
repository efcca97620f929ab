"""Pack the TOFU tables into the archive that ships with the package.

    python scripts/pack_tofu.py FOLDER [ARCHIVE]

FOLDER holds the original tables as JSON lines (`full.jsonl`, `forget10_perturbed.jsonl`, ...) with
`splits.json`, `continual_splits.json` and `LICENSE`. The same tables give the same bytes. What is
not stored must follow from what is, so after packing every table is read back and compared.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
from pathlib import Path
from typing import Any

from expunge.data import tofu

ASSETS = Path(__file__).resolve().parents[1] / "src" / "expunge" / "data" / "assets"


def read_table(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one original table."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def pack(folder: Path) -> bytes:
    """The archive: columns as lists, similar texts next to each other."""
    full = [[row["question"], row["answer"]] for row in read_table(folder, "full")]
    perturbed = {}
    for name in ("retain_perturbed", "forget10_perturbed"):
        start = 0 if name.startswith("retain") else 3600
        for i, row in enumerate(read_table(folder, name), start=start):
            texts = [row["paraphrased_question"], row["paraphrased_answer"]]
            perturbed[str(i)] = [*texts, *row["perturbed_answer"]]
    content: dict[str, Any] = {"full": full, "perturbed": perturbed}
    for name in ("real_authors", "world_facts"):
        content[name] = [
            [row["question"], row["answer"], *(row[f"option{k}"] for k in (1, 2, 3, 4))]
            for row in read_table(folder, name)
        ]
    content["rejections"] = [row["response"] for row in read_table(folder, "idontknow")]
    continual = json.loads((folder / "continual_splits.json").read_text(encoding="utf-8"))
    content["continual"] = continual["splits"]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def check(folder: Path) -> list[str]:
    """Names of the tables that do not come back from the archive as they were."""
    tables = {path.stem: path.stem for path in folder.glob("*.jsonl") if path.stem != "idontknow"}
    wrong = [name for name in tables if tofu.load_tofu(name) != read_table(folder, name)]
    ranges = json.loads((folder / "splits.json").read_text(encoding="utf-8"))["splits"]
    known = {**tofu.RANGES, "retain_perturbed": (0, 400)}
    wrong += [name for name, rows in ranges.items() if known.get(name) != tuple(rows)]
    rejections = tuple(row["response"] for row in read_table(folder, "idontknow"))
    return wrong + ["idontknow"] * (tofu.load_rejections() != rejections)


def main(arguments: list[str]) -> int:
    """Write the archive and the licence, then verify."""
    if len(arguments) not in (1, 2):
        sys.stderr.write(__doc__ or "")
        return 2
    folder = Path(arguments[0])
    archive = Path(arguments[1]) if len(arguments) == 2 else ASSETS / tofu.ASSET
    packed = pack(folder)
    archive.write_bytes(packed)
    if archive.parent == ASSETS:
        shutil.copyfile(folder / "LICENSE", ASSETS / "LICENSE.tofu")
        if wrong := check(folder):
            sys.stderr.write(f"do not come back as they were: {', '.join(wrong)}\n")
            return 1
    sys.stdout.write(f"{archive}: {len(packed)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
