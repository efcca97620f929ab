"""Per-sample tables: what one model gave for every row of one probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COLUMNS = {
    "index": "position of the row in its probe",
    "question": "last user message; empty for plain text",
    "answer": "the true answer",
    "original_answer": "what the model said before unlearning; missing if no row has it",
    "prompt_tokens": "tokens before the answer",
    "answer_logps": "log-probability of every answer token, nats",
    "answer_greedy": "whether that token is the model's first choice there",
    "answer_logp_mean": "mean of log p over the vocabulary under p there, minus the entropy, nats",
    "answer_logp_var": "variance of log p over the vocabulary under p there, nats squared",
    "paraphrase_logps": "log-probabilities for the paraphrased answer; missing if no row has one",
    "perturbed_logps": "log-probabilities of each wrong answer; missing if no row has any",
    "generation": "what the model says itself; missing if the probe does not generate",
    "generation_ids": "its tokens",
    "generation_tokens": "how many",
    "finished": "the model ended it itself; false if it was cut at the limit",
}
"""Columns of a table and what they hold. Token sequences are lists, one per sample."""

ANNOTATIONS = {
    "generation_similarity": "cosine of the sentence embeddings of generation and original answer",
    "nli_generation_first": "entailment, neutral or contradiction: premise is the generation",
    "nli_reference_first": "the same with the true answer as premise",
    "clean_probability": "probability that the generation is no gibberish, by a classifier",
    "generation_base_nll": "mean negative log-likelihood of the generation under the base model",
    "answer_gradnorm": "norm of the gradient of the loss on the true answer",
    "answer_lower_nll": "mean negative log-likelihood of the lower-cased text, nats",
}
"""Columns that come from another model or another pass, added to a stored table on request."""


@dataclass(frozen=True, kw_only=True)
class ProbeTable:
    """The outputs of one model on one probe, in the order of the rows.

    Attributes:
        probe: Name of the probe.
        columns: By name, see `COLUMNS` and `ANNOTATIONS`; all of the same length.
        info: Where it comes from: key, model, tokenizer, template, data and settings, with
            fingerprints.
    """

    probe: str
    columns: Mapping[str, Sequence[Any]]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of {self.probe} have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, column: str) -> Sequence[Any]:
        return self.columns[column]

    def __contains__(self, column: object) -> bool:
        return column in self.columns
