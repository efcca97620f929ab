"""An objective runs the terms of a method; it returns their sums, the trainer divides by counts.

A term's value over an optimizer step is `sum / count` with both taken over all micro-batches and
all processes, so the gradient is the same however a batch is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from expunge.models.outputs import Positions, TokenOutputs
from expunge.objectives.constraints import Multiplier, MultiplierOptions, control_vector
from expunge.objectives.entanglement import (
    EntanglementOptions,
    EntanglementState,
    drift_contrast,
    effort,
    sentence_embedding,
    similarity,
)
from expunge.objectives.losses import loss_info
from expunge.objectives.proxy import ProxyOptions, proxy_excess
from expunge.objectives.state import ObjectiveState, OwnRows, Statistics
from expunge.objectives.term import ObjectiveSums, Outputs, Term, Weigh, scored
from expunge.objectives.weighting import ConfidenceOptions, EmpiricalOptions, SaturationOptions

TokenWeights = ConfidenceOptions | SaturationOptions
_WIDTHS: list[Positions] = ["labels", "unshifted", "nonpad", "all"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """All terms of a method.

    Attributes:
        forget: The forget term.
        auxiliary: Further terms of the forget loss.
        retain: The retain regulariser, if any.
        multiplier: Primal-dual rule of the retain term's weight, if it is not fixed.
        token_weights: Weights of the forget term's tokens.
        empirical: Weights of the forget samples by their own loss.
        entanglement: Options of EGU, if the forget term is weighted by entanglement.
        proxy: Options of the proxy constraint, if there is one.
    """

    forget: Term
    auxiliary: tuple[Term, ...] = ()
    retain: Term | None = None
    multiplier: MultiplierOptions | None = None
    token_weights: TokenWeights | None = None
    empirical: EmpiricalOptions | None = None
    entanglement: EntanglementOptions | None = None
    proxy: ProxyOptions | None = None

    # What is needed ------------------------------------------------------------------------------

    @property
    def terms(self) -> tuple[Term, ...]:
        """Forget terms and retain term."""
        retain = () if self.retain is None else (self.retain,)
        return (self.forget, *self.auxiliary, *retain)

    @property
    def by_sample(self) -> bool:
        """Whether forget samples count, not tokens: in every wrapper of samples (C-15)."""
        sample_weights = self.entanglement is not None or self.empirical is not None
        return not self.by_token and (sample_weights or self.proxy is not None)

    @property
    def by_token(self) -> bool:
        """Whether entanglement weighs tokens."""
        return self.entanglement is not None and self.entanglement.level == "token"

    def streams(self) -> tuple[str, ...]:
        """Streams that run through the model with gradient, in a fixed order."""
        names = [name for term in self.terms for name in term.on]
        if self.entanglement is not None:
            names.append("forget")
            if self.entanglement.centre_refresh == "batch_ema":
                names.append("retain")
        if self.empirical is not None:
            names.append("forget")
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

    def statistic_streams(self) -> tuple[str, ...]:
        """Streams of a pass ahead of a step, for values that run over all its micro-batches."""
        names: list[str] = []
        if loss_info(self.forget.loss).statistic is not None:
            names += self.forget.on
        if self.empirical is not None:
            names.append("forget")
        if self.entanglement is not None and self.entanglement.scope == "step":
            names += self.forget.weighed if self.by_token else ("forget",)
        return tuple(dict.fromkeys(names))

    def reads(self, stream: str) -> frozenset[str]:
        """Fields of `TokenOutputs` that are needed on a stream."""
        needed: set[str] = set()
        for term in self.terms:
            if stream in term.on:
                needed |= term.reads
        if self.entanglement is not None:
            embedded = {"forget"}
            if self.by_token:
                embedded |= set(self.forget.weighed)
            if self.entanglement.centre_refresh == "batch_ema":
                embedded.add("retain")
            if stream in embedded:
                needed.add("hidden")
        if self._is_compared(self.forget, stream):
            needed |= self.forget.reads
        return frozenset(needed)

    def _is_compared(self, term: Term, stream: str) -> bool:
        """Whether the penalty takes a term's value on the proxies too."""
        compared = self.proxy is not None and self.proxy.penalty_nll == "objective"
        return compared and stream == "proxy" and term is self.forget

    def positions(self, stream: str) -> Positions:
        """The widest set of logit positions that some term needs on a stream."""
        used = [
            _WIDTHS.index(term.averaged_over)
            for term in self.terms
            if term.is_token and (stream in term.on or self._is_compared(term, stream))
        ]
        return _WIDTHS[max(used, default=0)]

    @property
    def block(self) -> int | None:
        """Decoder block whose output some term reads."""
        layers = [
            dict(term.options).get("layer", _default_layer(term))
            for term in self.terms
            if {"activations", "ref_activations"} & term.reads
        ]
        return layers[0] if layers else None

    def new_state(self, num_forget: int, *, hidden_size: int = 0, seed: int = 0) -> ObjectiveState:
        """The state of a run that begins.

        Args:
            num_forget: Rows of the forget set.
            hidden_size: Hidden size of the model, for a control vector.
            seed: Seed of the control vector.
        """
        state = ObjectiveState()
        if self.entanglement is not None:
            state.entanglement = EntanglementState(self.entanglement, num_forget)
        if self.multiplier is not None:
            state.retain_weight = Multiplier(self.multiplier)
        if self.proxy is not None and self.proxy.mu_rule == "dual":
            options = MultiplierOptions(
                limit=self.proxy.mu_target, start=self.proxy.mu, rate=self.proxy.mu_rate
            )
            state.proxy_weight = Multiplier(options)
        if any("control" in term.reads for term in self.terms):
            state.control = control_vector(hidden_size, seed)
        return state

    # One micro-batch -----------------------------------------------------------------------------

    def counts(self, outputs: Outputs) -> dict[str, Tensor]:
        """Denominators of one micro-batch, from masks alone; add them over the step.

        Args:
            outputs: Records whose masks are right; log-probabilities may be placeholders.
        """
        counts = {term.name: term.count(outputs).sum() for term in self.terms}
        if self.by_sample or self.entanglement is not None or self.proxy is not None:
            counts["rows"] = scored(outputs["forget"]).sum()
        if self.entanglement is not None and self.entanglement.scope == "micro_batch":
            # Each of them has weights that add up to 1; a step averages over them.
            counts["parts"] = scored(outputs["forget"]).any().long()
        return counts

    def collect(self, outputs: Outputs, state: ObjectiveState, statistics: Statistics) -> None:
        """Hand everything that runs over a whole step to `statistics`, without gradient."""
        with torch.no_grad():
            if loss_info(self.forget.loss).statistic is not None:
                statistics.mean("loss", *self.forget.statistic(outputs))
            if self.empirical is not None:
                self._empirical_mean(outputs, statistics)
            if self.entanglement is None or self.entanglement.scope != "step":
                return
            if self.by_token:
                statistics.log_mean("tokens", self._all_token_exponents(outputs, state))
            else:
                out = outputs["forget"]
                exponents = self._exponents(self._similarities(out, state), out)
                statistics.log_sum("samples", exponents)

    def __call__(
        self,
        outputs: Outputs,
        *,
        boundary: Outputs | None = None,
        state: ObjectiveState | None = None,
        statistics: Statistics | None = None,
        initial_proxy: Tensor | None = None,
    ) -> ObjectiveSums:
        """Run every term on one micro-batch.

        Args:
            outputs: Records of the streams with gradient.
            boundary: Records of the streams without gradient.
            state: What the method keeps between steps; a new one by default.
            statistics: Values that run over the whole step; this micro-batch's own by default.
            initial_proxy: NLL of the proxies of these rows under the initial model, [B].

        Returns:
            The sums of all terms, and quantities worth logging.
        """
        state = self.new_state(0) if state is None else state
        statistics = OwnRows() if statistics is None else statistics
        outputs = self._with_control(outputs, state)
        boundary = outputs if boundary is None else self._with_control(boundary, state)
        result = ObjectiveSums()
        self._forget(outputs, state, statistics, result)
        for term in self.auxiliary:
            sums, _ = term.rows(outputs)
            result.add(term.name, term.weight, sums.sum(), term.name)
        if self.retain is not None:
            self._retain(outputs, state, result)
        if self.proxy is not None:
            self._penalty(outputs, boundary, state, initial_proxy, result)
        return result

    def _with_control(self, outputs: Outputs, state: ObjectiveState) -> Outputs:
        if state.control is None:
            return outputs
        return {
            name: replace(out, control=state.control.to(out.logps.device))
            if "control" in self.reads(name)
            else out
            for name, out in outputs.items()
        }

    # Forget side ---------------------------------------------------------------------------------

    def _forget(
        self,
        outputs: Outputs,
        state: ObjectiveState,
        statistics: Statistics,
        result: ObjectiveSums,
    ) -> None:
        mean = None
        if loss_info(self.forget.loss).statistic is not None:
            mean = statistics.mean("loss", *self.forget.statistic(outputs))
        if not self.by_sample:
            weigh = self._weigh(outputs, state, statistics)
            sums, _ = self.forget.rows(outputs, weigh=weigh, mean=mean)
            result.add(self.forget.name, self.forget.weight, sums.sum(), self.forget.name)
            if self.by_token:
                self._drift(outputs, state, result)
            return
        weigh = None if self.token_weights is None else self.token_weights.weights
        values = self.forget.per_sample(outputs, weigh=weigh, mean=mean)
        # A row without an answer takes no part, whatever the loss sees of its prompt.
        values = torch.where(scored(outputs["forget"]), values, 0.0)
        if self.entanglement is not None:
            self._entangled(outputs, values, state, statistics, result)
        elif self.empirical is not None:
            self._empirical(outputs, values, statistics, result)
        else:
            result.add(self.forget.name, self.forget.weight, values.sum(), "rows")

    def _weigh(
        self, outputs: Outputs, state: ObjectiveState, statistics: Statistics
    ) -> Weigh | None:
        """Token weights of the forget term, as a function of a record."""
        if self.token_weights is not None:
            return self.token_weights.weights
        if not self.by_token:
            return None
        scope = statistics if self._options.scope == "step" else OwnRows()
        log_mean = scope.log_mean("tokens", self._all_token_exponents(outputs, state))
        return partial(self._token_weights, state=state, log_mean=log_mean)

    @property
    def _options(self) -> EntanglementOptions:
        assert self.entanglement is not None, "the objective has no entanglement weights"
        return self.entanglement

    def _token_weights(
        self, out: TokenOutputs, *, state: ObjectiveState, log_mean: Tensor
    ) -> Tensor:
        return _weights(self._token_exponents(out, state), log_mean)

    def _all_token_exponents(self, outputs: Outputs, state: ObjectiveState) -> Tensor:
        """Exponents of all weighted tokens of a micro-batch, [n]."""
        streams = [outputs[name] for name in self.forget.weighed]
        return torch.cat([self._token_exponents(out, state).flatten() for out in streams])

    def _token_exponents(self, out: TokenOutputs, state: ObjectiveState) -> Tensor:
        """Exponents of the token weights, -inf where a position does not count, [B, T]."""
        term = self.forget
        # A loss on predictions weighs the token that is predicted, any other the token at hand.
        at_hand = term.averaged_over == "unshifted" or not loss_info(term.loss).predicts
        states = out.own_states() if term.is_token and at_hand else out.token_states()
        exponents = effort(similarity(states, _centre(state).to(states)), self._options)
        counted = term.position_mask(out) if term.is_token else out.positions("labels")
        exponents = exponents.masked_fill(~counted, -torch.inf)
        return exponents if self._options.weight_grad else exponents.detach()

    def _similarities(self, out: TokenOutputs, state: ObjectiveState) -> Tensor:
        """Similarity of each forget row with the retain centre, [B]."""
        embeddings = sentence_embedding(out, tokens=self._options.embed_tokens)
        return similarity(embeddings, _centre(state).to(embeddings))

    def _exponents(self, similarities: Tensor, out: TokenOutputs) -> Tensor:
        """Exponents of the sample weights, -inf for rows that do not count, [B]."""
        exponents = effort(similarities, self._options).masked_fill(~scored(out), -torch.inf)
        return exponents if self._options.weight_grad else exponents.detach()

    def _entangled(
        self,
        outputs: Outputs,
        values: Tensor,
        state: ObjectiveState,
        statistics: Statistics,
        result: ObjectiveSums,
    ) -> None:
        options = self._options
        out = outputs["forget"]
        similarities = self._drift(outputs, state, result)
        kept = _entanglement(state)
        count_key = "one"
        if options.scope == "dataset":
            assert kept.dataset_weights is not None, "the entanglement state was not started"
            weights = kept.dataset_weights[out.index.cpu()].to(similarities)
            count_key = "rows"
        else:
            scope = statistics if options.scope == "step" else OwnRows()
            exponents = self._exponents(similarities, out)
            weights = _weights(exponents, scope.log_sum("samples", exponents))
            if options.scope == "micro_batch":
                count_key = "parts"
        if options.reduce == "mean":
            count_key = "rows"
        total = torch.where(scored(out), weights.to(values.dtype) * values, 0.0).sum()
        # First in the list, where it stands without weights too.
        result.add(self.forget.name, self.forget.weight, total, count_key)
        result.sums.insert(0, result.sums.pop())
        result.note("weight", weights, scored(out))

    def _drift(self, outputs: Outputs, state: ObjectiveState, result: ObjectiveSums) -> Tensor:
        """Add the contrastive drift term; returns the similarities with the centre, [B]."""
        options = self._options
        out = outputs["forget"]
        counted = scored(out)
        embeddings = sentence_embedding(out, tokens=options.embed_tokens)
        similarities = similarity(embeddings, _centre(state).to(embeddings))
        result.embeddings = embeddings.detach()
        if options.lambda_c > 0:
            kept = _entanglement(state)
            assert kept.past is not None, "the entanglement state was not started"
            past = kept.past[out.index.cpu()].to(embeddings)
            to_past = similarity(embeddings, past)
            contrast = torch.where(counted, drift_contrast(similarities, to_past), 0.0)
            key = "rows" if options.contrast_reduce == "mean" else "one"
            result.add("contrast", options.lambda_c, contrast.sum(), key)
            result.note("similarity_to_past", to_past, counted)
        result.note("similarity", similarities, counted)
        return similarities

    def _empirical_mean(self, outputs: Outputs, statistics: Statistics) -> Tensor:
        assert self.empirical is not None, "the objective has no empirical weights"
        out = outputs["forget"]
        weights = torch.where(scored(out), self.empirical.weights(out), 0.0)
        return statistics.mean("empirical", weights, scored(out))

    def _empirical(
        self, outputs: Outputs, values: Tensor, statistics: Statistics, result: ObjectiveSums
    ) -> None:
        assert self.empirical is not None, "the objective has no empirical weights"
        out = outputs["forget"]
        weights = self.empirical.weights(out) / self._empirical_mean(outputs, statistics)
        total = torch.where(scored(out), weights.to(values.dtype) * values, 0.0).sum()
        result.add(self.forget.name, self.forget.weight, total, "rows")
        result.note("weight", weights, scored(out))

    # Retain side and proxy constraint ------------------------------------------------------------

    def _retain(self, outputs: Outputs, state: ObjectiveState, result: ObjectiveSums) -> None:
        assert self.retain is not None, "the objective has no retain term"
        sums, _ = self.retain.rows(outputs)
        weight, offset = self.retain.weight, 0.0
        if state.retain_weight is not None:
            weight, offset = state.retain_weight.value, -state.retain_weight.options.limit
        name = self.retain.name
        result.add(name, weight, sums.sum(), name, offset=offset, part="retain")

    def _penalty(
        self,
        outputs: Outputs,
        boundary: Outputs,
        state: ObjectiveState,
        initial_proxy: Tensor | None,
        result: ObjectiveSums,
    ) -> None:
        options = self.proxy
        assert options is not None, "the objective has no proxy constraint"
        counted = scored(outputs["forget"])
        answer = self.proxy_scale(outputs, "forget")
        if initial_proxy is None:
            proxy = self.proxy_scale(boundary, "proxy")
            if not options.proxy_grad:
                proxy = proxy.detach()
        else:
            proxy = initial_proxy.to(answer)
        excess = torch.where(counted, proxy_excess(answer, proxy), 0.0)
        key = "one" if options.penalty_reduce == "sum" else "rows"
        mu = options.mu if state.proxy_weight is None else state.proxy_weight.value
        result.add("proxy_penalty", mu, excess.sum(), key)
        gap = (answer - proxy).detach()
        result.note("proxy_gap", gap, counted)
        result.gaps += float(gap[counted].sum())
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

    # After a step --------------------------------------------------------------------------------

    def update(self, state: ObjectiveState, values: Mapping[str, float], *, epoch: float) -> None:
        """Move the multipliers after a step.

        Args:
            state: What is moved.
            values: Terms of the step over all processes, and the mean `proxy_gap`.
            epoch: Epochs done, this step included.
        """
        dual = state.retain_weight
        if dual is not None and dual.options.every == "step" and self.retain is not None:
            dual.update(values[self.retain.name], epoch=epoch)
        if state.proxy_weight is not None:
            state.proxy_weight.update(values["proxy_gap"], epoch=epoch)


def _weights(exponents: Tensor, log_total: Tensor) -> Tensor:
    """Share of every exponential, 0 for what does not count; same shape as the exponents."""
    # Where nothing counts at all the logarithm is -inf too, and the difference no number.
    return torch.where(exponents == -torch.inf, 0.0, (exponents - log_total).exp())


def _entanglement(state: ObjectiveState) -> EntanglementState:
    assert state.entanglement is not None, "the objective has no entanglement state"
    return state.entanglement


def _centre(state: ObjectiveState) -> Tensor:
    centre = _entanglement(state).centre
    assert centre is not None, "the entanglement state was not started"
    return centre


def _default_layer(term: Term) -> int:
    from expunge.core.options import options_of

    return int(options_of(term.loss)["layer"].default)
