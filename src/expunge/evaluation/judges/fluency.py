"""How surprising a text is to the base model: the nats behind its perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class FluencyModel(NamedTuple):
    """A causal language model that judges fluency, and its tokenizer."""

    model: Any
    tokenizer: Any


def mean_nlls(
    judge: FluencyModel, texts: Sequence[str], *, batch_tokens: int = 4096
) -> list[float]:
    """Mean negative log-likelihood per token of every bare text, in nats; lower is more fluent.

    exp of it is the perplexity. No chat template; the beginning-of-sequence token goes in front if
    the tokenizer adds one, else the first token is only given and not predicted. nan where no token
    is predicted. Text beyond the model's context is cut off.

    Args:
        judge: The model.
        texts: The texts; equal ones are scored once.
        batch_tokens: Tokens per batch, padding included. Moves no number beyond rounding.
    """
    from expunge.data.tokens import leading_ids, text_ids
    from expunge.evaluation.answers import AnswerJob, score_answers
    from expunge.models.generate import context_length

    front = leading_ids(judge.tokenizer)
    limit = context_length(judge.model)
    jobs = {}
    for text in sorted(set(texts)):
        ids = [*front, *text_ids(judge.tokenizer, text)][:limit]
        given = max(1, len(front))
        if len(ids) > given:
            jobs[text] = AnswerJob(tuple(ids[:given]), (tuple(ids[given:]),))
    names = list(jobs)
    found: dict[str, float] = {}
    for batch in score_answers(judge.model, list(jobs.values()), batch_tokens=batch_tokens):
        for position, (scores,) in batch:
            found[names[position]] = -math.fsum(scores.logps) / len(scores.logps)
    return [found.get(text, math.nan) for text in texts]
