"""What losses are compared on: the golden fixtures, variations of the first, and padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from expunge.run.golden_inputs import golden_inputs
from expunge.run.golden_losses import STREAM_OF

Fixture = Mapping[str, Any]

FIXTURES = ("A_qa", "C_pretrain", "F_edge", "U_vocab128")
PADDED = ("A_qa", "F_edge")
PADDING = (0, 8, 64)
RAISED = 5.0


@cache
def fixture(name: str) -> Fixture:
    """A golden fixture by name, or a variation of A_qa."""
    stored: Mapping[str, Fixture] = golden_inputs()["fixtures"]
    return stored[name] if name in stored else VARIATIONS[name](stored["A_qa"])


@cache
def padded(name: str, more: int) -> Fixture:
    """The fixture with `more` unlabelled, unattended positions behind every row.

    Logits and hidden states there repeat those of the row from its first position on.
    """
    plain = fixture(name)
    result = dict(plain)
    for key, data in _sets(plain).items():
        changed = {what: _repeat(data[what], more) for what in ("logits", "ref_logits")}
        for what, fill in (("input_ids", 0), ("labels", -100), ("attention_mask", 0)):
            changed[what] = [row + [fill] * more for row in data[what]]
        result[key] = changed
    result["act"] = {key: _repeat(rows, more) for key, rows in plain.get("act", {}).items()}
    return result


def _sets(data: Fixture) -> dict[str, Fixture]:
    return {name: data[name] for name in STREAM_OF if name in data}


def _repeat(rows: Sequence[list[Any]], more: int) -> list[list[Any]]:
    return [row + [row[i % len(row)] for i in range(more)] for row in rows]


def _at_start(data: Fixture) -> Fixture:
    """The model is its own reference."""
    changed = {name: {**own, "ref_logits": own["logits"]} for name, own in _sets(data).items()}
    return {**data, **changed}


def _known(data: Fixture) -> Fixture:
    """Every label token has a higher logit, as in a model that learned the answers."""
    return {**data, **{name: _raised(own) for name, own in _sets(data).items()}}


def _raised(own: Fixture) -> Fixture:
    logits = [[list(position) for position in row] for row in own["logits"]]
    for row, labels in zip(logits, own["labels"], strict=True):
        for position, label in zip(row, labels[1:], strict=False):
            if label != -100:
                position[label] += RAISED
    return {**own, "logits": logits}


def _short(data: Fixture) -> Fixture:
    """Every rejection is its first token."""
    own = data["idk"]
    labels = []
    for row in own["labels"]:
        first = next(i for i, label in enumerate(row) if label != -100)
        labels.append([label if i == first else -100 for i, label in enumerate(row)])
    return {**data, "idk": {**own, "labels": labels}}


START, KNOWN, SHORT = "A_qa at the start", "A_qa known", "A_qa short rejections"
VARIATIONS: Mapping[str, Callable[[Fixture], Fixture]] = {
    START: _at_start,
    KNOWN: _known,
    SHORT: _short,
}
MEANINGS: Mapping[str, str] = {
    START: "the reference logits are the model's own, as before the first step",
    KNOWN: f"the logit of every label token is {RAISED:g} higher, as in a model that learned "
    "the answers",
    SHORT: "of every rejection only the first token has a label",
}
