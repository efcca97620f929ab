"""Text on its way into a document: unprintable characters made visible, numbers formatted, escapes.

Everything here treats its input as hostile: model output and data may hold markup, control
characters, formulas and half characters.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

DASH: Final = "–"  # what stands where there is no number

# Embeddings, overrides and isolates: they can show a text in another order than it has.
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_FORMULA_START = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_|~$])")
_MARKDOWN_LINK = re.compile(r"\]\s*[\[(:]")
# What opens a heading or a list, or underlines a heading, where it starts a line.
_MARKDOWN_BLOCK = re.compile(r"^(#+(?=\s|$)|[-+](?=\s|$)|[-=]+$|\d+(?=[.)](?:\s|$)))")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    DASH: "--",
    "↑": r"\ensuremath{\uparrow}",
    "↓": r"\ensuremath{\downarrow}",
    "→": r"\ensuremath{\rightarrow}",
    "×": r"\ensuremath{\times}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
}


def visible(text: str) -> str:
    r"""`text` with every character that does not show, or that a file cannot hold, written out.

    Control characters become `\x00`, the controls that turn text around `\u202e`, halves of
    surrogate pairs and non-characters U+FFFD. Tabs, line feeds, joiners and direction marks stay.
    """
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character.isprintable():
        return character
    if code < 0xA0:
        return f"\\x{code:02x}"
    if character in _TURNING:
        return f"\\u{code:04x}"
    surrogate = 0xD800 <= code <= 0xDFFF  # cannot be encoded
    non_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return "\N{REPLACEMENT CHARACTER}" if surrogate or non_character else character


def one_line(text: str, limit: int | None = None) -> str:
    """`text` on one line, cut with an ellipsis when longer than `limit` characters."""
    text = " ".join(visible(text).split())
    if limit is not None and len(text) > limit:
        return text[: limit - 1].rstrip() + "…"
    return text


def markdown_text(text: str) -> str:
    """`text` that stands in Markdown, and in a cell of a Markdown table, for nothing but itself."""
    escaped = _MARKDOWN_SPECIAL.sub(r"\\\1", one_line(text))
    if _MARKDOWN_LINK.search(escaped):  # brackets mean nothing else, and intervals have them
        escaped = escaped.replace("[", "\\[").replace("]", "\\]")
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN_BLOCK.sub(_escape_start, escaped)


def _escape_start(match: re.Match[str]) -> str:
    start = match[0]
    return f"{start}\\" if start.isdigit() else f"\\{start}"


def latex_text(text: str) -> str:
    """`text` for LaTeX with UTF-8 input: its specials and the arrows of our tables made safe."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def csv_text(text: str) -> str:
    """`text` that no spreadsheet takes for a formula: an apostrophe goes before what starts one."""
    text = visible(text)
    dangerous = text.startswith(_FORMULA_START) or text.lstrip().startswith(_FORMULA_START)
    return "'" + text if dangerous else text


def csv_lines(rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """Rows as CSV: text defused, numbers as they are, None as an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([csv_text(cell) if isinstance(cell, str) else cell for cell in row])
    return buffer.getvalue()


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` decimals; very small and very large ones in scientific notation."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or 10**-digits <= abs(value) < 1e5:
        return f"{value:.{digits}f}"
    return _scientific(value)


def probability(value: float | None, log10: float | None = None) -> str:
    """A p-value: three decimals, scientific below 0.001, by its logarithm where it underflows."""
    if value is not None and value > 0:
        return f"{value:.3f}" if value >= 1e-3 else _scientific(value)
    if log10 is not None and math.isfinite(log10):
        return f"1e{math.floor(log10)}" if log10 < -300 else _scientific(10**log10)
    return DASH if value is None else "below 1e-300"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "0.4 s", "48 s", "6 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gibibytes(count: int) -> str:
    """A number of bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"


def count(num: int, noun: str, plural: str | None = None) -> str:
    """Number and noun: "1 step", "40 steps"."""
    return f"{num:,} {noun if num == 1 else plural or noun + 's'}"


def listing(words: Sequence[str], last: str = "and") -> str:
    """Words as an English list: "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
