"""Forms of a loss against the plain one on stored logits."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from expunge.methods import Method, forget_losses, parse, retain_terms
from expunge.run.differences.entry import Difference, Form
from expunge.run.differences.gradients import (
    Agreement,
    Ran,
    agreement,
    gradients_of,
    norm,
    share_that_moves,
)
from expunge.run.differences.inputs import FIXTURES, PADDED, PADDING, Fixture, fixture, padded
from expunge.run.golden_losses import STREAM_OF, golden_outputs, tensor


class Row(NamedTuple):
    """One form against the plain one on one input; `moves` is the form's `share_that_moves`."""

    form: Form
    where: str
    plain: float
    value: float
    gradients: Agreement
    moves: float


class PaddedRow(NamedTuple):
    """A form on one input with more and more padding.

    `values` at each of `PADDING`; `pulls` the norm of the gradient on the real tokens, against that
    without further padding.
    """

    form: Form
    where: str
    values: tuple[float, ...]
    pulls: tuple[float, ...]


def fixture_rows(entry: Difference) -> list[Row]:
    """Every measured form of an entry against the plain one, on every input that can show it."""
    rows = []
    for form in entry.measured:
        for where in (*FIXTURES, *entry.inputs):
            if can_run(entry.plain.runs, where) and can_run(form.runs, where):
                plain, other = run(entry.plain.runs, where), run(form.runs, where)
                compared = agreement(plain.gradients, other.gradients)
                moves = share_that_moves(other.gradients)
                rows.append(Row(form, where, plain.value, other.value, compared, moves))
    return rows


def padded_rows(entry: Difference) -> list[PaddedRow]:
    """Every form of an entry with more and more padding behind the rows."""
    rows = []
    for form in entry.forms:
        for where in PADDED:
            found = [run(form.runs, where, more) for more in PADDING]
            norms = [_norm_on_real(ran, where) for ran in found]
            pulls = tuple(value / norms[0] for value in norms)
            rows.append(PaddedRow(form, where, tuple(ran.value for ran in found), pulls))
    return rows


@cache
def run(notation: str, where: str, padding: int = 0) -> Ran:
    """Value and gradients of a method, or of a retain term alone, on an input by name."""
    method = method_of(notation)
    data: Fixture = padded(where, padding) if padding else fixture(where)
    leaves, outputs = golden_outputs(method, data)
    objective = method.objective
    state = objective.new_state(0)
    if state.control is not None:
        state.control = tensor(data["control_unit"])
    total = objective(outputs, state=state).total(objective.counts(outputs))
    total.backward()  # type: ignore[no-untyped-call]
    return Ran(float(total.detach()), gradients_of(leaves))


@cache
def method_of(notation: str) -> Method:
    """The method; a retain term alone gets a forget loss that does not count."""
    name = notation.partition("(")[0]
    alone = name in retain_terms and name not in forget_losses and "+" not in notation
    return parse(f"GA(weight=0)+{notation}" if alone else notation)


def can_run(notation: str, where: str) -> bool:
    """Whether the input has the streams and the hidden states that a method needs."""
    method, data = method_of(notation), fixture(where)
    sets = {stream: name for name, stream in STREAM_OF.items()}
    if any(sets[stream] not in data for stream in method.streams):
        return False
    return "activations" not in method.reads or "act" in data


def _norm_on_real(ran: Ran, where: str) -> float:
    """Norm of the gradient at the tokens that are real in the input as stored."""
    kept = {}
    for (name, kind), gradient in ran.gradients.items():
        real = torch.tensor(fixture(where)[name]["attention_mask"]).bool()
        kept[name, kind] = gradient[:, : real.shape[1]][real]
    return norm(kept)
