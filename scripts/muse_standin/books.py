"""Novels as chapters, from the R package janeaustenr or from plain text."""

from __future__ import annotations

import bz2
import gzip
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError

PACKAGE = "r-cran-janeaustenr"
LIBRARY = Path("usr/lib/R/site-library/janeaustenr")

# A heading alone in its line; the numbers restart in every volume.
_CHAPTER = re.compile(r"^[ \t]*chapter\s+(?:[ivxlc]+|\d+)\.?[ \t]*$", re.I | re.M)
_OTHER_HEADING = re.compile(
    r"^[ \t]*(?:volume|vol\.|book|part)\s+(?:[ivxlc]+|\d+|the\s+\w+)\.?[ \t]*$", re.I | re.M
)
# In capitals only: a line of running text may begin with these words.
_END = re.compile(r"^[ \t]*(?:THE END|The End|FINIS|Finis|END OF [A-Z .]+)\.?[ \t]*$", re.M)
_GUTENBERG = re.compile(r"\*\*\* ?START OF.*?\*\*\*(?P<text>.*?)(?:\*\*\* ?END OF|\Z)", re.I | re.S)


def chapters(text: str) -> list[str]:
    """The chapters of a novel: paragraphs without line breaks, separated by blank lines.

    Headings are left out, and so is everything before the first chapter.

    Raises:
        InputError: There is no line such as "Chapter 1" or "CHAPTER IV".
    """
    framed = _GUTENBERG.search(text)
    parts = _CHAPTER.split(framed["text"] if framed else text)[1:]
    if not parts:
        raise InputError('no chapters found; each must begin with a line such as "Chapter 1"')
    return [_paragraphs(_END.split(_OTHER_HEADING.sub("", part))[0]) for part in parts]


def _paragraphs(text: str) -> str:
    blocks = (" ".join(block.split()) for block in re.split(r"\n[ \t]*\n", text))
    return "\n\n".join(block for block in blocks if block)


def read_texts(given: Sequence[str]) -> dict[str, str]:
    """Texts by book, from arguments such as "persuasion=FILE".

    Raises:
        InputError: An argument has another form, or there is no such file.
    """
    found = {}
    for item in given:
        book, mark, file = item.partition("=")
        if not mark or not Path(file).is_file():
            raise InputError(f"--text {item}: write BOOK=FILE with a text file that exists")
        found[book] = Path(file).read_text(encoding="utf-8-sig")
    return found


def read_package(package: Path | None) -> dict[str, str]:
    """Texts by book from the Debian package, which is downloaded if none is given.

    Raises:
        InputError: It cannot be downloaded or unpacked.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if package is None:
            _run(["apt-get", "download", PACKAGE], folder)
            package = next(folder.glob("*.deb"))
        _run(["dpkg-deb", "-x", str(package.resolve()), "unpacked"], folder)
        return read_library(folder / "unpacked" / LIBRARY)


def _run(command: list[str], folder: Path) -> None:
    hint = f"Unpack {PACKAGE} elsewhere and give --library, or texts with --text"
    if shutil.which(command[0]) is None:
        raise InputError(f"there is no {command[0]} here. {hint}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise InputError(f"{' '.join(command[:2])} failed: {reason}. {hint}")


def read_library(folder: Path) -> dict[str, str]:
    """Texts by book from an installed R package that holds each as lines of text.

    Raises:
        InputError: The folder has no such data.
    """
    data = next((at for at in (folder, folder / LIBRARY) if (at / "data").is_dir()), None)
    if data is None or not (data / "data" / "Rdata.rdx").is_file():
        raise InputError(f"{folder}: no R package with data/Rdata.rdx and data/Rdata.rdb in it")
    index = _read_r(gzip.decompress((data / "data" / "Rdata.rdx").read_bytes()))
    stored = (data / "data" / "Rdata.rdb").read_bytes()
    found = {}
    for book, (start, size) in index["variables"].items():
        lines = _read_r(_inflate(stored[start : start + size], int(index["compressed"][0])))
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            found[book] = "\n".join(lines)
    return found


def _inflate(chunk: bytes, how: int) -> bytes:
    """An object of a lazy-load database: four bytes of length, then zlib, or a letter and bzip2."""
    if how == 1:
        return zlib.decompress(chunk[4:])
    if how == 2 and chunk[4:5] == b"2":
        return bz2.decompress(chunk[5:])
    raise InputError("the R package is compressed in a way that is not read here; use --text")


def _read_r(data: bytes) -> Any:
    """The value of a serialised R object made of lists, text and numbers; named lists as dicts."""
    return _RReader(data).read()


class _RReader:
    """R's binary serialisation, version 2 and 3 (R Internals, section 1.8), as far as data need."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 2
        self.symbols: list[Any] = []

    def read(self) -> Any:
        if self.data[:2] != b"X\n":
            raise InputError("not a binary R object")
        version = self._int()
        self._int()
        self._int()
        if version == 3:
            self._bytes(self._int())  # the encoding
        return self._item()

    def _bytes(self, size: int) -> bytes:
        self.place += size
        return self.data[self.place - size : self.place]

    def _int(self) -> int:
        return int(struct.unpack(">i", self._bytes(4))[0])

    def _item(self) -> Any:
        flags = self._int()
        kind = flags & 0xFF
        if kind == 0xFE:  # NULL
            return None
        if kind == 0xFF:  # a symbol seen before
            return self.symbols[(flags >> 8) - 1]
        if kind == 1:  # a symbol
            self.symbols.append(self._item())
            return self.symbols[-1]
        if kind == 2:  # a pair list: attributes
            return self._pairs(flags)
        if kind == 9:  # one text; -1 is NA
            size = self._int()
            return None if size < 0 else self._bytes(size).decode("utf-8", errors="replace")
        return self._vector(kind, flags)

    def _vector(self, kind: int, flags: int) -> Any:
        size = self._int()
        if kind in (10, 13):
            values: list[Any] = list(struct.unpack(f">{size}i", self._bytes(4 * size)))
        elif kind == 14:
            values = list(struct.unpack(f">{size}d", self._bytes(8 * size)))
        elif kind in (16, 19):
            values = [self._item() for _ in range(size)]
        else:
            raise InputError(f"the R object has a part of kind {kind}, which is not read here")
        attributes: Mapping[str, Any] = self._item() if flags & 0x200 else {}
        names = attributes.get("names")
        return values if names is None else dict(zip(names, values, strict=True))

    def _pairs(self, flags: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while flags & 0xFF == 2:
            if flags & 0x200:
                self._item()  # attributes of attributes
            name = self._item() if flags & 0x400 else ""
            found[name] = self._item()
            flags = self._int()
        return found
