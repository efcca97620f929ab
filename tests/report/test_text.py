"""Escapes and number formats: what a hostile text becomes in every kind of document."""

from __future__ import annotations

import csv
import io

import pytest

from expunge.report.text import (
    count,
    csv_lines,
    csv_text,
    duration,
    latex_text,
    listing,
    markdown_text,
    number,
    one_line,
    probability,
    visible,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é, 你好, 👩‍🚀", "plain text, é, 你好, 👩‍🚀"),
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("nul\x00 bell\x07 del\x7f c1\x85", r"nul\x00 bell\x07 del\x7f c1\x85"),
        ("lone carriage\rreturn", r"lone carriage\x0dreturn"),
        ("\u202eright to left override\u202c", r"\u202eright to left override\u202c"),
        ("half \ud800 and \uffff", "half \ufffd and \ufffd"),
        ("\u200fmark\u00a0space", "\u200fmark\u00a0space"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    visible(text).encode()  # no half of a surrogate pair is left


def test_one_line_cuts_at_the_limit() -> None:
    assert one_line(" two\n lines ") == "two lines"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a | b", r"a \| b"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("*bold* _it_ `code` $x$ ~~s~~", r"\*bold\* \_it\_ \`code\` \$x\$ \~\~s\~\~"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("0.5 [0.4, 0.6]", "0.5 [0.4, 0.6]"),
        ("# heading", r"\# heading"),
        ("1. item", r"1\. item"),
        ("- item", r"\- item"),
        ("=====", r"\====="),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_text_stands_for_itself(text: str, escaped: str) -> None:
    assert markdown_text(text) == escaped


def test_latex_specials_are_all_escaped() -> None:
    escaped = latex_text('\\input{x} 50% & #1 $a_b^c$ ~ <|> "')
    assert escaped == (
        r"\textbackslash{}input\{x\} 50\% \& \#1 \$a\_b\textasciicircum{}c\$ "
        r"\textasciitilde{} \textless{}\textbar{}\textgreater{} \textquotedbl{}"
    )


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@sum", "\t=1", "  =1", "＝1", "\n=1"])
def test_no_text_is_a_formula_in_a_spreadsheet(start: str) -> None:
    assert csv_text(start).startswith("'")
    assert csv_text("harmless = text") == "harmless = text"


def test_csv_keeps_numbers_and_survives_a_round_trip() -> None:
    rows: list[list[str | float | None]] = [["a,b", 'q"q', -0.5, None], ["two\nlines", "x", 1, 2]]
    back = list(csv.reader(io.StringIO(csv_lines(rows))))
    assert back == [["a,b", 'q"q', "-0.5", ""], ["two\nlines", "x", "1", "2"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.0, "0.000"), (0.12345, "0.123"), (-1.5, "-1.500"),
     (1.9e-21, "1.9e-21"), (2e6, "2.0e6")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "log10", "text"),
    [(0.4046, None, "0.405"), (1.93e-21, -20.7, "1.9e-21"), (0.0, -400.2, "1e-401"),
     (0.0, None, "below 1e-300"), (None, None, "–")],
)  # fmt: skip
def test_p_values_say_something_where_they_underflow(
    value: float | None, log10: float | None, text: str
) -> None:
    assert probability(value, log10) == text


def test_phrases() -> None:
    assert [duration(s) for s in (0.42, 48, 365, 7800)] == [
        "0.4 s", "48 s", "6 min 05 s", "2 h 10 min"
    ]  # fmt: skip
    assert [count(1, "step"), count(2000, "step")] == ["1 step", "2,000 steps"]
    assert [listing(["a"]), listing(["a", "b", "c"])] == ["a", "a, b and c"]
