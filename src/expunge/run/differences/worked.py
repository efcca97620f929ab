"""Readings of EGU and EGUP against the one taken, on the worked example's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.methods import parse
from expunge.models.outputs import TokenOutputs
from expunge.objectives import Objective
from expunge.objectives.entanglement import effort, similarity
from expunge.run.differences.entry import Difference, Form
from expunge.run.differences.gradients import Agreement, Ran, agreement, gradients_of
from expunge.run.golden_inputs import golden_inputs
from expunge.run.golden_losses import tensor
from expunge.run.golden_worked import answer_mask, embed, nll_outputs, token_logps

BASES = ("GA", "NPO")
SIDES = ("answers", "hidden", "proxies")
_WEIGHTS = (
    "k=0.5", "k=1", "k=2", "k=2, temperature=divide", "transform=single_exp",
    "direction=entangled_more",
)  # fmt: skip

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class WorkedRow:
    """A reading against the one taken, around one forget loss.

    Attributes:
        form: The reading.
        base: The forget loss.
        weights: Smallest and largest weight, equal weights being 1; None without weights.
        plain: Value of the reading taken.
        value: Value of this one.
        gradients: Gradients compared by side: log-probabilities of the answers, hidden states,
            log-probabilities of the proxies.
    """

    form: Form
    base: str
    weights: Span | None
    plain: float
    value: float
    gradients: dict[str, Agreement]


class Weights(NamedTuple):
    """Options of the weights and their smallest and largest values, equal weights being 1."""

    options: str
    narrow: Span
    worked: Span


class Worked(NamedTuple):
    """What came out, and the smallest and the largest weight, equal weights being 1."""

    ran: Ran
    weights: Span | None


def worked_rows(entry: Difference) -> list[WorkedRow]:
    """Every measured form of an entry against the plain one, around GA and NPO."""
    rows = []
    for form in entry.measured:
        for base in BASES:
            texts = [text.replace("(GA", f"({base}") for text in (entry.plain.runs, form.runs)]
            plain = run_worked(texts[0])
            split = entry.micro_batches if "micro_batch" in texts[1] else ()
            other = run_worked(texts[1], split)
            rows.append(
                WorkedRow(
                    form=form,
                    base=base,
                    weights=other.weights,
                    plain=plain.ran.value,
                    value=other.ran.value,
                    gradients={side: _agreement(plain.ran, other.ran, side) for side in SIDES},
                )
            )
    return rows


def _agreement(plain: Ran, other: Ran, side: str) -> Agreement:
    key = ("", side)
    return agreement({key: plain.gradients[key]}, {key: other.gradients[key]})


@cache
def run_worked(notation: str, split: tuple[int, ...] = ()) -> Worked:
    """Value, gradients and weights on the worked example.

    Args:
        notation: A wrapper around a forget loss that looks at the forget answers.
        split: Sizes of the micro-batches; one by default.
    """
    leaves, whole = _records()
    objective = parse(notation).objective
    rows = len(whole["forget"].mask)
    state = objective.new_state(rows)
    if state.entanglement is not None:
        inputs = golden_inputs()["worked"]["inputs"]
        state.entanglement.start(embed(inputs["hidden_prev"], inputs["attention_mask"]), centre())
    counts = objective.counts(whole)
    total, weights = torch.zeros((), dtype=torch.float64), list[float]()
    for part in torch.split(torch.arange(rows), list(split or (rows,))):
        sums = objective({name: _some(out, part) for name, out in whole.items()}, state=state)
        total = total + sums.total(counts)
        scale = _equal_weight(objective, len(part))
        weights += [weight / scale for weight in sums.ranges.get("weight", ())]
    total.backward()  # type: ignore[no-untyped-call]
    span = (min(weights), max(weights)) if weights else None
    return Worked(Ran(float(total.detach()), gradients_of(leaves)), span)


def _records() -> tuple[dict[tuple[str, str], Tensor], dict[str, TokenOutputs]]:
    """The rows of the worked example and the leaves that gradients are taken by."""
    inputs = golden_inputs()["worked"]["inputs"]
    answers = token_logps(inputs, "nll_real_mean").requires_grad_()
    proxies = token_logps(inputs, "nll_proxy_mean").requires_grad_()
    hidden = tensor(inputs["hidden"]).requires_grad_()
    leaves = {("", "answers"): answers, ("", "hidden"): hidden, ("", "proxies"): proxies}
    keys = ("nll_real_mean", "ref_nll_real_mean")
    mask = answer_mask(inputs)  # without it a leaf would get gradients where no token is
    proxy_keys = ("nll_proxy_mean", "nll_proxy_mean")
    whole = {
        "forget": nll_outputs(inputs, *keys, logps=answers * mask, hidden=hidden),
        "proxy": nll_outputs(inputs, *proxy_keys, logps=proxies * mask, hidden=hidden),
    }
    return leaves, whole


def _some(out: TokenOutputs, rows: Tensor) -> TokenOutputs:
    """Some rows of a record."""
    by_row = [field.name for field in fields(out) if field.name not in ("columns", "control")]
    values = {name: getattr(out, name) for name in by_row}
    return replace(out, **{name: v[rows] for name, v in values.items() if v is not None})


def _equal_weight(objective: Objective, rows: int) -> float:
    """What every weight would be if all were equal."""
    options = objective.entanglement
    return 1.0 if options is None or options.scope == "dataset" else 1 / rows


def centre() -> Tensor:
    """Mean retain embedding of the worked example, [D]."""
    inputs = golden_inputs()["worked"]["inputs"]
    return embed(inputs["retain_hidden"], inputs["retain_attention_mask"]).mean(0)


def worked_similarities() -> Tensor:
    """Similarity of the worked example's rows with the retain centre, [B]."""
    inputs = golden_inputs()["worked"]["inputs"]
    return similarity(embed(inputs["hidden"], inputs["attention_mask"]), centre())


def weight_rows() -> list[Weights]:
    """Weights for eight similarities from 0.80 to 0.95, and for those of the worked example."""
    narrow = tensor(golden_inputs()["worked"]["narrow_band"])
    return [
        Weights(text, *(_span(similarities, text) for similarities in (narrow, worked)))
        for worked in (worked_similarities(),)
        for text in _WEIGHTS
    ]


def _span(similarities: Sequence[float] | Tensor, text: str) -> Span:
    options = parse(f"EGU(GA, {text})").entanglement
    assert options is not None, "EGU has weights"
    weights = effort(torch.as_tensor(similarities), options).softmax(0) * len(similarities)
    return float(weights.min()), float(weights.max())
