"""The comparator: a training step as textbooks and public code write it.

Right-padded batches, one forward pass per stream, logits of every position, cross-entropy over all
of them with -100 ignored, for NPO a second frozen model in memory with its own forward pass,
gradients clipped, plain AdamW of torch. Nothing is made slower than it has to be for that: rows are
tokenised beforehand and nothing is logged. With `doubled=True` the model also computes its own loss
in passes whose loss is then computed anew, as open-unlearning does in NPO; its values are the same.

Losses: shared notation of docs/reference/methods.md. GA+GD: `-CE(forget) + CE(retain)`. NPO+GD
(arXiv:2404.05868): `2/beta * mean softplus(beta * (S_ref - S)) + CE(retain)`, S the NLL of a whole
answer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Literal["graddiff", "npo_gd"]

IGNORED = -100


class Row(Protocol):
    """A tokenised row: prompt tokens carry no label."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Prompt and answer."""

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""


@dataclass(frozen=True, kw_only=True)
class NaiveSettings:
    """How the comparator trains; the defaults are those of the released codes.

    Attributes:
        loss: What is minimised.
        beta: Inverse temperature of NPO.
        learning_rate: Constant.
        weight_decay: Of matrices; vectors are exempt.
        max_grad_norm: Gradients are scaled down to this norm.
        autocast: Compute matrix products in bfloat16 whatever the weights are stored in.
        doubled: Let the model compute its own loss too where it is not used.
    """

    loss: Loss
    beta: float = 0.1
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    autocast: bool = False
    doubled: bool = False


class Losses(NamedTuple):
    """Terms of a step before the update; their sum is what was minimised."""

    forget: float
    retain: float

    @property
    def total(self) -> float:
        """The loss."""
        return self.forget + self.retain


class NaiveTrainer:
    """Trains a model in place, one batch per step.

    Args:
        model: A causal language model on the CPU.
        settings: Loss and optimiser.
        pad_token_id: Filling of short rows.
    """

    def __init__(self, model: nn.Module, settings: NaiveSettings, *, pad_token_id: int) -> None:
        self.model = model.train()
        self.settings = settings
        self.pad_token_id = pad_token_id
        self.reference: nn.Module | None = None
        if settings.loss == "npo_gd":
            self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        parameters = list(model.parameters())
        groups = [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)

    def step(self, rows: Mapping[str, Sequence[Row]]) -> Losses:
        """One optimizer step on the rows of `forget` and `retain`; the losses before it."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.autocast):
            forget = self._forget(padded(rows["forget"], self.pad_token_id))
            batch = padded(rows["retain"], self.pad_token_id)
            retain = cross_entropy(self.model(**_inputs(batch)).logits, batch["labels"])
            loss = forget + retain
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Losses(forget=float(forget.detach()), retain=float(retain.detach()))

    def _forget(self, batch: dict[str, Tensor]) -> Tensor:
        if self.settings.loss == "graddiff":
            return -cross_entropy(self.model(**_inputs(batch)).logits, batch["labels"])
        assert self.reference is not None, "NPO has one"
        nll = self._sequence_nll(self.model, batch)
        with torch.no_grad():
            reference_nll = self._sequence_nll(self.reference, batch)
        beta = self.settings.beta
        return -2 / beta * F.logsigmoid(beta * (nll - reference_nll)).mean()

    def _sequence_nll(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed NLL of each answer, [B]."""
        own = {"labels": batch["labels"]} if self.settings.doubled else {}
        result: Any = model(**_inputs(batch), **own)
        labels = batch["labels"][:, 1:].contiguous()
        logits = result.logits[:, :-1].contiguous().float()
        found = F.cross_entropy(
            logits.transpose(-1, -2), labels, ignore_index=IGNORED, reduction="none"
        )
        return found.sum(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean NLL of all labelled tokens of a batch, as transformers computes it.

    Args:
        logits: [B, T, V]; position t predicts token t + 1.
        labels: [B, T], -100 where a token does not count.
    """
    shifted = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].contiguous()
    upcast = logits.float().view(-1, logits.shape[-1])
    return F.cross_entropy(upcast, shifted.view(-1), ignore_index=IGNORED)


def padded(rows: Sequence[Row], pad_token_id: int) -> dict[str, Tensor]:
    """Rows filled up on the right to the longest of them, [B, T] each."""
    length = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        ids = torch.tensor(list(row.input_ids))
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        labels[i, row.num_prompt : len(ids)] = ids[row.num_prompt :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _inputs(batch: dict[str, Tensor]) -> dict[str, Any]:
    kept = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return {**kept, "use_cache": False}
