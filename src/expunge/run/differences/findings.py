"""What stands out, in sentences whose figures come from the measurements."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.run.differences.entry import Difference
from expunge.run.differences.inputs import FIXTURES, START
from expunge.run.differences.logits import PaddedRow, Row, fixture_rows, padded_rows
from expunge.run.differences.numbers import cosines, differences, number, span
from expunge.run.differences.register import DIFFERENCES
from expunge.run.differences.worked import weight_rows


def findings() -> str:
    """A list of the largest differences."""
    muse = _rows("NPO-MUSE")
    start = next(row for row in _rows("NPO-MUSE", variations=True) if row.where == START)
    kl = _rows("KL-MUSE")
    released = _rows("ME(direction=uniform_to_model, positions=all)")
    broadcast = _rows("RMU(average=broadcast)")
    undial = _rows("UNDIAL-OU")
    pulls = [row.pulls[-1] for row in _diluted()]
    narrow = next(row.narrow for row in weight_rows() if row.options == "k=1")
    items = [
        "What the baselines of MUSE run as NPO is not NPO (C-04): its gradient has a cosine of "
        f"{cosines(row.gradients.cosine for row in muse)} with that of NPO, and "
        f"{span(100 * row.moves for row in muse)}% of it changes a probability; before the first "
        f"step {number(100 * start.moves, 3)}%. What they run as KL (C-02) has a gradient "
        f"{span(row.gradients.ratio for row in kl)} times as long as that of KL, and not 0 at the "
        "reference.",
        "A mean over all positions makes a loss depend on padding (C-02, C-07, C-10, C-11): with "
        "64 more padded positions behind rows of 6 and 8 the gradient on the real tokens shrinks "
        f"to {span(pulls)} of what it was.",
        "ME as released and ME as written (C-06, C-07): cosine "
        f"{cosines(row.gradients.cosine for row in released)}.",
        "A broadcast over lengths changes RMU in open-unlearning (C-11) by "
        f"{differences((row.value, row.plain) for row in broadcast)}; a label of -100 used as an "
        "index changes what its UNDIAL distils (C-10): cosine "
        f"{cosines(row.gradients.cosine for row in undial)}.",
        "The weights of EGU spread little: with k = 1 and similarities from 0.80 to 0.95 they lie "
        f"within {span(narrow)} of equal ones, so the readings of their formula (E-01 to E-03) "
        "give nearly the same step.",
    ]
    return "\n".join(f"- {item}" for item in items) + "\n"


def _rows(notation: str, *, variations: bool = False) -> list[Row]:
    """Measurements of a form by its notation."""
    rows = [row for entry in _with(notation) for row in fixture_rows(entry)]
    own = [row for row in rows if row.form.notation == notation]
    return own if variations else [row for row in own if row.where in FIXTURES]


def _with(notation: str) -> Iterator[Difference]:
    for entry in DIFFERENCES:
        if any(form.notation == notation for form in entry.others):
            yield entry


def _diluted() -> list[PaddedRow]:
    """Forms over all positions, with more padding."""
    averaged = ("C-02", "C-07", "C-10", "C-11")
    rows = [row for e in DIFFERENCES if e.padded and e.mark in averaged for row in padded_rows(e)]
    return [row for row in rows if row.pulls[-1] < 0.99]
