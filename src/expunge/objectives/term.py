"""A term binds a loss to streams, with its weight, its positions and its average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.models.outputs import Positions, TokenOutputs
from expunge.objectives.losses import Average, LossFn, loss_info

Outputs = Mapping[str, TokenOutputs]
Weigh = Callable[[TokenOutputs], Tensor]


class RowValues(NamedTuple):
    """A value summed within each row [B] and how many values each sum holds [B]."""

    sums: Tensor
    counts: Tensor


def scored(out: TokenOutputs) -> Tensor:
    """Rows that take part and carry at least one label, bool, [B]."""
    return out.valid & out.mask.any(-1)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A loss on one or more streams, with its weight and hyperparameters.

    Attributes:
        loss: A function declared with `expunge.objectives.losses.loss`.
        on: Names of the streams it looks at, in the order of its positional arguments.
        weight: Coefficient in the objective.
        options: Hyperparameters that differ from the defaults in the signature of the loss.
        positions: Logit positions a token loss averages over; the loss's own choice when None.
        average: How a token loss becomes one number; the loss's own choice when None.
        pooled: The loss looks at each stream by itself, and one mean runs over all their values.
        label: Name in logs; "stream/loss" when empty.
    """

    loss: LossFn
    on: tuple[str, ...] = ("forget",)
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions | None = None
    average: Average | None = None
    pooled: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        """Name in logs."""
        return self.label or f"{self.on[0]}/{loss_info(self.loss).name}"

    @property
    def averaged_over(self) -> Positions:
        """Logit positions that a token loss averages over."""
        return self.positions or loss_info(self.loss).positions

    @property
    def averaged_by(self) -> Average:
        """How a token loss becomes one number."""
        return self.average or loss_info(self.loss).average

    @property
    def is_token(self) -> bool:
        """Whether the loss has a value per token."""
        return loss_info(self.loss).unit == "token"

    @property
    def reads(self) -> frozenset[str]:
        """Fields of `TokenOutputs` that the loss looks at."""
        return loss_info(self.loss).reads

    @property
    def weighed(self) -> tuple[str, ...]:
        """Streams whose tokens can be weighted."""
        return self.on if self.pooled else self.on[:1]

    def position_mask(self, out: TokenOutputs) -> Tensor:
        """Logit positions of a token loss that count, bool, [B, T]."""
        info = loss_info(self.loss)
        mask = out.positions(self.averaged_over)
        if info.predicts and self.averaged_over == "nonpad":
            mask = mask & out.predicts
        elif info.predicts and self.averaged_over == "all":
            # Every position but the last of the padded row, which has nothing to predict.
            mask = mask & out.not_last
        return mask if info.keep is None else mask & info.keep(out, **self.options)

    def count(self, outputs: Outputs) -> Tensor:
        """How many values each row contributes to the mean, [B]; known before the forward pass."""
        counts = [self._count(outputs[name]) for name in self.on[: None if self.pooled else 1]]
        return torch.stack(counts).sum(0)

    def _count(self, out: TokenOutputs) -> Tensor:
        if not self.is_token:
            return scored(out).to(torch.long)
        counts = self.position_mask(out).sum(-1)
        return counts if self.averaged_by == "tokens" else (counts > 0).to(torch.long)

    def rows(
        self, outputs: Outputs, *, weigh: Weigh | None = None, mean: Tensor | None = None
    ) -> RowValues:
        """Sum of the loss within each row and the number of values in it.

        Args:
            outputs: Records of the streams.
            weigh: Weights of the tokens of a record, [B, T]. They multiply the values of a token
                loss, and the token log-probabilities inside a sequence loss.
            mean: Mean of the loss's statistic over the step, for a loss that has one; that of these
                rows by default.
        """
        if loss_info(self.loss).statistic is not None and mean is None:
            sums, counts = self.statistic(outputs)
            mean = sums.sum() / counts.sum().clamp(min=1)
        extra = () if mean is None else (mean,)
        if not self.pooled:
            return self._rows([outputs[name] for name in self.on], weigh, extra)
        parts = [self._rows([outputs[name]], weigh, extra) for name in self.on]
        return RowValues(sum(p.sums for p in parts), sum(p.counts for p in parts))  # type: ignore[arg-type]

    def statistic(self, outputs: Outputs) -> RowValues:
        """The loss's statistic summed within each row, without gradient; see `LossInfo`."""
        statistic = loss_info(self.loss).statistic
        assert statistic is not None, "the loss takes no mean over the step"
        streams = [outputs[name] for name in self.on]
        with torch.no_grad():
            return self._summed(streams[0], statistic(*streams, **self.options))

    def per_sample(
        self, outputs: Outputs, *, weigh: Weigh | None = None, mean: Tensor | None = None
    ) -> Tensor:
        """The loss as one value per row, [B]: token mean of a token loss, 0 for unscored rows."""
        sums, counts = self.rows(outputs, weigh=weigh, mean=mean)
        return sums / counts.clamp(min=1)

    def _rows(
        self, streams: list[TokenOutputs], weigh: Weigh | None, extra: tuple[Tensor, ...]
    ) -> RowValues:
        weights = None if weigh is None else weigh(streams[0])
        if weights is not None and not self.is_token:
            streams = [_with_token_weights(streams[0], weights), *streams[1:]]
        values = self.loss(*streams, *extra, **self.options)
        if weights is not None and self.is_token:
            values = values * weights.to(values.dtype)
        return self._summed(streams[0], values)

    def _summed(self, out: TokenOutputs, values: Tensor) -> RowValues:
        counts = self._count(out)
        if not self.is_token:
            return RowValues(torch.where(counts > 0, values, 0.0), counts)
        mask = self.position_mask(out)
        sums = torch.where(mask, values, 0.0).sum(-1)
        lengths = mask.sum(-1)
        if self.averaged_by == "rows":
            sums = sums / lengths.clamp(min=1)
        elif self.averaged_by == "broadcast":
            inverse = torch.where(lengths > 0, 1 / lengths.clamp(min=1).to(sums), 0.0)
            sums = sums * inverse.sum() / (lengths > 0).sum().clamp(min=1)
        return RowValues(sums, counts)


def _with_token_weights(out: TokenOutputs, weights: Tensor) -> TokenOutputs:
    """The record of a row whose token log-probabilities count as often as their weights say."""
    weights = weights.to(out.logps.dtype)
    reference = None if out.ref_logps is None else out.ref_logps * weights
    return replace(out, logps=out.logps * weights, ref_logps=reference)


class TermSum(NamedTuple):
    """One term of one micro-batch: `weight * (total / count + offset)` enters the loss."""

    name: str
    weight: float
    total: Tensor
    count_key: str
    offset: float = 0.0
    part: str = "forget"


@dataclass(kw_only=True)
class ObjectiveSums:
    """What one micro-batch adds to an optimizer step.

    Attributes:
        sums: Terms in order.
        ranges: Minimum and maximum of quantities worth logging.
        active: Samples whose proxy penalty fired.
        gaps: Sum of the proxy gaps of the rows that count.
        embeddings: Sentence embeddings of the forget rows, [B, D], to be remembered as their past.
        retain_embeddings: Sentence embeddings of the retain rows that count, [n, D], for a moving
            retain centre.
    """

    sums: list[TermSum] = field(default_factory=list)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    active: int = 0
    gaps: float = 0.0
    embeddings: Tensor | None = None
    retain_embeddings: Tensor | None = None

    def add(
        self,
        name: str,
        weight: float,
        total: Tensor,
        count_key: str,
        *,
        offset: float = 0.0,
        part: str = "forget",
    ) -> None:
        """Add a term; `count_key` names the denominator, `one` for a plain sum."""
        self.sums.append(TermSum(name, weight, total, count_key, offset, part))

    def note(self, name: str, values: Tensor, counted: Tensor) -> None:
        """Keep the range of a quantity over the entries that count."""
        kept = values.detach()[counted]
        if len(kept):
            self.ranges[name] = (float(kept.min()), float(kept.max()))

    def total(self, counts: Mapping[str, Tensor | float], *, part: str = "") -> Tensor:
        """The loss: every term's weight times sum over count; terms with a count of 0 are 0.

        Args:
            counts: Denominators over the step.
            part: Only the terms of this part, `forget` or `retain`; all by default.
        """
        # Added one by one, the penalty last: adding an exact 0 then changes no bit of the rest.
        loss = self.sums[0].total.new_zeros(())
        for term in self.sums:
            if part and term.part != part:
                continue
            count = max(float(counts.get(term.count_key, 1.0)), 1.0)
            loss = loss + term.weight * term.total / count
            if term.offset:
                loss = loss + term.weight * term.offset
        return loss
