"""Comparison tables: who has a row, what stands in it, and in which format."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fabricated_run import HOSTILE, rewrite

from expunge.report import (
    Table,
    compare,
    console_rows,
    grid,
    load_report,
    table_of,
    to_csv,
    to_latex,
    to_markdown,
    write_comparison,
)
from expunge.report.tables import HEADLINES

Make = Callable[..., Path]


@pytest.fixture
def pair(make_run: Make) -> list[Path]:
    return [make_run("a"), make_run("b", method="NPO+GD", shift=0.3, proxies=False)]


@pytest.fixture
def hostile_table(hostile_run: Path) -> Table:
    return table_of(load_report(hostile_run))


def test_shared_models_have_one_row_and_unlearned_ones_their_own(pair: list[Path]) -> None:
    table = compare(pair)
    assert [row.label for row in table.rows] == [
        "Base model", "Target model", "EGUP(NPO+GD, k=1, mu=0.001) (a)", "NPO+GD (b)",
        "Retain model",
    ]  # fmt: skip
    assert [row.run for row in table.rows] == ["a, b", "a, b", "a", "b", "a, b"]
    assert table.notes == ()


def test_equal_results_of_two_runs_stay_two_rows(make_run: Make) -> None:
    table = compare([make_run("a"), make_run("b")])
    assert [row.run for row in table.rows if row.role == "unlearned"] == ["a", "b"]


def test_a_model_with_other_scores_is_another_model(pair: list[Path]) -> None:
    def change(results: dict) -> None:
        results["scores"]["model_utility"]["value"] = 0.5

    rewrite(pair[1] / "evaluation/retain/results.json", change)
    labels = [row.label for row in compare(pair).rows]
    assert labels[-2:] == ["Retain model of a", "Retain model of b"]


def test_runs_that_cannot_be_compared_are_called_out(pair: list[Path]) -> None:
    def other_data(manifest: dict) -> None:
        manifest["data"]["forget"] |= {"num_rows": 300, "fingerprint": "other"}

    def other_benchmark(results: dict) -> None:
        results["benchmark_version"] = 2

    def other_n(results: dict) -> None:
        results["forget_quality"]["n"] = 300

    rewrite(pair[1] / "run.json", other_data)
    rewrite(pair[1] / "evaluation/base/results.json", other_benchmark)
    rewrite(pair[1] / "evaluation/unlearned/results.json", other_n)
    notes = compare(pair).notes
    assert any("not evaluated with the same forget set" in note for note in notes)
    assert any("not evaluated with the same benchmark" in note for note in notes)
    assert any("different n (40 and 300)" in note and "compare D" in note for note in notes)


def test_distance_stands_beside_the_p_value(make_run: Make) -> None:
    table = table_of(load_report(make_run()))
    keys = [column.key for column in table.columns]
    assert keys[:3] == ["model_utility", "forget_quality", "forget_quality_distance"]
    target = next(row for row in table.rows if row.role == "target")
    assert target.cells["forget_quality_distance"].score.n == 40
    assert re.fullmatch(r"\d\.\de-\d+", target.cells["forget_quality"].text)


def test_an_absent_value_is_a_dash_with_its_reason(make_run: Make) -> None:
    plain = grid(table_of(load_report(make_run(roles=("target", "unlearned")))))
    column = plain.headers.index("Forget quality, p-value ↑ n = 0, 0 unscored")
    assert {row[column] for row in plain.rows} == {"– (1)"}
    assert plain.notes[0] == "(1) there is no retain model"


def test_what_no_model_has_a_value_for_is_left_out_but_stays_in_the_csv(make_run: Make) -> None:
    folder = make_run()
    for role in ("base", "target", "unlearned", "retain"):

        def drop(results: dict) -> None:
            missing = {"value": None, "low": None, "high": None, "n": 0, "unscored": 0}
            reason = {"reason": "the real_authors probe was not run"}
            results["scores"]["real_authors/rouge_l_recall"] |= missing | reason
            results["scores"]["model_utility"] |= missing | {"reason": "it needs real_authors"}
            results["scores"]["privleak"] = missing | {"reason": "no holdout set"}

        rewrite(folder / f"evaluation/{role}/results.json", drop)
    table = table_of(load_report(folder))
    measured = table.measured()
    gone = {c.key for c in table.columns} - {c.key for c in measured.columns}
    assert gone == {"real_authors/rouge_l_recall", "privleak"}  # utility stays, with its reason
    assert measured.notes == ()
    assert "real_authors/rouge_l_recall" in to_csv(table)
    assert "privleak" not in {column.key for column in table.headlines().columns}


def attacked(folder: Path, key: str, value: float, low: float, high: float, better: str) -> None:
    def add(results: dict) -> None:
        results["scores"][key] = {
            "value": value, "low": low, "high": high, "n": 80, "better": better,
            "two_sided": abs(value), "unit": "percent" if key == "privleak" else "AUC",
        }  # fmt: skip

    rewrite(folder / "evaluation/unlearned/results.json", add)


@pytest.mark.parametrize(
    ("key", "span", "remark"),
    [
        ("mia_loss", (0.8, 0.7, 0.9), "leaks: still familiar"),
        ("mia_loss", (0.2, 0.1, 0.3), "leaks: too unfamiliar"),
        ("mia_loss", (0.55, 0.45, 0.6), "no leak detected"),
        ("privleak", (-50.0, -80.0, -20.0), "leaks: still familiar"),
        ("privleak", (50.0, 20.0, 80.0), "leaks: too unfamiliar"),
        ("privleak", (5.0, -20.0, 30.0), "no leak detected"),
    ],
)
def test_both_sides_of_an_attack_leak(
    make_run: Make, key: str, span: tuple[float, float, float], remark: str
) -> None:
    folder = make_run()
    better = "closer_to_half" if key == "mia_loss" else "closer_to_zero"
    attacked(folder, key, *span, better)
    rows = grid(table_of(load_report(folder)), rows="measures").rows
    row = next(row for row in rows if row[0] in ("PrivLeak", "Attack by loss"))
    assert row[1].endswith("both sides leak")
    assert row[6].endswith(remark)
    page = write_comparison([folder, make_run("other")], folder).read_text(encoding="utf-8")
    assert remark in page


def test_the_distance_has_its_interval(make_run: Make) -> None:
    folder = make_run()
    rewrite(
        folder / "evaluation/unlearned/results.json",
        lambda results: results["forget_quality"].update(low=0.0, high=0.45),
    )
    rows = {row[0]: row for row in grid(table_of(load_report(folder)), rows="measures").rows}
    assert rows["Forget quality, KS distance D"][6].endswith("[0.000, 0.450]")


def test_n_stands_in_the_header_or_where_it_differs_in_the_cells(make_run: Make) -> None:
    folder = make_run()
    plain = grid(table_of(load_report(folder)))
    assert "ROUGE-L recall, real authors ↑ n = 29, 1 unscored" in plain.headers

    def fewer(results: dict) -> None:
        results["scores"]["model_utility"] |= {"n": 80, "unscored": 10}

    rewrite(folder / "evaluation/base/results.json", fewer)
    plain = grid(table_of(load_report(folder)))
    column = plain.headers.index("Model utility ↑")
    assert plain.rows[0][column] == "0.400 [0.340, 0.460] (n = 80, 10 unscored)"
    by_measure = grid(table_of(load_report(folder)), rows="measures")
    assert by_measure.rows[0][:4] == ("Model utility", "↑ higher is better", "see cells",
                                      "see cells")  # fmt: skip


def test_p_values_are_not_called_better_when_higher(make_run: Make) -> None:
    rows = grid(table_of(load_report(make_run())), rows="measures").rows
    directions = {row[0]: row[1] for row in rows}
    assert directions["Forget quality, p-value"] == "↑ above 0.05: no difference found"
    assert directions["ROUGE-L recall, forget set"] == "→ closer to the retain model is better"


def test_csv_has_every_number_with_n_interval_and_origin(make_run: Make) -> None:
    table = table_of(load_report(make_run()))
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(lines) == len(table.rows) * len(table.columns)
    line = next(
        each for each in lines if (each["role"], each["measure"]) == ("target", "model_utility")
    )
    numbers = [float(line[name]) for name in ("value", "low", "high", "n", "unscored")]
    assert numbers == pytest.approx([0.55, 0.49, 0.61, 90, 0])
    assert line["better"] == "higher"
    absent = [each for each in lines if not each["value"]]
    assert {each["reason"] for each in absent} == {"it is the retain model"}


def test_markdown_cells_cannot_be_broken_out_of(hostile_table: Table) -> None:
    text = to_markdown(hostile_table, rows="measures")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(bars) == 1  # every line has as many cells as the header
    assert "<script>" not in text


def test_latex_compiles_in_principle(hostile_table: Table) -> None:
    """Braces balance, and no special character is left bare inside the rows."""
    text = to_latex(hostile_table)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert not re.search(r"(?<!\\)[%#$_]", body)
    assert "↑" not in text


def test_no_csv_cell_is_a_formula(make_run: Make) -> None:
    folder = make_run("formulas", method=HOSTILE["formula"])
    rows = csv.reader(io.StringIO(to_csv(table_of(load_report(folder)))))
    assert not [cell for row in rows for cell in row if cell[:1] in "=+-@" and cell]


def test_console_rows_are_the_headlines_with_the_interval_below(make_run: Make) -> None:
    table = table_of(load_report(make_run()))
    plain = console_rows(table)
    assert len(plain.rows) == len(HEADLINES)
    assert plain.rows[0][4] == "0.400\n[0.340, 0.460]"
    assert {len(row) for row in plain.rows} == {len(plain.headers)}


def test_comparison_files(pair: list[Path], tmp_path: Path) -> None:
    page = write_comparison(pair, tmp_path / "compared")
    assert sorted(path.name for path in page.parent.iterdir()) == [
        *(f"comparison.{kind}" for kind in ("csv", "html", "md", "tex")),
        "comparison_differences.csv",
    ]
    text = page.read_text(encoding="utf-8")
    assert "NPO+GD (b)" in text
    assert "Points: 1 Base model; 2 Target model" in text  # too many points for names
