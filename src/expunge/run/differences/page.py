"""The register as a page: introduction, summary, one section per entry."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache

from expunge.run.differences.entry import Difference, Form
from expunge.run.differences.findings import findings
from expunge.run.differences.gradients import Agreement
from expunge.run.differences.inputs import FIXTURES, MEANINGS, PADDING, fixture
from expunge.run.differences.logits import Row, fixture_rows, padded_rows
from expunge.run.differences.numbers import (
    NONE,
    cosine,
    cosines,
    difference,
    differences,
    number,
    ratio,
    span,
)
from expunge.run.differences.register import DIFFERENCES, SOURCES
from expunge.run.differences.worked import WorkedRow, weight_rows, worked_rows
from expunge.run.table import markdown

_SIDES = {"answers": "answers", "hidden": "hidden states", "proxies": "proxies"}

_INTRODUCTION = """\
Methods of unlearning are known by names, and one name stands for several functions: papers and
their released codes differ, and so do two codes of one method. This page lists the places that
were found, says what each source does, and measures the difference on inputs that anyone can run
again. The marks C-nn (released codes) and E-nn (EGUP, of which no code was released) are the ones
in `expunge show METHOD`.

Where paper and code differ, Expunge gives the plain name to the paper's form; that is the
recommended default. Every other form is an option, named in the column "Here", so that numbers
made with a released code can be made again. The recipes of a source use its forms.

## How it was measured

Every form is run on the same stored logits in float64, through the objective that training uses,
and compared with Expunge's plain form:

- **difference**: of the value, weights included, in percent of the plain value; from ten times on
  as a multiple of it.
- **cosine**: between the two gradients with respect to all logits (for RMU: hidden states). 1: the
  same direction; 0: a small step along one does not change what the other sees.
- **norm**: length of this gradient, that of the plain one being 1. Under SGD it is a factor on the
  learning rate. AdamW hides it where the loss stands alone, but not beside a retain term.
- **moves**: the share of this gradient that changes a probability, shown where it is not 1
  throughout. Adding one number to all logits of a position changes no probability.

The fixtures are small and random, so that every code could be run on them. They show that two
functions differ and in what; how much that matters for a trained model is another question. What
only padding or unequal lengths bring out is absent from `C_pretrain`, whose rows are of one length.
"""

_REPRODUCE = """\
To compute everything again, from a checkout or an installed package:

```bash
python -m expunge.cli.reference docs/reference
```

It takes seconds on one core, needs no model and no network, and writes this page among others; a
test fails when the page is not what comes out. To cite it, see `CITATION.cff`.
"""

_EGUP_HEAD = """\
## Readings of EGUP

arXiv:2508.20443 has no released code, so nothing here is as released: every reading is compared
with the one taken, on a worked example of five forget and four retain rows, with made-up hidden
states and made-up likelihoods of answers and proxies. Gradients are compared by what goes in:
log-probabilities of the answers, hidden states, log-probabilities of the proxies. Each cell holds
cosine and norm; `-` where both gradients are 0. What happens in a step is on
[its own page](../explanation/egup.md).

The weights spread little. With equal weights being 1, these are the smallest and the largest for
eight rows with similarities from 0.80 to 0.95, where mean-pooled states often lie, and for the
worked example:
"""


@cache
def differences_text() -> str:
    """The page without its title."""
    codes = [entry for entry in DIFFERENCES if entry.mark.startswith("C")]
    egup = [entry for entry in DIFFERENCES if entry.mark.startswith("E")]
    parts = [
        _INTRODUCTION,
        _fixture_table(),
        _REPRODUCE,
        _source_table(),
        "## Summary\n",
        findings(),
        _summary_head(),
        _summary(codes),
        "The readings of EGUP, on the worked example around GA and NPO:\n",
        _summary(egup),
        "## Released codes\n",
        *(_section(entry) for entry in codes),
        _EGUP_HEAD,
        _weight_table(),
        *(_section(entry) for entry in egup),
    ]
    return "\n".join(parts)


# Introduction -----------------------------------------------------------------------------------


def _fixture_table() -> str:
    rows = []
    for name in FIXTURES:
        data = fixture(name)
        meta, labels = data["meta"], data["forget"]["labels"]
        tokens = [sum(label != -100 for label in row[1:]) for row in labels]
        real = [sum(row) for row in data["forget"]["attention_mask"]]
        rows.append(
            [f"`{name}`", *(str(meta[key]) for key in ("B", "L", "V")), _listed(real),
             _listed(tokens), f"{meta['scale']:g}", str(meta["seed"])]
        )  # fmt: skip
    head = ["Fixture", "Rows", "Padded length", "Vocabulary", "Real tokens", "Predicted labels",
            "Scale of logits", "Seed"]  # fmt: skip
    variations = "\n".join(f"- `{name}`: {meaning}." for name, meaning in MEANINGS.items())
    return (
        markdown(head, rows)
        + "\nReal tokens and labels are those of the forget rows. Variations of `A_qa`, used where "
        f"they show more:\n\n{variations}\n"
    )


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _source_table() -> str:
    rows = [
        [
            source.name,
            f"[{source.project}](https://github.com/{source.project})",
            f"`{source.commit[:12]}`",
            source.licence,
            str(source.cases),
            ", ".join(f"`{file}`" for file in source.golden),
        ]
        for source in SOURCES
    ]
    total = sum(source.cases for source in SOURCES)
    return (
        "## Sources\n\nThe functions of these repositories were run on the fixtures, and their "
        "numbers are kept in\n`tests/golden`: the value and the gradient of every case agree with "
        "Expunge's form of it to a relative\n1e-9 (1e-5 where the code computes in float32). "
        f"`expunge verify golden tests/golden` checks all {total} cases.\n\n"
        + markdown(["Name here", "Repository", "Commit", "Licence", "Cases", "Files"], rows)
        + "\nThe codes of LLMU and WMDP were read and not run. In the tables below, a form is "
        '"checked" when such a\ncase stands behind it.\n'
    )


# Summary ----------------------------------------------------------------------------------------


def _summary_head() -> str:
    return (
        "Difference of the value, and cosine and norm of the gradient, from the smallest to the "
        "largest over the\nfixtures (variations left out). Where a range reaches 0 and 1, there is "
        "a fixture that does not show it.\n"
    )


def _summary(entries: list[Difference]) -> str:
    rows = []
    for entry in entries:
        mark = f"[{entry.mark}](#{_slug(_title(entry))})"
        first = [mark, entry.topic, entry.plain.here or entry.plain.does]
        if not entry.others:
            rows.append([*first, *[NONE] * 5])
        for form in entry.others:
            rows.append([*first, form.who, form.here or NONE, *_ranges(entry, form)])
            first = ["", "", ""]
    head = ["Mark", "Question", "Plain form", "Otherwise in", "As there"]
    return markdown([*head, "Difference", "Cosine", "Norm"], rows)


def _ranges(entry: Difference, form: Form) -> list[str]:
    """Ranges of difference, cosine and norm of a form."""
    if form not in entry.measured:
        return [NONE] * 3
    rows: list[Row] | list[WorkedRow]
    if entry.mark.startswith("C"):
        rows = [r for r in fixture_rows(entry) if r.form is form and r.where in FIXTURES]
        found = [row.gradients for row in rows]
    else:
        rows = [row for row in worked_rows(entry) if row.form is form]
        found = [agreement for row in rows for agreement in row.gradients.values()]
    return [
        differences((row.value, row.plain) for row in rows),
        cosines(agreement.cosine for agreement in found),
        span(agreement.ratio for agreement in found),
    ]


# Sections ---------------------------------------------------------------------------------------


def _title(entry: Difference) -> str:
    return f"{entry.mark}: {entry.topic}"


def _slug(title: str) -> str:
    """Anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section(entry: Difference) -> str:
    parts = [f"### {_title(entry)}", f"Paper: {entry.paper}", _forms(entry).rstrip()]
    if entry.measured and entry.mark.startswith("C"):
        parts.append(_measured(fixture_rows(entry)).rstrip())
        if entry.padded:
            parts.append(_padded(entry).rstrip())
    elif entry.measured:
        parts.append(_worked(worked_rows(entry)).rstrip())
    shown = ", ".join(f"`expunge show {name}`" for name in entry.shows)
    parts.append(f"{entry.why} See {shown}.")
    return "\n\n".join(parts) + "\n"


def _forms(entry: Difference) -> str:
    rows = [
        [
            "plain" if form is entry.plain else "",
            form.does,
            form.who,
            form.here or NONE,
            ", ".join(f"`{file}`" for file in form.golden) or NONE,
        ]
        for form in entry.forms
    ]
    return markdown(["", "What is done", "Source", "Here", "Checked against"], rows)


def _measured(rows: list[Row]) -> str:
    shows_moves = any(row.moves < 1 - 1e-9 for row in rows)
    head = ["Form", "Input", "Plain value", "Value", "Difference", "Cosine", "Norm"]
    cells = [
        [
            f"`{row.form.runs}`",
            f"`{row.where}`",
            number(row.plain),
            number(row.value),
            difference(row.value, row.plain),
            cosine(row.gradients.cosine),
            ratio(row.gradients.ratio),
            *([number(row.moves, 3)] if shows_moves else []),
        ]
        for row in rows
    ]
    return markdown([*head, "Moves"] if shows_moves else head, cells)


def _padded(entry: Difference) -> str:
    text = (
        "With more padding behind every row (unlabelled, unattended; the logits there repeat those "
        "of the row). Pull: norm\nof the gradient on the real tokens, without further padding = 1:"
    )
    more = [f"+{count}" for count in PADDING[1:]]
    head = ["Form", "Input", *(f"Value {name}" for name in ("as stored", *more))]
    rows = [
        [
            f"`{row.form.runs}`",
            f"`{row.where}`",
            *map(number, row.values),
            *(number(pull, 3) for pull in row.pulls[1:]),
        ]
        for row in padded_rows(entry)
    ]
    return f"{text}\n\n{markdown([*head, *(f'Pull {name}' for name in more)], rows)}"


def _worked(rows: list[WorkedRow]) -> str:
    weighted = any(row.weights for row in rows)
    sides = [side for side in _SIDES if any(_shows(row.gradients, side) for row in rows)]
    head = ["Form", "Around", *(["Weights"] if weighted else []), "Plain value", "Value"]
    cells = [
        [
            f"`{row.form.runs.replace('(GA', f'({row.base}')}`",
            row.base,
            *([span(row.weights or ())] if weighted else []),
            number(row.plain),
            number(row.value),
            difference(row.value, row.plain),
            *(_both(row.gradients[side]) for side in sides),
        ]
        for row in rows
    ]
    return markdown([*head, "Difference", *(f"By {_SIDES[side]}" for side in sides)], cells)


def _shows(gradients: Mapping[str, Agreement], side: str) -> bool:
    return not math.isnan(gradients[side].ratio)


def _both(found: Agreement) -> str:
    if math.isnan(found.ratio):
        return NONE
    if math.isinf(found.ratio):
        return "plain is 0"
    return "0" if found.ratio == 0 else f"{cosine(found.cosine)}, {ratio(found.ratio)}"


def _weight_table() -> str:
    rows = [[f"`{row.options}`", span(row.narrow), span(row.worked)] for row in weight_rows()]
    return markdown(["Options of EGU", "0.80 to 0.95", "Worked example"], rows)
