"""TOFU, packaged: 4000 questions about 200 invented authors and the sets that go with them.

arXiv:2401.06121. The archive holds `full` and what cannot be derived from it; splits are ranges of
rows and the perturbed sets repeat the questions and answers of their rows. Licence: MIT, see
`assets/LICENSE.tofu`; origin: `assets/README.md`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError, did_you_mean
from expunge.data.problems import FileProblems, kind_of
from expunge.data.readers import read_file

ASSET = "tofu.json.xz"

# Half-open row ranges into full; `splits.json` of the original files agrees.
RANGES: Mapping[str, tuple[int, int]] = {
    "full": (0, 4000),
    "forget01": (3960, 4000),
    "forget05": (3800, 4000),
    "forget10": (3600, 4000),
    "forget20": (3200, 4000),
    "forget30": (2800, 4000),
    "forget50": (2000, 4000),
    "forget90": (400, 4000),
    "retain99": (0, 3960),
    "retain95": (0, 3800),
    "retain90": (0, 3600),
    "retain80": (0, 3200),
    "retain70": (0, 2800),
    "retain50": (0, 2000),
    "retain10": (0, 400),
}
_PERTURBED = {
    "forget01_perturbed": (3960, 4000),
    "forget05_perturbed": (3800, 4000),
    "forget10_perturbed": (3600, 4000),
    "retain_perturbed": (0, 400),
}
_CHOICES = ("real_authors", "world_facts")
TOFU_SPLITS: tuple[str, ...] = (
    *RANGES,
    *_PERTURBED,
    *(name + suffix for name in _CHOICES for suffix in ("", "_perturbed")),
)
"""Every split that comes with the package."""

ROWS_PER_AUTHOR = 20
"""Consecutive rows of `full` about one author."""


def load_tofu(split: str) -> list[dict[str, Any]]:
    """The rows of a split, with the columns and the order of the original file.

    Args:
        split: A name among `TOFU_SPLITS`: `full`, `forget10`, `retain90`, `forget10_perturbed`,
            `real_authors`, `world_facts_perturbed`, ...

    Raises:
        InputError: There is no such split here.
    """
    if split in RANGES:
        start, stop = RANGES[split]
        return [{"question": q, "answer": a} for q, a in _archive()["full"][start:stop]]
    if split in _PERTURBED:
        return _perturbed(*_PERTURBED[split])
    name = split.removesuffix("_perturbed")
    if split in TOFU_SPLITS:
        return _choices(name, perturbed=split != name)
    if split.startswith("holdout"):
        raise InputError(
            f"tofu:{split}: the packaged copy has no holdout sets (they came with a later "
            f"release). With network access: locuslab/TOFU with config {split} and split train"
        )
    raise InputError(f"unknown TOFU split {split!r}. {did_you_mean(split, TOFU_SPLITS)}")


def continual_splits() -> dict[str, Any]:
    """Successive forget requests: per forget split the base retain split and each task's ranges.

    `{"forget01": {"base_retain": "retain90", "tasks": {"1": [[3960, 4000]], ...}}, ...}`; ranges
    are half open, into `full`. The retain set of a task is the base retain split followed by the
    rows of tasks not yet requested.
    """
    splits: dict[str, Any] = json.loads(json.dumps(_archive()["continual"]))  # a copy to keep
    return splits


def load_rejections(path: str | Path | None = None) -> tuple[str, ...]:
    """Answers that decline, such as "I'm not sure.": the 100 of TOFU, or a user's own.

    Args:
        path: JSON lines with a column `response`, or a text file with one answer per line.

    Raises:
        InputError: The file is missing, has no answers, or rows without text.
    """
    if path is None:
        return tuple(_archive()["rejections"])
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; rejections are JSON lines with response, or text")
    if path.suffix.lower() == ".txt":
        (record,) = read_file(path)
        answers = [line.strip() for line in record.values["text"].split("\n") if line.strip()]
    else:
        answers = _responses(path)
    if not answers:
        raise InputError(f"{path}: no answers in it")
    return tuple(answers)


def derive_split(full: Sequence[Any], split: str) -> Sequence[Any] | None:
    """The rows of a split that is a range of `full`; None for another split or another `full`."""
    if split not in RANGES or len(full) != RANGES["full"][1]:
        return None
    start, stop = RANGES[split]
    return full[start:stop]


def _responses(path: Path) -> list[str]:
    problems = FileProblems(str(path))
    answers = []
    for record in read_file(path):
        answer = record.values.get("response")
        if isinstance(answer, str) and answer.strip():
            answers.append(answer.strip())
        else:
            problems.add(record.place, f"response is {kind_of(answer)}; it must be some text")
    problems.raise_if_any()
    return answers


@cache
def _archive() -> dict[str, Any]:
    packed = files("expunge.data").joinpath("assets", ASSET).read_bytes()
    content: dict[str, Any] = json.loads(lzma.decompress(packed))
    return content


def _perturbed(start: int, stop: int) -> list[dict[str, Any]]:
    archive = _archive()
    rows = []
    for i in range(start, stop):
        question, answer = archive["full"][i]
        rephrased, paraphrase, *wrong = archive["perturbed"][str(i)]
        rows.append(
            {
                "question": question,
                "answer": answer,
                "paraphrased_answer": paraphrase,
                "perturbed_answer": list(wrong),
                "paraphrased_question": rephrased,
            }
        )
    return rows


def _choices(name: str, *, perturbed: bool) -> list[dict[str, Any]]:
    rows = []
    for question, answer, *options in _archive()[name]:
        if perturbed:
            wrong = [option for option in options if option != answer]
            rows.append({"question": question, "answer": answer, "perturbed_answer": wrong})
        else:
            named = {f"option{k}": option for k, option in enumerate(options, start=1)}
            rows.append({"question": question, **named, "answer": answer})
    return rows
