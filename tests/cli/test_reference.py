"""The generated pages of docs/reference are up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.cli.reference import pages, write

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", sorted(pages()))
def test_page_is_up_to_date(name: str) -> None:
    stored = (FOLDER / name).read_text(encoding="utf-8")

    assert stored == pages()[name], "run: python -m expunge.cli.reference docs/reference"


def test_pages_are_written(tmp_path: Path) -> None:
    write(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == set(pages())


def test_pages_hold_no_path_of_this_machine() -> None:
    assert all(str(Path.home()) not in text for text in pages().values())
