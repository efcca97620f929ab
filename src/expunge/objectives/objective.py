"""Terms bind losses to streams; an objective returns their sums, the trainer divides by counts.

A term's value over an optimizer step is `sum / count` with both taken over all micro-batches and
all processes, so the gradient is the same however a batch is split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.models.outputs import Positions, TokenOutputs
from expunge.objectives.entanglement import (
    EntanglementOptions,
    EntanglementState,
    drift_contrast,
    effort,
    sentence_embedding,
    similarity,
)
from expunge.objectives.losses import LossFn, loss_info
from expunge.objectives.proxy import ProxyOptions, proxy_excess

Outputs = Mapping[str, TokenOutputs]


class RowValues(NamedTuple):
    """A term's loss summed within each row [B] and how many values each sum holds [B]."""

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True, kw_only=True)
class Term:
    """A loss on one or more streams, with its weight and hyperparameters.

    Attributes:
        loss: A function declared with `expunge.objectives.losses.loss`.
        on: Names of the streams it looks at, in the order of its positional arguments.
        weight: Coefficient in the objective.
        options: Hyperparameters that differ from the defaults in the signature of the loss.
        positions: Logit positions a token loss averages over; the loss's own choice when None.
        label: Name in logs; "stream/loss" when empty.
    """

    loss: LossFn
    on: tuple[str, ...] = ("forget",)
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions | None = None
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
    def reads(self) -> frozenset[str]:
        """Fields of `TokenOutputs` that the loss looks at."""
        return loss_info(self.loss).reads

    def position_mask(self, out: TokenOutputs) -> Tensor:
        """Logit positions of a token loss that count, bool, [B, T]."""
        mask = out.positions(self.averaged_over)
        if not loss_info(self.loss).predicts or self.averaged_over == "labels":
            return mask
        if self.averaged_over == "nonpad":
            return mask & out.predicts
        # Every position but the last of the padded row, which has nothing to predict.
        return mask & out.not_last

    def count(self, out: TokenOutputs) -> Tensor:
        """How many values each row contributes to the mean, [B]; known before the forward pass."""
        if loss_info(self.loss).unit == "token":
            return self.position_mask(out).sum(-1)
        return _scored(out).to(torch.long)

    def rows(self, outputs: Outputs) -> RowValues:
        """Sum of the loss within each row and the number of values in it."""
        streams = [outputs[name] for name in self.on]
        values = self.loss(*streams, **self.options)
        counts = self.count(streams[0])
        if loss_info(self.loss).unit == "token":
            mask = self.position_mask(streams[0])
            return RowValues(torch.where(mask, values, 0.0).sum(-1), counts)
        return RowValues(torch.where(counts > 0, values, 0.0), counts)

    def per_sample(self, outputs: Outputs) -> Tensor:
        """The loss as one value per row, [B]: token mean of a token loss, 0 for unscored rows."""
        sums, counts = self.rows(outputs)
        return sums / counts.clamp(min=1)


def _scored(out: TokenOutputs) -> Tensor:
    """Rows that take part and carry at least one label, bool, [B]."""
    return out.valid & out.mask.any(-1)


class TermSum(NamedTuple):
    """One term of one micro-batch: `weight * total / count` enters the loss."""

    name: str
    weight: float
    total: Tensor
    count_key: str


@dataclass(frozen=True, kw_only=True)
class Objective:
    """All terms of a method.

    Attributes:
        forget: The forget term.
        retain: The retain regulariser, if any.
        entanglement: Options of EGU, if the forget term is weighted by entanglement.
        proxy: Options of the proxy constraint, if there is one.
    """

    forget: Term
    retain: Term | None = None
    entanglement: EntanglementOptions | None = None
    proxy: ProxyOptions | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        """Forget and retain term."""
        return (self.forget,) if self.retain is None else (self.forget, self.retain)

    def streams(self) -> tuple[str, ...]:
        """Streams that run through the model with gradient, in a fixed order."""
        names = [name for term in self.terms for name in term.on]
        if self.entanglement is not None:
            names.append("forget")
            if self.entanglement.centre_refresh == "batch_ema":
                names.append("retain")
        if self.proxy is not None:
            names.append("forget")
            if self.proxy.proxy_grad:
                names.append("proxy")
        return tuple(dict.fromkeys(names))

    def boundary_streams(self) -> tuple[str, ...]:
        """Streams that run through the model without gradient, apart from the others."""
        needed = self.proxy is not None and not self.proxy.proxy_grad
        return ("proxy",) if needed else ()

    def all_streams(self) -> tuple[str, ...]:
        """Every stream the objective needs, with or without gradient."""
        return self.streams() + self.boundary_streams()

    def reads(self, stream: str) -> frozenset[str]:
        """Fields of `TokenOutputs` that are needed on a stream."""
        needed: set[str] = set()
        for term in self.terms:
            if stream in term.on:
                needed |= term.reads
        if self.entanglement is not None:
            embedded = {"forget"}
            if self.entanglement.centre_refresh == "batch_ema":
                embedded.add("retain")
            if stream in embedded:
                needed.add("hidden")
        if self.proxy is not None and stream == "proxy" and self.proxy.penalty_nll == "objective":
            needed |= self.forget.reads
        return frozenset(needed)

    def positions(self, stream: str) -> Positions:
        """The widest set of logit positions that some term needs on a stream."""
        order: list[Positions] = ["labels", "nonpad", "all"]
        used = [
            order.index(term.averaged_over)
            for term in self.terms
            if stream in term.on and loss_info(term.loss).unit == "token"
        ]
        return order[max(used, default=0)]

    def counts(self, outputs: Outputs) -> dict[str, Tensor]:
        """Denominators of one micro-batch, from masks alone; add them over the step.

        Args:
            outputs: Records whose masks are right; log-probabilities may be placeholders.
        """
        counts = {term.name: term.count(outputs[term.on[0]]).sum() for term in self.terms}
        if self.entanglement is not None or self.proxy is not None:
            counts["rows"] = _scored(outputs["forget"]).sum()
        return counts

    def weight_exponents(self, outputs: Outputs, state: EntanglementState) -> Tensor:
        """Exponents of the weights of the forget rows, -inf for rows that do not count, [B]."""
        assert self.entanglement is not None, "the objective has no entanglement weights"
        assert state.centre is not None, "the entanglement state was not started"
        out = outputs["forget"]
        embeddings = sentence_embedding(out, tokens=self.entanglement.embed_tokens)
        exponents = effort(similarity(embeddings, state.centre.to(embeddings)), self.entanglement)
        if not self.entanglement.weight_grad:
            exponents = exponents.detach()
        return exponents.masked_fill(~_scored(out), -torch.inf)

    def __call__(
        self,
        outputs: Outputs,
        *,
        boundary: Outputs | None = None,
        entanglement: EntanglementState | None = None,
        log_normaliser: Callable[[Tensor], Tensor] | None = None,
        initial_proxy: Tensor | None = None,
    ) -> ObjectiveSums:
        """Run every term on one micro-batch.

        Args:
            outputs: Records of the streams with gradient.
            boundary: Records of the streams without gradient.
            entanglement: Past and centre, when the method has entanglement weights.
            log_normaliser: Given the exponents [B] of this micro-batch, the logarithm of the sum of
                their exponentials over the whole softmax; this micro-batch's own by default.
            initial_proxy: NLL of the proxies of these rows under the initial model, [B].

        Returns:
            The sums of all terms, and quantities worth logging.
        """
        result = ObjectiveSums()
        if entanglement is None or self.entanglement is None:
            self._plain_forget(outputs, result)
        else:
            self._weighted_forget(outputs, entanglement, log_normaliser, result)
        if self.retain is not None:
            sums, _ = self.retain.rows(outputs)
            result.add(self.retain.name, self.retain.weight, sums.sum(), self.retain.name)
        if self.proxy is not None:
            self._penalty(outputs, boundary or outputs, initial_proxy, result)
        return result

    def _plain_forget(self, outputs: Outputs, result: ObjectiveSums) -> None:
        if self.proxy is None:
            sums, _ = self.forget.rows(outputs)
            result.add(self.forget.name, self.forget.weight, sums.sum(), self.forget.name)
        else:
            # A wrapper counts samples, not tokens (C-15), with or without weights.
            values = self.forget.per_sample(outputs)
            result.add(self.forget.name, self.forget.weight, values.sum(), "rows")

    def _weighted_forget(
        self,
        outputs: Outputs,
        state: EntanglementState,
        log_normaliser: Callable[[Tensor], Tensor] | None,
        result: ObjectiveSums,
    ) -> None:
        options = self.entanglement
        assert options is not None, "the objective has no entanglement weights"
        out = outputs["forget"]
        scored = _scored(out)
        embeddings = sentence_embedding(out, tokens=options.embed_tokens)
        assert state.centre is not None, "the entanglement state was not started"
        similarities = similarity(embeddings, state.centre.to(embeddings))
        weights, count_key = self._weights(out, similarities, scored, state, log_normaliser)
        values = self.forget.per_sample(outputs)
        total = torch.where(scored, weights.to(values.dtype) * values, 0.0).sum()
        if options.reduce == "mean":
            count_key = "rows"
        result.add(self.forget.name, self.forget.weight, total, count_key)
        result.embeddings = embeddings.detach()
        if options.lambda_c > 0:
            assert state.past is not None, "the entanglement state was not started"
            past = state.past[out.index.cpu()].to(embeddings)
            to_past = similarity(embeddings, past)
            contrast = torch.where(scored, drift_contrast(similarities, to_past), 0.0)
            key = "rows" if options.contrast_reduce == "mean" else "one"
            result.add("contrast", options.lambda_c, contrast.sum(), key)
            result.note("similarity_to_past", to_past, scored)
        result.note("similarity", similarities, scored)
        result.note("weight", weights, scored)

    def _weights(
        self,
        out: TokenOutputs,
        similarities: Tensor,
        scored: Tensor,
        state: EntanglementState,
        log_normaliser: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, str]:
        """Weights of the forget rows [B] and the count their weighted sum is divided by."""
        options = self.entanglement
        assert options is not None, "the objective has no entanglement weights"
        if options.scope == "dataset":
            assert state.dataset_weights is not None, "the entanglement state was not started"
            return state.dataset_weights[out.index.cpu()].to(similarities), "rows"
        exponents = effort(similarities, options).masked_fill(~scored, -torch.inf)
        if not options.weight_grad:
            exponents = exponents.detach()
        total = exponents.logsumexp(0) if log_normaliser is None else log_normaliser(exponents)
        return (exponents - total).exp(), "one"

    def _penalty(
        self,
        outputs: Outputs,
        boundary: Outputs,
        initial_proxy: Tensor | None,
        result: ObjectiveSums,
    ) -> None:
        options = self.proxy
        assert options is not None, "the objective has no proxy constraint"
        scored = _scored(outputs["forget"])
        answer = self.proxy_scale(outputs, "forget")
        if initial_proxy is None:
            proxy = self.proxy_scale(boundary, "proxy")
            if not options.proxy_grad:
                proxy = proxy.detach()
        else:
            proxy = initial_proxy.to(answer)
        excess = torch.where(scored, proxy_excess(answer, proxy), 0.0)
        key = "one" if options.penalty_reduce == "sum" else "rows"
        result.add("proxy_penalty", options.mu, excess.sum(), key)
        result.note("proxy_gap", answer - proxy, scored)
        result.active += int((excess > 0).sum())

    def proxy_scale(self, outputs: Outputs, stream: str) -> Tensor:
        """Value of a stream on the scale the penalty compares, larger is more forgotten, [B]."""
        assert self.proxy is not None, "the objective has no proxy constraint"
        if self.proxy.penalty_nll == "mean":
            return outputs[stream].mean_nll()
        if self.proxy.penalty_nll == "sum":
            return outputs[stream].nll()
        # The base objective falls as a sample is forgotten, so its negative is what rises.
        return -replace(self.forget, on=(stream,)).per_sample(outputs)


@dataclass(kw_only=True)
class ObjectiveSums:
    """What one micro-batch adds to an optimizer step.

    Attributes:
        sums: Terms in order.
        ranges: Minimum and maximum of quantities worth logging.
        active: Samples whose proxy penalty fired.
        embeddings: Sentence embeddings of the forget rows, [B, D], to be remembered as their past.
        retain_embeddings: Sentence embeddings of the retain rows that count, [n, D], for a moving
            retain centre.
    """

    sums: list[TermSum] = field(default_factory=list)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    active: int = 0
    embeddings: Tensor | None = None
    retain_embeddings: Tensor | None = None

    def add(self, name: str, weight: float, total: Tensor, count_key: str) -> None:
        """Add a term; `count_key` names the denominator, `one` for a plain sum."""
        self.sums.append(TermSum(name, weight, total, count_key))

    def note(self, name: str, values: Tensor, scored: Tensor) -> None:
        """Keep the range of a quantity over the rows that count."""
        kept = values.detach()[scored]
        if len(kept):
            self.ranges[name] = (float(kept.min()), float(kept.max()))

    def total(self, counts: Mapping[str, Tensor | float]) -> Tensor:
        """The loss: every term's weight times sum over count; terms with a count of 0 are 0."""
        # Added one by one, the penalty last: adding an exact 0 then changes no bit of the rest.
        loss = self.sums[0].total.new_zeros(())
        for term in self.sums:
            count = max(float(counts.get(term.count_key, 1.0)), 1.0)
            loss = loss + term.weight * term.total / count
        return loss
