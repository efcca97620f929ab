"""Reference values: a table computed once, the weights without the adapter, or a frozen copy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.collate import collate
from expunge.data.streams import StreamPlan
from expunge.models.forward import StreamRequest, with_reference
from expunge.models.head import innermost, output_head
from expunge.models.outputs import TokenOutputs, upcast
from expunge.models.peft import adapter_off
from expunge.objectives import Objective
from expunge.training.passes import Passes, gather_objects, inference
from expunge.training.tables import (
    Table,
    TableCache,
    Wanted,
    make_table,
    planned_examples,
    row_keys,
    table_name,
    table_positions,
)

logger = logging.getLogger(__name__)

Source = Literal["table", "adapter_off", "frozen_copy"]
FIELDS = frozenset({"ref_logps", "ref_logits", "ref_activations"})


def reference_sources(objective: Objective, *, peft: bool) -> dict[str, Source]:
    """Where the reference values of each stream come from; streams that need none are left out.

    Log-probabilities always come from a table. Whole distributions and activations come from the
    weights without the adapter where there is one, which takes no memory, and else from a table of
    hidden states. Only losses that count padding need a second model: what it says there depends on
    how a batch is padded.

    Args:
        objective: What reads them.
        peft: Whether an adapter trains and can be switched off.
    """
    sources: dict[str, Source] = {}
    for stream in objective.all_streams():
        fields = objective.reads(stream) & FIELDS
        if fields == {"ref_logps"}:
            sources[stream] = "table"
        elif fields and peft:
            sources[stream] = "adapter_off"
        elif fields:
            counts_padding = objective.positions(stream) == "all"
            sources[stream] = "frozen_copy" if counts_padding else "table"
    return sources


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output head of the reference model.

    Attributes:
        weight: [V, D].
        bias: [V], if there is one.
    """

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, *, moves: bool) -> Head | None:
        """The head of a model, None if it is more than a linear layer.

        Args:
            model: The model.
            moves: Copy the weights that train.
        """
        found = output_head(model)
        if found is None:
            return None

        def kept(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            still = value.detach()
            return still.clone() if moves and value.requires_grad else still

        weight = kept(found.weight)
        assert weight is not None, "a linear layer has a weight"
        return cls(weight=weight, bias=kept(found.bias))

    def logits(self, states: Tensor, passes: Passes) -> Tensor:
        """What the reference model says from its last hidden states [n, D], [n, V]."""
        with torch.no_grad(), passes.precision.context(states.device):
            return F.linear(states, self.weight, self.bias)


@dataclass(kw_only=True)
class Reference:
    """The reference model of a loss, in the cheapest form that gives what is read.

    Attributes:
        sources: Where each stream's values come from; `prepare` may find that a table will not do.
        other: The model that is to be the reference instead of the start model, or a function that
            loads it; let go as soon as nothing needs it any more.
        cache: Where tables are stored, if anywhere.
        tables: Values of every text that training will visit, per stream.
        head: The head that makes distributions of the hidden states in a table.
        frozen: A second model, only if some source asks for one.
    """

    sources: Mapping[str, Source]
    other: nn.Module | Callable[[], nn.Module] | None = None
    cache: TableCache | None = None
    tables: dict[str, Table] = field(default_factory=dict)
    head: Head | None = None
    frozen: nn.Module | None = None

    def prepare(
        self, objective: Objective, plan: StreamPlan, num_steps: int, passes: Passes
    ) -> None:
        """Take from the reference model what training will need.

        Args:
            objective: What reads it.
            plan: Which texts meet in which step.
            num_steps: Steps of the whole training.
            passes: How texts are run.
        """
        # The last layer is what the head sees, whichever one the objective embeds rows with.
        passes = replace(passes, hidden_layer=-1)
        wanted = [
            Wanted(
                stream=stream,
                examples=planned_examples(passes.streams, plan, stream, num_steps),
                fields=objective.reads(stream) & FIELDS,
                positions=objective.positions(stream),
                dtype=_head_dtype(passes),
            )
            for stream, source in self.sources.items()
            if source == "table"
        ]
        wanted = self._affordable(wanted, passes)
        model = _Lazily(self.other, passes)
        if any("ref_logits" in one.fields for one in wanted):
            self.head = _exact_head(model(), wanted, passes)
            if self.head is None:
                refused = {one.stream for one in wanted if "ref_logits" in one.fields}
                wanted = [one for one in wanted if one.stream not in refused]
                self._needs_copy(refused, "its logits are more than a linear layer")
        for one in wanted:
            self.tables[one.stream] = self._table(one, model, passes)
        if "frozen_copy" in self.sources.values() and self.frozen is None:
            found = model()
            self.frozen = found if self.other is not None else copy.deepcopy(found)
            self.frozen.eval().requires_grad_(False)
        self.other = None

    def complete(
        self,
        outputs: Mapping[str, TokenOutputs],
        requests: Mapping[str, StreamRequest],
        passes: Passes,
    ) -> dict[str, TokenOutputs]:
        """`outputs` with the reference values of every stream that has a source."""
        result = dict(outputs)
        passed = {}
        for stream, out in outputs.items():
            source = self.sources.get(stream)
            if source == "table":
                result[stream] = self._looked_up(stream, out, requests[stream], passes)
            elif source is not None:
                passed[stream] = requests[stream]
        if passed:
            for stream, reference in self._forward(passed, passes).items():
                result[stream] = with_reference(outputs[stream], reference)
        return result

    # Tables --------------------------------------------------------------------------------------

    def _table(self, wanted: Wanted, model: Callable[[], nn.Module], passes: Passes) -> Table:
        if self.cache is None:
            return make_table(wanted, model(), passes, None)
        key = table_name(wanted, passes, self.cache.model)
        stored = self.cache.load(key, wanted)
        if all(gather_objects(passes.accelerator, [stored is not None])) and stored is not None:
            return stored
        return make_table(wanted, model(), passes, self.cache, key)

    def _affordable(self, wanted: list[Wanted], passes: Passes) -> list[Wanted]:
        """The tables that fit on the disk, or else take less memory than a copy of the model."""
        large = [one for one in wanted if one.fields != {"ref_logps"}]
        size = sum(one.nbytes(_width(passes.model)) for one in large)
        on_disk = self.cache is not None and self.cache.has_room(size)
        if all(gather_objects(passes.accelerator, [on_disk])):
            return wanted
        self.cache = None
        if size <= sum(p.nbytes for p in passes.model.parameters()):
            return wanted
        self._needs_copy({one.stream for one in large}, "a table would be larger than the model")
        return [one for one in wanted if one not in large]

    def _needs_copy(self, streams: set[str], why: str) -> None:
        logger.warning(
            "a second model is kept in memory for the reference values of %s: %s",
            ", ".join(sorted(streams)),
            why,
        )
        self.sources = {
            stream: "frozen_copy" if stream in streams else source
            for stream, source in self.sources.items()
        }

    def _looked_up(
        self, stream: str, out: TokenOutputs, request: StreamRequest, passes: Passes
    ) -> TokenOutputs:
        table = self.tables[stream]
        keys = row_keys(request.rows)
        labelled = out.positions("labels")
        where = table_positions(out, request.positions)
        found: dict[str, Any] = {}
        for name in table.values:
            rows = table.of(name, keys)
            if name == "ref_logps":
                found[name] = _spread(rows, labelled, out.logps.dtype)
            elif name == "ref_activations":
                # Rows that only fill a batch look nothing up, and have the shape all the same.
                like = table.values[name][0]
                found[name] = _spread(rows, where, like.dtype, like.shape[1:])
            else:
                found[name] = self._logits(rows, where, passes)
        return replace(out, **found)

    def _logits(self, rows: list[Tensor], where: Tensor, passes: Passes) -> Tensor:
        """Logits from hidden states, 0 where no position is counted, [B, T, V]."""
        assert self.head is not None, "hidden states come with a head"
        nothing = self.head.weight.new_zeros(0, self.head.weight.shape[1])
        states = torch.cat(rows).to(where.device) if rows else nothing
        logits = upcast(self.head.logits(states, passes))
        if where.all():
            return logits.view(*where.shape, -1)
        whole = logits.new_zeros(*where.shape, logits.shape[-1])
        whole[where] = logits
        return whole

    # Passes --------------------------------------------------------------------------------------

    def _forward(
        self, requests: Mapping[str, StreamRequest], passes: Passes
    ) -> dict[str, TokenOutputs]:
        if self.frozen is not None:
            with inference(self.frozen):
                return passes.forward(self.frozen, requests)
        with inference(passes.model), adapter_off(passes.model):
            return passes.forward(passes.model, requests)


class _Lazily:
    """The reference model, loaded when it is first asked for."""

    def __init__(self, other: nn.Module | Callable[[], nn.Module] | None, passes: Passes) -> None:
        self._other = other
        self._passes = passes
        self._found: nn.Module | None = passes.model if other is None else None

    def __call__(self) -> nn.Module:
        if self._found is None:
            assert self._other is not None, "without another model it is there from the start"
            found = self._other if isinstance(self._other, nn.Module) else self._other()
            self._found = found.to(self._passes.accelerator.device).eval().requires_grad_(False)
        return self._found


def _spread(
    rows: list[Tensor], where: Tensor, dtype: torch.dtype, tail: Sequence[int] = ()
) -> Tensor:
    """Values of all rows, one after the other, at the places of a mask [B, T]; 0 elsewhere."""
    whole = torch.zeros((*where.shape, *tail), dtype=dtype, device=where.device)
    if rows:
        whole[where] = torch.cat(rows).to(whole)
    return whole


def _head_dtype(passes: Passes) -> torch.dtype:
    """Type in which the head computes; rounding its input to it beforehand changes nothing."""
    if passes.precision.autocast:
        return torch.bfloat16
    head = output_head(passes.model)
    parameter = next(passes.model.parameters()) if head is None else head.weight
    return parameter.dtype


def _exact_head(model: nn.Module, wanted: list[Wanted], passes: Passes) -> Head | None:
    """The head, if it gives the model's own logits when applied to the last hidden states.

    Soft caps, scales and layers behind the final norm would show here.
    """
    head = Head.of(model, moves=model is passes.model)
    if head is None:
        return None
    one = next(one for one in wanted if "ref_logits" in one.fields)
    shortest = min(one.examples, key=lambda example: len(example.input_ids))
    rows = collate([shortest], pad_token_id=passes.pad_token_id).to(passes.accelerator.device)
    request = StreamRequest(
        rows=rows, reads=frozenset({"hidden", "logits"}), positions=one.positions
    )
    with inference(model):
        out = passes.forward(model, {one.stream: request})[one.stream]
    assert out.logits is not None, "logits were asked for"
    where = table_positions(out, one.positions)
    own = upcast(head.logits(out.own_states()[where].to(one.dtype), passes))
    theirs = out.logits[where]
    rounding = torch.finfo(one.dtype).eps
    same = torch.allclose(own, theirs, rtol=8 * rounding, atol=8 * rounding * _scale(theirs))
    return head if same else None


def _scale(values: Tensor) -> float:
    return float(values.abs().max())


def _width(model: nn.Module) -> int:
    """Numbers of a hidden state."""
    head = output_head(model)
    if head is not None:
        return head.in_features
    config: Any = innermost(model).config
    return int(config.get_text_config().hidden_size)
