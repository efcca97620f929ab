"""Gradients and the update of related facts in the report of arms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fabricated_run import HOSTILE
from fabricated_scenario import ArmsBuilder

from expunge.report.relations import KINDS, read_relations
from expunge.report.scenario import write_scenario_report


def score(value: float | None, **more: object) -> dict[str, object]:
    ends = {} if value is None else {"low": value - 0.1, "high": value + 0.1}
    return {"value": value, "n": 4, "better": "none", **ends, **more}


def write(folder: Path, arms: dict[str, object] | str) -> Path:
    text = arms if isinstance(arms, str) else json.dumps(arms)
    (folder / "relations.json").write_text(text, encoding="utf-8")
    return folder


def arm(related: float) -> dict[str, object]:
    cosines = {"related": score(related), "unrelated": score(0.25), "difference": score(0.5)}
    shares = {"target": score(0.75), "related": score(None, reason="no <b>related</b> rows", n=0)}
    return {
        "target": "ab12",
        "facts": 4,
        "gradient_cosine": cosines,
        "projection_share": shares,
        "projection_cosine": {"related": score(-0.125)},
    }


def test_every_value_is_in_the_table_with_its_unit_and_meaning(tmp_path: Path) -> None:
    folder = write(ArmsBuilder(folder=tmp_path / "arms").build(), {"theta_1": arm(0.625)})
    rows = read_relations(folder).rows
    assert rows[0] == ("theta_1", "Gradient cosine", "related", "0.625", "[0.525, 0.725]", "4")
    assert [row[2] for row in rows] == [
        "related",
        "unrelated",
        "related minus unrelated",
        "to forget",
        "related",
        "related",
    ]
    assert rows[4][3:] == ("–", "no <b>related</b> rows", "0")

    page = write_scenario_report(folder).read_text(encoding="utf-8")
    assert "Gradients and the update" in page
    assert "no &lt;b&gt;related&lt;/b&gt; rows" in page
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"<strong>{kind.label}</strong>: " in page
        assert kind.label in markdown
        assert "no unit" in kind.meaning  # a number without its unit and range says nothing
    assert r"| theta\_1 | Gradient cosine | related | 0.625 | [0.525, 0.725] | 4 |" in markdown


def test_without_the_file_there_is_no_section(tmp_path: Path) -> None:
    folder = ArmsBuilder(folder=tmp_path / "arms").build()
    page = write_scenario_report(folder).read_text(encoding="utf-8")
    assert "Gradients and the update" not in page
    assert "Gradients and the update" not in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["{", "[]", '{"theta_1": 3}', '{"theta_1": {"target": "x"}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    folder = write(ArmsBuilder(folder=tmp_path / "arms").build(), content)
    page = write_scenario_report(folder).read_text(encoding="utf-8")
    assert "No table: relations.json " in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    arms = {text[:200]: arm(0.5) for text in HOSTILE.values()}
    folder = write(ArmsBuilder(folder=tmp_path / "arms").build(), arms)
    page = write_scenario_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
