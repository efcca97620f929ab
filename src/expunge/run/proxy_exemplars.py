"""Exemplars of the proxy prompt: chosen by seed, answered by the base model, kept in a file."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError
from expunge.core.files import atomic_write_json
from expunge.core.fingerprint import fingerprint
from expunge.data.proxies import ProxySettings
from expunge.data.proxy_parse import clean_answer, shorten, whole_sentences
from expunge.data.proxy_prompt import (
    Exemplar,
    asked,
    exemplar_candidates,
    perturbed_answers,
    zero_shot_prompt,
)
from expunge.data.proxy_rules import reject_reason
from expunge.data.rows import Row, RowSet
from expunge.run.proxy_generator import Generator

VERSION = 1  # of the prompts and rules that make exemplars


def make_exemplars(
    rows: RowSet,
    forget: RowSet,
    generator: Generator,
    path: Path,
    *,
    model_name: str,
    settings: ProxySettings,
    rejections: Sequence[str] = (),
) -> list[Exemplar]:
    """The exemplars kept in `path`, or new ones, which are written there.

    Args:
        rows: Rows to choose from; those whose question is in the forget set are left out, and those
            with answers of about the length of the forget set's come first.
        forget: The forget set.
        generator: Answers the questions without examples, for `exemplar_source="base_model"`.
        path: Where they are kept. What a person edits there is used as long as data, model and
            settings stay the same.
        model_name: Name of the model behind `generator`.
        settings: Their number, source and seed.
        rejections: Texts that count as refusals.

    Raises:
        InputError: The file is broken, or the rows or the model yield no exemplar.
    """
    chosen_by = [settings.exemplars, settings.seed, settings.exemplar_source, model_name]
    key = fingerprint([VERSION, chosen_by, rows.fingerprint, forget.fingerprint])
    if path.is_file() and (found := _read_exemplars(path, key)):
        return found
    candidates = exemplar_candidates(rows, forget, seed=settings.seed)
    middle = statistics.median(len(row.answer) for row in forget)
    # Not the longest ones: every prompt carries the exemplars, and decoding gets slower with them.
    candidates.sort(key=lambda row: not 0.4 * middle <= len(row.answer) <= 1.1 * middle)
    if settings.exemplar_source == "perturbed":
        made = _from_perturbed(candidates, rows, settings)
    else:
        made = _from_base_model(candidates, generator, settings, rejections)
    if not made:
        raise InputError(
            f"{model_name} gave no usable answer to the first questions of {rows.origin}, so there "
            f"are no exemplars; use another proxies.model or endpoint, exemplars with a "
            f"perturbed_answer (proxies.exemplar_source=perturbed), or exemplars of your own "
            f"(proxies.exemplar_file)"
        )
    content: dict[str, Any] = {
        "key": key,
        "source": settings.exemplar_source,
        "model": model_name,
        "exemplars": [asdict(item) for item in made],
    }
    atomic_write_json(path, content)
    return made


def keep_exemplars(exemplars: Sequence[Exemplar], path: Path) -> None:
    """Write exemplars that a person gave where generated ones would be kept, for the report."""
    atomic_write_json(
        path,
        {
            "key": fingerprint([VERSION, [asdict(item) for item in exemplars]]),
            "source": "file",
            "model": "",
            "exemplars": [asdict(item) for item in exemplars],
        },
    )


def exemplar_file(path: Path | str) -> Path:
    """Where the exemplars of a proxy file are kept; a person may edit them as well."""
    path = Path(path)
    return path.with_name(f"{path.stem}.exemplars.json")


def _read_exemplars(path: Path, key: str) -> list[Exemplar]:
    """The exemplars of a file that was made for the same data and settings, else none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key:
            return []
        return [Exemplar(**item) for item in content["exemplars"]]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read as exemplars ({error}); correct or remove it"
        ) from error


def _from_perturbed(rows: list[Row], source: RowSet, settings: ProxySettings) -> list[Exemplar]:
    usable = [row for row in rows if perturbed_answers(row)][: settings.exemplars]
    if not usable:
        raise InputError(
            f"proxies.exemplar_source is perturbed, but {source.origin} has no perturbed_answer "
            f"column; use base_model, or rows such as tofu:retain_perturbed"
        )
    choose = random.Random(settings.seed)
    return [_exemplar(row, choose.choice(perturbed_answers(row))) for row in usable]


def _from_base_model(
    rows: list[Row], generator: Generator, settings: ProxySettings, rejections: Sequence[str]
) -> list[Exemplar]:
    """Exemplars from what the model says without any; unusable answers are passed over."""
    made: list[Exemplar] = []
    wanted = settings.exemplars
    # Up to four calls with twice as many as are needed: enough for a model that refuses often.
    for start in range(0, min(len(rows), 8 * wanted), 2 * wanted):
        some = rows[start : start + 2 * wanted]
        prompts = [zero_shot_prompt(asked(row)) for row in some]
        replies = generator(prompts, max_new_tokens=[settings.max_new_tokens] * len(prompts))
        for row, text in zip(some, replies, strict=True):
            answer = shorten(clean_answer(whole_sentences(text) or text), row.answer)
            truth, question = row.answer, row.question
            if not reject_reason(answer, question=question, truth=truth, rejections=rejections):
                made.append(_exemplar(row, answer))
        if len(made) >= wanted:
            break
    return made[:wanted]


def _exemplar(row: Row, uninformed_answer: str) -> Exemplar:
    return Exemplar(
        question=asked(row),
        informed_answer=" ".join(row.answer.split()),
        uninformed_answer=uninformed_answer,
    )
