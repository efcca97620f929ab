"""How facts hang together in a model: cosines of their gradients, and what an update does to them.

UIPE (arXiv:2503.04693, section 4) explains why unlearning a fact touches related ones: their
gradients point in similar directions, so the update has a part along the related fact's gradient.
Both are measured here, each against facts of the same wording about other people: wording alone
makes gradients similar. Two gradients exist at a time, never a matrix of them, and a difference of
parameters is formed tensor by tensor.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import InputError
from expunge.data.collate import collate
from expunge.data.encode import encode_rows
from expunge.data.related import fact_id
from expunge.data.rows import Row, RowSet
from expunge.data.templates import Template
from expunge.metrics.aggregate import Estimate, mean_with_interval
from expunge.metrics.registry import Values
from expunge.models.forward import StreamRequest, forward_streams
from expunge.models.generate import context_length, evaluating
from expunge.models.peft import select_trainable
from expunge.postprocess.extrapolate import check_same_architecture

Group = Literal["target", "related", "unrelated"]
Progress = Callable[[int, int, str], None]
Parameters = Mapping[str, Tensor]

# Entries that are widened to float64 at once, 32 MiB; a whole embedding matrix would be gigabytes.
_CHUNK = 2**22


@dataclass(frozen=True, kw_only=True)
class FactPairs:
    """A target with what its gradient is compared to.

    Attributes:
        fact: Its `fact_id`.
        target: The row to forget.
        related: The rows that imply it.
        unrelated: As many rows of the same form about other people.
    """

    fact: str
    target: Row
    related: tuple[Row, ...]
    unrelated: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class PerFact:
    """One value per target and group.

    Attributes:
        facts: Their `fact_id`s.
        values: By group, the mean over the rows of the group of each target, shape [n]; nan where
            there is none, such as for a target without related rows.
    """

    facts: tuple[str, ...]
    values: Mapping[Group, Values]

    def mean(self, group: Group) -> Estimate:
        """Mean over targets with its 95% bootstrap interval and n."""
        return mean_with_interval(self.values[group])

    def difference(self) -> Estimate:
        """Related minus unrelated, target by target: above 0 if related facts stand out."""
        return mean_with_interval(self.values["related"] - self.values["unrelated"])

    def summary(self) -> dict[str, Estimate]:
        """The mean of every group, and "difference"."""
        means: dict[str, Estimate] = {group: self.mean(group) for group in self.values}
        return {**means, "difference": self.difference()}


@dataclass(frozen=True, kw_only=True)
class UpdateProjections:
    """What an update of the parameters, v = theta_un - theta_init, does along gradients g of facts.

    Attributes:
        update_norm: Euclidean norm of v over the chosen parameters, 0 or more.
        norms: Norm of the projection of v on g, |v.g| / |g|, 0 to `update_norm`.
        shares: The same relative to the norm of v, 0..1.
        cosines: Its sign too: v.g / (|v| |g|), -1..1. Above 0 the update raises the loss of the
            fact, to first order: it is forgotten along.
    """

    update_norm: float
    norms: PerFact
    shares: PerFact
    cosines: PerFact


def pair_facts(target: RowSet, related: RowSet, unrelated: RowSet) -> list[FactPairs]:
    """Every target with its related rows and with control rows of the same form.

    Related rows are found by the field `fact_id`. Every one of them gets an unrelated row with
    the same fields `relation`, `chain` and `step`, as `generate_related` writes them, in turn;
    where there is none of the form, or rows lack these fields, any unrelated row in turn.

    Args:
        target: Rows to forget, one per fact.
        related: Rows that imply them; those of other facts are left out.
        unrelated: Rows about other people.

    Raises:
        InputError: A target has no `fact_id`, two have the same, no target has a related row, or
            there are no unrelated rows.
    """
    by_fact: dict[str, list[Row]] = {}
    for row in related:
        by_fact.setdefault(fact_id(row), []).append(row)
    names = [fact_id(row) for row in target]
    _check_names(names, by_fact, target, related, unrelated)
    controls = _Controls(unrelated)
    return [
        FactPairs(
            fact=name,
            target=row,
            related=tuple(by_fact.get(name, ())),
            unrelated=tuple(controls.next(other) for other in by_fact.get(name, ())),
        )
        for name, row in zip(names, target, strict=True)
    ]


def relation_cosines(
    model: nn.Module,
    template: Template,
    pairs: Sequence[FactPairs],
    *,
    trainable: str = "all",
    max_length: int | None = None,
    on_progress: Progress | None = None,
) -> PerFact:
    """Cosines of the gradients of targets with those of related and of unrelated rows, -1..1.

    A gradient is that of the mean NLL per answer token, end of turn included, with respect to all
    chosen parameters as one vector. Higher for related than for unrelated rows means that the model
    keeps related facts in the same place. UIPE, arXiv:2503.04693, section 4. Costs a backward pass
    per row and memory for two gradients. The model is left as it was.

    Args:
        model: A causal language model, before unlearning; merge adapters first.
        template: How rows become prompts and answers.
        pairs: What `pair_facts` gives.
        trainable: "all", or a regular expression searched for in parameter names.
        max_length: Longest row in tokens; what the model can see if None.
        on_progress: Called with targets done, targets in all and a label.

    Raises:
        InputError: `trainable` matches nothing, or a row is too long.
    """
    groups: tuple[Group, ...] = ("related", "unrelated")
    found: dict[Group, list[float]] = {group: [] for group in groups}
    with _Gradients.of(model, template, trainable, max_length) as gradients:
        for done, pair in enumerate(pairs, start=1):
            own = gradients(pair.target)
            norm = _norm(own)
            for group in groups:
                cosines = [
                    _ratio(along, norm * length)
                    for along, length in (_along(gradients(row), own) for row in _rows(pair, group))
                ]
                found[group].append(_mean(cosines))
            if on_progress is not None:
                on_progress(done, len(pairs), "comparing gradients")
    return _per_fact(pairs, found)


def update_projections(
    initial: nn.Module,
    unlearned: nn.Module | Parameters,
    template: Template,
    pairs: Sequence[FactPairs],
    *,
    trainable: str = "all",
    max_length: int | None = None,
    on_progress: Progress | None = None,
) -> UpdateProjections:
    """Projection of an update on the gradients of targets, related and unrelated rows.

    Gradients are taken in the initial model, where the facts are still known: once a fact is
    forgotten its gradient says nothing about where it was. UIPE, arXiv:2503.04693, section 4.
    Costs a backward pass per row and memory for one gradient. The models are left as they were.

    Args:
        initial: The model that unlearning started from.
        unlearned: The model after it, or its parameters by name, on any device.
        template: How rows become prompts and answers.
        pairs: What `pair_facts` gives.
        trainable: "all", or a regular expression searched for in parameter names; gradient and
            update are restricted to these.
        max_length: Longest row in tokens; what the model can see if None.
        on_progress: Called with targets done, targets in all and a label.

    Raises:
        InputError: The two models differ in names or shapes, `trainable` matches nothing, or a row
            is too long.
    """
    groups: tuple[Group, ...] = ("target", "related", "unrelated")
    norms: dict[Group, list[float]] = {group: [] for group in groups}
    cosines: dict[Group, list[float]] = {group: [] for group in groups}
    with _Gradients.of(initial, template, trainable, max_length) as gradients:
        update = _Update.between(gradients.parameters, unlearned)
        size = update.norm()
        for done, pair in enumerate(pairs, start=1):
            for group in groups:
                parts = [update.along(gradients(row)) for row in _rows(pair, group)]
                norms[group].append(_mean([abs(part) for part in parts]))
                cosines[group].append(_mean([_ratio(part, size) for part in parts]))
            if on_progress is not None:
                on_progress(done, len(pairs), "projecting the update")
    found = _per_fact(pairs, norms)
    shares = {group: _shares(values, size) for group, values in found.values.items()}
    return UpdateProjections(
        update_norm=size,
        norms=found,
        shares=replace(found, values=shares),
        cosines=_per_fact(pairs, cosines),
    )


class _Along(NamedTuple):
    """Dot product of a gradient with another vector, and the gradient's norm."""

    product: float
    norm: float


class _Controls:
    """Unrelated rows of the form that is asked for, in turn.

    Args:
        unrelated: The rows.
    """

    def __init__(self, unrelated: RowSet) -> None:
        self._all = unrelated.rows
        self._by_form: dict[tuple[Any, ...], list[Row]] = {}
        for row in unrelated:
            self._by_form.setdefault(_form(row), []).append(row)
        self._taken: Counter[tuple[Any, ...]] = Counter()

    def next(self, like: Row) -> Row:
        """A row of the form of another."""
        form = _form(like)
        rows = self._by_form.get(form, self._all)
        self._taken[form] += 1
        return rows[(self._taken[form] - 1) % len(rows)]


class _Gradients:
    """Gradients of the mean NLL of single rows, as one tensor per chosen parameter.

    Args:
        model: The model, with gradients on for the chosen parameters only.
        template: How rows become tokens.
        names: Names of the chosen parameters.
        max_length: Longest row in tokens.
    """

    def __init__(
        self, model: nn.Module, template: Template, names: Sequence[str], max_length: int | None
    ) -> None:
        every = dict(model.named_parameters())
        self.parameters = {name: every[name] for name in names}
        self._model, self._template = model, template
        self._max_length = max_length or context_length(model) or 2**31

    @classmethod
    @contextlib.contextmanager
    def of(
        cls, model: nn.Module, template: Template, trainable: str, max_length: int | None
    ) -> Iterator[_Gradients]:
        """Inside the block dropout is off and gradients are on where they are wanted."""
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            names = select_trainable(model, trainable)
            with evaluating(model), torch.enable_grad():
                yield cls(model, template, names, max_length)
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)

    def __call__(self, row: Row) -> dict[str, Tensor]:
        """The gradient at a row; parameters that the loss does not depend on are missing."""
        examples = encode_rows([row], self._template, max_length=self._max_length)
        batch = collate(examples, pad_token_id=0).to(next(self._model.parameters()).device)
        request = StreamRequest(rows=batch)
        outputs = forward_streams(self._model, {"row": request}, pad_token_id=0)["row"]
        # New tensors that go with the caller's frame: nothing is accumulated in the model.
        found = torch.autograd.grad(
            outputs.mean_nll().sum(), list(self.parameters.values()), allow_unused=True
        )
        return {
            name: gradient
            for name, gradient in zip(self.parameters, found, strict=True)
            if gradient is not None
        }


class _Update:
    """The difference of two sets of parameters, formed when and where it is needed.

    Args:
        start: Parameters where unlearning started.
        end: Parameters where it ended, with the same names and shapes.
    """

    def __init__(self, start: Parameters, end: Parameters) -> None:
        self._start, self._end = start, end

    @classmethod
    def between(cls, start: Parameters, unlearned: nn.Module | Parameters) -> _Update:
        """The update from some parameters of a model to those of another."""
        other = (
            dict(unlearned.named_parameters()) if isinstance(unlearned, nn.Module) else unlearned
        )
        end = {name: other[name] for name in start if name in other}
        check_same_architecture(start, end)
        return cls(start, end)

    def norm(self) -> float:
        """Euclidean norm, 0 or more."""
        total = 0.0
        for name in self._start:
            for before, after in self._chunks(name):
                total += float((after - before).square().sum())
        return math.sqrt(total)

    def along(self, gradient: Parameters) -> float:
        """Length of the update in the direction of a gradient, signed; nan for a zero gradient."""
        product = 0.0
        for name, tensor in gradient.items():
            for (before, after), slope in zip(self._chunks(name), _wide(tensor), strict=True):
                product += float((after - before) @ slope)
        return _ratio(product, _norm(gradient))

    def _chunks(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        start, end = self._start[name], self._end[name]
        return zip(_wide(start), _wide(end, start.device), strict=True)


def _wide(tensor: Tensor, device: torch.device | None = None) -> Iterator[Tensor]:
    """All entries in float64, piece by piece, [_CHUNK] each; on a device of choice."""
    device = device or tensor.device
    # Apple's accelerator has no float64.
    place = torch.device("cpu") if device.type == "mps" else device
    flat = tensor.detach().flatten()
    for first in range(0, flat.numel(), _CHUNK):
        yield flat[first : first + _CHUNK].to(place, torch.float64)


def _norm(gradient: Parameters) -> float:
    """Euclidean norm of all entries."""
    squares = (float(piece @ piece) for tensor in gradient.values() for piece in _wide(tensor))
    return math.sqrt(math.fsum(squares))


def _along(gradient: Parameters, other: Parameters) -> _Along:
    """Dot product of two gradients over the parameters that both have, and the first's norm."""
    product = math.fsum(
        float(mine @ theirs)
        for name, tensor in gradient.items()
        if name in other
        for mine, theirs in zip(_wide(tensor), _wide(other[name]), strict=True)
    )
    return _Along(product, _norm(gradient))


def _ratio(value: float, over: float) -> float:
    return value / over if over else math.nan


def _mean(values: Sequence[float]) -> float:
    """Mean of what could be computed; nan if nothing could."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _shares(norms: Values, size: float) -> Values:
    return norms / size if size else np.full_like(norms, np.nan)


def _rows(pair: FactPairs, group: Group) -> tuple[Row, ...]:
    return {"target": (pair.target,), "related": pair.related, "unrelated": pair.unrelated}[group]


def _per_fact(pairs: Sequence[FactPairs], found: Mapping[Group, Sequence[float]]) -> PerFact:
    values = {group: np.array(numbers, dtype=np.float64) for group, numbers in found.items()}
    return PerFact(facts=tuple(pair.fact for pair in pairs), values=values)


def _form(row: Row) -> tuple[Any, ...]:
    return tuple(row.fields.get(name) for name in ("relation", "chain", "step"))


def _check_names(
    names: Sequence[str],
    by_fact: Mapping[str, Sequence[Row]],
    target: RowSet,
    related: RowSet,
    unrelated: RowSet,
) -> None:
    if "" in names:
        raise InputError(
            f"{target.origin}: target row {names.index('')} has no fact_id; it says which related "
            f"rows belong to a target"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{target.origin}: several target rows have the fact_id {twice[0]}")
    if not by_fact.keys() & set(names):
        raise InputError(
            f"{related.origin}: no related row has the fact_id of a target of {target.origin}"
        )
    if not len(unrelated):
        raise InputError("there are no unrelated rows to compare with")
