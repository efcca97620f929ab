"""Pack the golden inputs and the golden loss files.

    python scripts/pack_golden.py FOLDER

FOLDER holds `fixtures.json`, `losses_*.json` and `egup_uipe_worked_examples.json` as they were made
with the authors' code. The inputs go into the package, where the page of differences and
`expunge verify golden` read them; the files with the expected numbers go to tests/golden, complete
and with their headers. The same files give the same bytes.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

from expunge.run.golden_inputs import ASSET

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "expunge" / "run" / "assets"
EXPECTED = ROOT / "tests" / "golden"
WORKED = "egup_uipe_worked_examples"


def pack(content: Any) -> bytes:
    """JSON without spaces, compressed."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def inputs(folder: Path) -> dict[str, Any]:
    """What the losses are run on: stored logits, and the hidden states of the worked example."""
    fixtures = json.loads((folder / "fixtures.json").read_text(encoding="utf-8"))
    worked = json.loads((folder / f"{WORKED}.json").read_text(encoding="utf-8"))
    kept = {"header": worked["header"], "inputs": worked["inputs"]}
    return {**fixtures, "worked": {**kept, "narrow_band": worked["narrow_band"]["sim"]}}


def main(arguments: list[str]) -> int:
    """Write the archives and say how large they are."""
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    folder = Path(arguments[0])
    archives = {ASSETS / ASSET: pack(inputs(folder))}
    for path in (*sorted(folder.glob("losses_*.json")), folder / f"{WORKED}.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        archives[EXPECTED / f"{path.name}.xz"] = pack(content)
    for path, packed in archives.items():
        path.write_bytes(packed)
        sys.stdout.write(f"{path.relative_to(ROOT)}: {len(packed)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
