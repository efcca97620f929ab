"""How plausible answers are to a model that does not know the facts, and the file that says so."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.files import atomic_write_json
from expunge.data.proxies import texts_key
from expunge.data.rows import RowSet
from expunge.data.templates import Template


class MeanNll(NamedTuple):
    """Mean negative log-likelihood per token, in nats: over tokens first, then over questions."""

    proxies: float
    truths: float


def mean_nll(
    model: Any,
    template: Template,
    rows: RowSet,
    proxies: Sequence[str],
    *,
    batch_tokens: int = 4096,
) -> MeanNll | None:
    """How likely a model finds the proxies and the true answers of `rows`.

    The end token counts as part of an answer. A question is left out where prompt and answer do not
    fit into the model's context.

    Args:
        model: A model that does not know the facts, in eval mode or not.
        template: Writes its conversations.
        rows: Questions and true answers.
        proxies: One per row.
        batch_tokens: Tokens per forward pass, padding included.

    Returns:
        The means, None if no question fits.
    """
    from expunge.evaluation.answers import AnswerJob, score_answers
    from expunge.models.generate import context_length

    limit = context_length(model)
    jobs = []
    for row, proxy in zip(rows, proxies, strict=True):
        encoded = [template.encode(row.messages, text) for text in (proxy, row.answer)]
        prompt = encoded[0][0]
        longest = len(prompt) + max(len(answer) for _, answer in encoded)
        if limit is None or longest <= limit:
            answers = tuple(tuple(answer) for _, answer in encoded)
            jobs.append(AnswerJob(tuple(prompt), answers))
    means = [
        [-statistics.fmean(scores.logps) for scores in job.answers]
        for batch in score_answers(model, jobs, batch_tokens=batch_tokens)
        for job in batch
    ]
    if not means:
        return None
    return MeanNll(*(statistics.fmean(column) for column in zip(*means, strict=True)))


def quality_file(path: Path | str) -> Path:
    """Where the figures about a file of proxies or alternates are kept: NAME.quality.json."""
    path = Path(path)
    return path.with_name(f"{path.stem}.quality.json")


def write_quality(
    path: Path | str, summary: Mapping[str, Any], *, texts: Sequence[str], model: str
) -> None:
    """Write the figures beside the file they describe.

    Args:
        path: The file of proxies or alternates.
        summary: The figures.
        texts: The texts they were made from.
        model: The writing model.
    """
    content = {"texts": texts_key(texts), "model": model, "summary": dict(summary)}
    atomic_write_json(quality_file(path), content)


def known_nll(path: Path | str, *, texts: Sequence[str], model: str) -> MeanNll | None:
    """The likelihoods that an earlier call measured on the same texts with the same model."""
    try:
        content = json.loads(quality_file(path).read_text(encoding="utf-8"))
        summary = content["summary"]
        if content["texts"] != texts_key(texts) or summary["nll_model"] != model:
            return None
        return MeanNll(float(summary["mean_nll_proxies"]), float(summary["mean_nll_truths"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none yet, or broken: it is measured anew
