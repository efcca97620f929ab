"""Files to raw records: JSON lines, JSON, CSV, Parquet, plain text. No cell is interpreted here."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError
from expunge.data.problems import FileProblems, kind_of, short
from expunge.data.rows import Record


def read_file(path: Path) -> list[Record]:
    """Every raw row of a file, with its place for messages.

    A `.txt` file is one row with the column `text`, exactly as it stands.

    Raises:
        InputError: Suffix unknown, file empty, not UTF-8, or broken; the message says where.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        came = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        raise InputError(f"{path}: has {came}; readable are {', '.join(SUFFIXES)}")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        return reader(path)
    except PermissionError as error:
        raise InputError(f"{path}: not allowed to read it") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: It is something else; the message gives the byte offset and the line.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: is UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The exception counts from behind a byte order mark that utf-8-sig has taken off.
        skipped = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        offset = error.start + skipped
        line = data.count(b"\n", 0, offset) + 1
        raise InputError(
            f"{path} line {line}: not UTF-8: byte 0x{data[offset]:02x} at offset {offset}. Save "
            f"the file as UTF-8 (for example iconv -f latin1 -t utf-8, if it is Latin-1)"
        ) from error


def _read_jsonl(path: Path) -> list[Record]:
    return _json_lines(read_text(path), FileProblems(str(path)))


def _json_lines(text: str, problems: FileProblems) -> list[Record]:
    records = []
    # Not splitlines(): a JSON string may hold U+2028 and its kin, which are no line ends here.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            last = number == len(lines) or not any(rest.strip() for rest in lines[number:])
            problems.add(place, _json_message(line, error, last=last))
            continue
        if isinstance(value, dict):
            records.append(Record(place, value))
        else:
            problems.add(place, f"holds {kind_of(value)}; a JSON object is needed on every line")
    problems.raise_if_any()
    return records


def _json_message(line: str, error: json.JSONDecodeError, *, last: bool) -> str:
    # An error that opens at the end, or an open string, means that the rest is missing.
    torn = error.pos >= len(line.rstrip()) or error.msg.startswith("Unterminated string")
    if torn:
        end = "; the file seems to be cut off here" if last else ""
        return f"ends in the middle of a value{end}. It ends with {short(line.rstrip()[-40:])}"
    near = short(line[max(0, error.pos - 20) : error.pos + 20])
    return f"not valid JSON at column {error.pos + 1} ({error.msg}), near {near}"


def _read_json(path: Path) -> list[Record]:
    """An array of objects, or JSON lines under another name."""
    text = read_text(path)
    problems = FileProblems(str(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("["):
            return _json_lines(text, problems)
        start = text.rfind("\n", 0, error.pos) + 1
        line = text[start:].split("\n", 1)[0]
        inner = json.JSONDecodeError(error.msg, line, error.pos - start)
        last = not text[start + len(line) :].strip()
        problems.add(f"line {error.lineno}", _json_message(line, inner, last=last))
        raise problems.error() from error
    if isinstance(value, dict) and "\n" not in text.strip():
        value = [value]  # JSON lines with a single line
    if not isinstance(value, list):
        problems.add("", f"holds {kind_of(value)}; an array of objects (or JSON lines) is needed")
        raise problems.error()
    return _objects(value, problems)


def _objects(values: list[Any], problems: FileProblems) -> list[Record]:
    records = []
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            records.append(Record(f"row {number}", value))
        else:
            problems.add(f"row {number}", f"is {kind_of(value)}; each row must be an object")
    problems.raise_if_any()
    return records


def _read_csv(path: Path) -> list[Record]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    problems = FileProblems(str(path))
    stream = io.StringIO(read_text(path), newline="")
    records: list[Record] = []
    number = 0
    # The limit of 128 KiB per cell is process-wide and too small for documents.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        lines = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(lines, [])
        _check_header(header, problems)
        number = lines.line_num
        for cells in lines:
            place, number = f"line {number + 1}", lines.line_num
            if not cells:
                continue
            if len(cells) == len(header):
                records.append(Record(place, dict(zip(header, cells, strict=True))))
            else:
                problems.add(place, _cells_message(header, cells))
    except csv.Error as error:
        problems.add(f"line {number + 1}", f"not valid CSV ({error}); is a quotation mark missing?")
    finally:
        csv.field_size_limit(limit)
    problems.raise_if_any()
    return records


def _cells_message(header: list[str], cells: list[str]) -> str:
    return (
        f"has {len(cells)} cells, the header has {len(header)} ({', '.join(header)}); put cells "
        f"that contain a comma or a line break in quotation marks"
    )


def _check_header(header: list[str], problems: FileProblems) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        problems.add("line 1", f"column names appear twice: {', '.join(twice)}")


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
    return [Record(f"row {number}", value) for number, value in enumerate(values, start=1)]


def _read_txt(path: Path) -> list[Record]:
    return [Record("", {"text": read_text(path)})]


_READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}

SUFFIXES = tuple(_READERS)
"""Suffixes of files that can be read."""


def data_files(folder: Path) -> Iterator[Path]:
    """The readable files directly in a folder, by name."""
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES)
