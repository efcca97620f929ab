"""Draw the committed results into docs/performance.md; the prose outside of the marks stays.

python perf/make_docs.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from common import RESULTS, load_result
from drawing import Result, own_tables, plain_tables
from step_tables import step_tables

from expunge.core.files import atomic_write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"

BEGIN, END = "<!-- result: {name} -->", "<!-- end of result: {name} -->"


def write_docs(page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Put every result of a folder into a page and return the page."""
    found = {path.stem: load_result(path) for path in sorted(results.glob("*.json"))}
    text = page.read_text(encoding="utf-8")
    atomic_write_text(page, with_results(text, found))
    return page


def with_results(text: str, results: Mapping[str, Result]) -> str:
    """The page with each result between its marks; one without marks goes to the end.

    Raises:
        ValueError: A mark has no end, or nothing stands for a result that the page names.
    """
    for name in re.findall(r"<!-- result: (\S+) -->", text):
        if END.format(name=name) not in text:
            raise ValueError(f"the page has no line {END.format(name=name)!r}")
        if name not in results:
            raise ValueError(
                f"the page has a place for {name!r} and there is no such result; "
                f"there are: {', '.join(results) or 'none'}"
            )
    for name, result in results.items():
        begin, end = BEGIN.format(name=name), END.format(name=name)
        drawn = f"{begin}\n\n{draw(result)}\n\n{end}"
        if begin in text:
            head, _, rest = text.partition(begin)
            text = head + drawn + rest.partition(end)[2]
        else:
            text = f"{text.rstrip()}\n\n## {name}\n\n{drawn}\n"
    return text


def draw(result: Result) -> str:
    """Tables of a result, then where its numbers come from."""
    if result.get("kind") == "steps":
        parts = step_tables(result)
    else:
        parts = own_tables(result) if "tables" in result else plain_tables(result)
    return "\n\n".join([*parts, origin(result)])


def origin(result: Result) -> str:
    """Class of machine, versions and command."""
    machine, versions = result["machine"], result["versions"]
    memory = machine.get("memory_gib")
    parts = [
        machine["processor"],
        f"{machine['cores']} cores",
        f"{machine['threads']} threads",
        *([] if memory is None else [f"{memory:g} GiB"]),
        *machine.get("accelerators", []),
        machine["system"],
    ]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    place = f"{', '.join(parts)}; {libraries}"
    return f"Measured on {result['date']} ({place}) with\n\n    {result['command']}"


if __name__ == "__main__":
    sys.stdout.write(f"{write_docs()}\n")
