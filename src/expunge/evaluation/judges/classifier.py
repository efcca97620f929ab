"""Class probabilities of texts or pairs of texts: entailment, and clean text against gibberish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import InputError
from expunge.evaluation.judges.loading import explain_failure
from expunge.evaluation.judges.locate import label_fault
from expunge.evaluation.judges.settings import JudgeKind

# transformers writes a number like 1e30 where a tokenizer knows no limit.
_NO_LIMIT = 10**6


class Classifier:
    """A sequence classifier.

    Args:
        model: A `transformers` model for sequence classification.
        tokenizer: Its tokenizer.
        batch_size: Inputs per batch.

    Attributes:
        labels: Names of the classes, lower-cased.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32) -> None:
        names = {int(number): str(label) for number, label in model.config.id2label.items()}
        self.labels = tuple(names[number].lower() for number in sorted(names))
        self._model = model
        self._tokenizer = tokenizer
        padded = tokenizer.pad_token_id is not None and model.config.pad_token_id is not None
        self._batch_size = batch_size if padded else 1
        self._limit = _most_tokens(model, tokenizer)

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        kind: JudgeKind,
        *,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> Classifier:
        """The classifier in a folder, in float32.

        Args:
            folder: Its files.
            name: What messages call it.
            kind: What it is to judge; an NLI classifier needs a label "entailment".
            batch_size: Inputs per batch.
            device: Where it runs.

        Raises:
            InputError: It cannot be loaded, lacks some of its weights, or has the wrong labels.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with explain_failure(name), torch.random.fork_rng(devices=[]):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            # transformers fills what is missing with random numbers and only warns.
            missing = sorted(info["missing_keys"])
            if missing:
                raise InputError(
                    f"{name}: no trained classifier: the weights lack {len(missing)} of the "
                    f"model's tensors, such as {missing[0]}. Name another"
                )
            fault = label_fault(list(model.config.id2label.values()), kind)
            if fault:
                raise InputError(f"{name}: {fault}")
            return cls(model.to(device).eval(), tokenizer, batch_size=batch_size)

    def probabilities(
        self, inputs: Sequence[tuple[str, ...]], *, max_length: int | None = None
    ) -> NDArray[np.float64]:
        """Softmax probability of every class, [N, C].

        Args:
            inputs: Single texts or pairs, all alike; equal ones are classified once.
            max_length: Most tokens of an input, special ones included; what the model can read if
                None. Of a pair that is too long, the longer text is cut first.
        """
        # In an order of our own, so that batches and rounding do not depend on the caller's.
        distinct = sorted(set(inputs), key=lambda texts: (-sum(map(len, texts)), texts))
        limits = [limit for limit in (max_length, self._limit) if limit is not None]
        parts = [
            self._classify(distinct[start : start + self._batch_size], min(limits, default=None))
            for start in range(0, len(distinct), self._batch_size)
        ]
        found = np.concatenate([np.empty((0, len(self.labels))), *parts])
        place = {texts: number for number, texts in enumerate(distinct)}
        return found[np.array([place[texts] for texts in inputs], dtype=np.intp)]

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """The most probable label of every pair of premise and hypothesis, lower-cased.

        The text-pair input of arXiv:2410.08109, section 4.1 (entailment score).
        """
        return [self.labels[best] for best in self.probabilities(pairs).argmax(-1).tolist()]

    def clean_probabilities(self, texts: Sequence[str], *, max_length: int = 32) -> list[float]:
        """Probability of the label "clean", or of the first where none is called so; 0..1.

        Higher is more fluent. OpenUnlearning's gibberish metric (arXiv:2506.12618).

        Args:
            texts: The texts.
            max_length: Tokens of a text that are looked at.
        """
        clean = self.labels.index("clean") if "clean" in self.labels else 0
        found = self.probabilities([(text,) for text in texts], max_length=max_length)
        return [float(value) for value in found[:, clean]]

    def _classify(self, batch: Sequence[tuple[str, ...]], limit: int | None) -> NDArray[np.float64]:
        from expunge.models.generate import evaluating

        tokens = self._tokenizer(
            *(list(column) for column in zip(*batch, strict=True)),
            truncation=limit is not None,
            max_length=limit,
            padding=len(batch) > 1,
            return_tensors="pt",
        ).to(self._model.device)
        with evaluating(self._model):
            logits = self._model(**tokens).logits
        values: NDArray[np.float64] = logits.double().softmax(-1).cpu().numpy()
        return values


def _most_tokens(model: Any, tokenizer: Any) -> int | None:
    """Most tokens that tokenizer and model allow, if they tell."""
    told = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    limits = [limit for limit in told if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(limits, default=None)
