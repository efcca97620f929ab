"""What EGU and EGUP remember between steps, the same on every process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from expunge.data.collate import Batch
from expunge.data.streams import StreamPlan
from expunge.models.outputs import TokenOutputs
from expunge.objectives import EntanglementOptions, EntanglementState, ObjectiveSums
from expunge.objectives.entanglement import sentence_embedding
from expunge.training.passes import Passes, gather_objects


class EntanglementKeeper:
    """Keeps the retain centre and the past of every forget row up to date.

    Args:
        options: The options of EGU.
        state: What is kept up to date.
        plan: Which rows come in which step.
        passes: How whole streams are run.
    """

    def __init__(
        self,
        options: EntanglementOptions,
        state: EntanglementState,
        plan: StreamPlan,
        passes: Passes,
    ) -> None:
        self.options = options
        self.state = state
        self.plan = plan
        self.passes = passes

    def start(self) -> None:
        """Fill past and centre from the start model."""
        self.state.start(self._embed("forget"), self._centre())

    def refresh(self, step: int) -> None:
        """Recompute the centre, and weights over the whole forget set, if they are due."""
        if step == 0:
            return  # just filled from the start model
        due = {
            "epoch": step % self.plan.steps_per_epoch == 0,
            "every_n": step % self.options.refresh_every == 0,
            "step": True,
        }
        if due.get(self.options.centre_refresh, False):
            whole = self.options.scope == "dataset"
            forget = self._embed("forget") if whole else None
            self.state.refresh(self._centre(), forget)

    def retain_embeddings(self, outputs: Mapping[str, TokenOutputs]) -> Tensor | None:
        """Embeddings of a batch's retain rows, [n, D], when the centre is a moving average."""
        if self.options.centre_refresh != "batch_ema":
            return None
        retain = outputs["retain"]
        return sentence_embedding(retain, tokens=self.options.embed_tokens).detach()[retain.valid]

    def remember(
        self, step: int, forget: Sequence[Batch], results: Sequence[ObjectiveSums]
    ) -> None:
        """Store what the next visit calls the past, and move a moving centre.

        Args:
            step: Number of the step, from 0.
            forget: The forget rows of this process's micro-batches.
            results: What the objective gave for each of them.
        """
        if self.options.previous == "previous_step":
            # The next batch under the parameters of this step, that is, one step earlier.
            upcoming = sorted({pick.forget for pick in self.plan.step(step + 1)})
            self.state.remember(torch.tensor(upcoming), self._embed("forget", upcoming))
        elif self.options.previous == "last_visit":
            self._remember_visits(forget, results)
        if self.options.centre_refresh == "batch_ema":
            found = [row for sums in results for row in _present(sums.retain_embeddings).cpu()]
            rows = gather_objects(self.passes.accelerator, found)
            self.state.update_centre(torch.stack(rows).mean(0))

    def _remember_visits(self, forget: Sequence[Batch], results: Sequence[ObjectiveSums]) -> None:
        found = []
        for rows, sums in zip(forget, results, strict=True):
            embeddings = _present(sums.embeddings).cpu()
            kept = rows.valid.nonzero()[:, 0].tolist()
            found += [(int(rows.index[i]), embeddings[i]) for i in kept]
        pairs = gather_objects(self.passes.accelerator, found)
        index = torch.tensor([pair[0] for pair in pairs])
        self.state.remember(index, torch.stack([pair[1] for pair in pairs]))

    def _embed(self, stream: str, index: Sequence[int] | None = None) -> Tensor:
        """Sentence embeddings of a stream under the current model, [n, D]."""
        rows = self.passes.over(
            stream,
            lambda out: list(sentence_embedding(out, tokens=self.options.embed_tokens)),
            reads=frozenset({"hidden"}),
            index=index,
        )
        return torch.stack(rows)

    def _centre(self) -> Tensor:
        """Mean embedding of the whole retain set, [D]."""
        return self._embed("retain").mean(0)


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "an objective with entanglement embeds its rows"
    return value
