"""The worked example of EGU and EGUP as records: stored hidden states and likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from expunge.models.outputs import TokenOutputs, outputs_from_logits
from expunge.objectives.entanglement import sentence_embedding
from expunge.run.golden_losses import tensor


def embed(hidden: Any, attention_mask: Any) -> Tensor:
    """Sentence embeddings of stored hidden states, [B, D]."""
    return sentence_embedding(hidden_outputs(tensor(hidden), torch.tensor(attention_mask)))


def hidden_outputs(hidden: Tensor, attention_mask: Tensor) -> TokenOutputs:
    """A record in which only the hidden states mean something."""
    rows, length = attention_mask.shape
    logits = torch.zeros(rows, length, 2, dtype=torch.float64)
    labels = torch.zeros(rows, length, dtype=torch.long).masked_fill(attention_mask == 0, -100)
    return outputs_from_logits(logits, labels, attention_mask, hidden=hidden)


def answer_mask(inputs: Mapping[str, Any]) -> Tensor:
    """Label positions of the rows, bool, [B, T]."""
    counts = torch.tensor(inputs["num_answer_tokens"])
    return torch.arange(int(counts.max()))[None] < counts[:, None]


def token_logps(inputs: Mapping[str, Any], key: str) -> Tensor:
    """Log-probabilities with the stored token-mean NLL `key` in every row, [B, T]."""
    mask = answer_mask(inputs)
    return -tensor(inputs[key])[:, None].expand(-1, mask.shape[1]) * mask


def nll_outputs(
    inputs: Mapping[str, Any],
    key: str,
    ref_key: str,
    *,
    logps: Tensor | None = None,
    hidden: Tensor | None = None,
) -> TokenOutputs:
    """Rows whose token-mean NLL is the stored `key`, and `ref_key` under the reference model.

    Args:
        inputs: Inputs of the worked example.
        key: Name of the NLLs of the rows.
        ref_key: Name of those under the reference model.
        logps: Log-probabilities to take instead, such as a leaf of a graph, [B, T].
        hidden: Hidden states to take instead, [B, L, D].
    """
    attention_mask = torch.tensor(inputs["attention_mask"])
    hidden = tensor(inputs["hidden"]) if hidden is None else hidden
    mask = answer_mask(inputs)
    rows, width = mask.shape
    return TokenOutputs(
        logps=token_logps(inputs, key) if logps is None else logps,
        mask=mask,
        nonpad=mask,
        predicts=mask,
        not_last=mask,
        targets=torch.zeros_like(mask, dtype=torch.long),
        num_labels=mask.sum(-1),
        valid=torch.ones(rows, dtype=torch.bool),
        index=torch.arange(rows),
        columns=torch.arange(width),
        ref_logps=token_logps(inputs, ref_key),
        hidden=hidden,
        hidden_mask=attention_mask.bool(),
        label_mask=attention_mask.bool(),
    )
