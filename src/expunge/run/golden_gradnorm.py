"""Golden gradient norms: a stored model of one layer, scored as real models are."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from expunge.evaluation.gradnorm import LabelledTokens, gradient_norms
from expunge.metrics import Values
from expunge.metrics.privacy import gradnorm_score
from expunge.run.golden_losses import tensor


class TableModel(nn.Module):
    """Logits that depend on the current token alone: W[token] + b.

    Args:
        table: W, a row of logits per token, [V, V].
        bias: b, [V].
    """

    def __init__(self, table: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.bias = nn.Parameter(bias)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """A record with `logits`, [B, T, V]."""
        return SimpleNamespace(logits=self.table[input_ids] + self.bias)


def gradnorm_scores(group: Mapping[str, Any], result: Mapping[str, Any], side: str) -> Values:
    """Scores of one side of a golden group, from its stored tokens and model.

    Args:
        group: Has `gradnorm_model` with W and b, and `inputs` with tokens and labels by side.
        result: The stored result; gives the order p of the norm.
        side: "forget" or "holdout".
    """
    stored = group["gradnorm_model"]
    model = TableModel(tensor(stored["W"]), tensor(stored["b"]))
    rows = group["inputs"][side]
    samples = [
        _sample(ids, labels) for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    norms = gradient_norms(model, samples, p=float(result["p"]))
    return gradnorm_score(norms)


def _sample(ids: list[int], labels: list[int]) -> LabelledTokens:
    """The tokens up to the last labelled one, split where the labels begin."""
    places = [t for t, label in enumerate(labels) if label != -100]
    first, end = (places[0], places[-1] + 1) if places else (len(ids), len(ids))
    return LabelledTokens(ids[:first], ids[first:end])
