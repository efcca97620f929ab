"""Log-probabilities of given answers, each question's prompt computed once for all its answers.

A job is a prompt with the answers that are to be scored after it. The prompts of a batch go through
the model once, left-padded; their key-value cache is repeated for the answers, which then go
through together. Logits exist only for answer positions and only a chunk at a time, so the peak
memory is that of the model, the cache of one batch and one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.generate import evaluating, forward_options, left_pad

# Entries of the logits that exist at once. Small enough on a CPU for the allocator to reuse memory
# instead of asking the system for new pages every time; large enough to keep an accelerator busy.
CHUNK_CPU = 2**23
CHUNK_ACCELERATOR = 2**26


class AnswerJob(NamedTuple):
    """A prompt and the answers to score after it.

    Attributes:
        prompt: Token ids; not empty.
        answers: Token ids of each answer; an empty one gets an empty score.
        moments: Of how many answers, counted from the first, the moments of the model's whole
            distribution are wanted. They cost a second look at every logit.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    moments: int = 0


class TokenScores(NamedTuple):
    """What is kept of one answer, one entry per token.

    Attributes:
        logps: Log-probabilities in nats, from a log-softmax in float32 or wider.
        greedy: The token is the model's own first choice there.
        means: Mean of log p over the vocabulary under p, minus the entropy, in nats; empty if no
            moments were asked for.
        variances: Variance of log p over the vocabulary under p; likewise.
    """

    logps: list[float]
    greedy: list[bool]
    means: Sequence[float] = ()
    variances: Sequence[float] = ()


class ScoredJob(NamedTuple):
    """Scores of a job's answers and the job's position in the input."""

    position: int
    answers: list[TokenScores]


def score_answers(
    model: nn.Module,
    jobs: Sequence[AnswerJob],
    *,
    batch_tokens: int = 4096,
    share_prefix: bool = True,
) -> Iterator[list[ScoredJob]]:
    """Score every answer of every job, batch by batch; longest jobs first.

    Args:
        model: A causal language model.
        jobs: What to score.
        batch_tokens: Tokens of prompts and answers per batch, padding included, counted as if every
            answer had a prompt of its own.
        share_prefix: Compute each prompt once. Exact up to rounding; switch it off for a model
            without a key-value cache.
    """
    head = _Head(model)
    pending = [(index, job) for index, job in enumerate(jobs) if any(job.answers)]
    empty = [
        ScoredJob(index, [TokenScores([], [])] * len(job.answers))
        for index, job in enumerate(jobs)
        if not any(job.answers)
    ]
    if empty:
        yield empty
    for batch in _batches(pending, batch_tokens):
        # A prompt with a single answer has nothing to share: one pass is cheaper than two.
        shared = share_prefix and any(len(job.answers) > 1 for _, job in batch)
        with evaluating(model):
            score = _score_shared if shared else _score_plain
            found = score(head, [job for _, job in batch])
        rows = zip(batch, _regroup(found, [len(job.answers) for _, job in batch]), strict=True)
        yield [ScoredJob(index, scores) for (index, _), scores in rows]


def _batches(
    jobs: Sequence[tuple[int, AnswerJob]], batch_tokens: int
) -> Iterator[list[tuple[int, AnswerJob]]]:
    """Jobs of similar length together, as many as the budget allows, at least one."""

    def longest(job: AnswerJob) -> int:
        return max(len(answer) for answer in job.answers)

    # The number of answers comes first: a batch of single answers takes the plain path.
    order = sorted(
        jobs,
        key=lambda item: (
            -len(item[1].answers),
            -longest(item[1]),
            -len(item[1].prompt),
            item[0],
        ),
    )
    batch: list[tuple[int, AnswerJob]] = []
    lines, prompt, answer = 0, 0, 0
    for item in order:
        job = item[1]
        wider = max(prompt, len(job.prompt)) + max(answer, longest(job))
        if batch and (
            (lines + len(job.answers)) * wider > batch_tokens
            or (len(job.answers) == 1) != (len(batch[0][1].answers) == 1)
        ):
            yield batch
            batch, lines, prompt, answer = [], 0, 0, 0
        batch.append(item)
        lines += len(job.answers)
        prompt, answer = max(prompt, len(job.prompt)), max(answer, longest(job))
    if batch:
        yield batch


def _regroup(scores: list[TokenScores], counts: list[int]) -> list[list[TokenScores]]:
    groups, start = [], 0
    for count in counts:
        groups.append(scores[start : start + count])
        start += count
    return groups


def _score_plain(head: _Head, jobs: list[AnswerJob]) -> list[TokenScores]:
    """One sequence per answer, right-padded, one forward pass."""
    pairs = [(job.prompt, answer) for job in jobs for answer in job.answers]
    wanted = [number < job.moments for job in jobs for number in range(len(job.answers))]
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    ids = torch.zeros(len(pairs), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    lines: list[int] = []
    columns: list[int] = []
    for line, (prompt, answer) in enumerate(pairs):
        ids[line, : lengths[line]] = torch.tensor((*prompt, *answer), dtype=torch.long)
        mask[line, : lengths[line]] = 1
        # The token at place t is predicted at place t - 1.
        lines += [line] * len(answer)
        columns += range(len(prompt) - 1, lengths[line] - 1)
    device = head.device
    ids, mask = ids.to(device), mask.to(device)
    states = head.states(
        (torch.tensor(lines, device=device), torch.tensor(columns, device=device)),
        input_ids=ids,
        attention_mask=mask,
        use_cache=False,
    )
    return head.scores(states, [answer for _, answer in pairs], wanted)


def _score_shared(head: _Head, jobs: list[AnswerJob]) -> list[TokenScores]:
    """Prompts once, then all answers on the repeated cache, right-padded."""
    from transformers import DynamicCache

    device = head.device
    ids, mask = left_pad([job.prompt for job in jobs], 0, device)
    cache = DynamicCache(config=getattr(head.model, "config", None))
    ends = torch.arange(len(jobs), device=device), torch.full((len(jobs),), -1, device=device)
    first = head.states(
        ends,
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    answers = [answer for job in jobs for answer in job.answers]
    owners = [number for number, job in enumerate(jobs) for _ in job.answers]
    owner = torch.tensor(owners, device=device)
    more = any(len(answer) > 1 for answer in answers)
    rest = _rest_states(head, cache, answers, owner, mask) if more else first[:0]
    # Back into the order of the answers' tokens: the prompt predicts the first one of each.
    ordered, start = [], 0
    for number, answer in zip(owners, answers, strict=True):
        if answer:
            ordered += [first[number : number + 1], rest[start : start + len(answer) - 1]]
            start += len(answer) - 1
    wanted = [number < job.moments for job in jobs for number in range(len(job.answers))]
    return head.scores(torch.cat(ordered), answers, wanted)


def _rest_states(
    head: _Head, cache: Any, answers: list[tuple[int, ...]], owner: Tensor, prompt_mask: Tensor
) -> Tensor:
    """States that predict every answer token but the first, [N, D], answer by answer.

    At least one answer has a second token.
    """
    device = head.device
    width = max(len(answer) for answer in answers) - 1
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, answer in enumerate(answers):
        fed = answer[:-1]  # nothing is predicted from the last token
        ids[line, : len(fed)] = torch.tensor(fed, dtype=torch.long)
        mask[line, : len(fed)] = 1
    places = mask.nonzero().to(device)
    ids, mask = ids.to(device), mask.to(device)
    cache.batch_select_indices(owner)
    before = prompt_mask[owner]
    return head.states(
        (places[:, 0], places[:, 1]),
        input_ids=ids,
        attention_mask=torch.cat([before, mask], dim=-1),
        position_ids=before.sum(-1, keepdim=True) + torch.arange(width, device=device),
        past_key_values=cache,
        use_cache=True,
    )


class _Head:
    """The model in two halves: final states of chosen positions, and logits of them by chunks.

    Few models do more with the last hidden states than one linear layer (scaling, soft caps).
    Whether this one does is seen by comparing both ways on a few tokens; if they differ,
    "states" are whole rows of logits.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._options = forward_options(model)
        self._layer = self._find_layer()

    def states(self, places: tuple[Tensor, Tensor], **inputs: Any) -> Tensor:
        """States at the given lines and columns, [N, D]; [N, V] if the head cannot be split off.

        Args:
            places: Lines and columns, [N] each; columns may count from the end.
            **inputs: Arguments of the model's forward, as far as it takes them.
        """
        if "position_ids" not in self._options:
            inputs.pop("position_ids", None)
        if self._layer is None:
            if "logits_to_keep" not in self._options:
                logits: Tensor = self.model(**inputs).logits
                return logits[places]
            columns, which = places[1].unique(return_inverse=True)  # type: ignore[no-untyped-call]
            kept: Tensor = self.model(**inputs, logits_to_keep=columns).logits
            return kept[places[0], which]
        hidden: Tensor = _decoder(self.model)(**inputs).last_hidden_state
        return hidden[places]

    def scores(
        self, states: Tensor, answers: list[tuple[int, ...]], wanted: list[bool]
    ) -> list[TokenScores]:
        """Scores of every answer.

        Args:
            states: From `states`, one line per answer token, [N, D] or [N, V].
            answers: The answers; N tokens in all.
            wanted: Of which answers the moments are wanted.
        """
        targets = torch.tensor([token for answer in answers for token in answer])
        targets = targets.to(self.device)
        sizes = [len(answer) for answer in answers]
        marked = torch.tensor(wanted).repeat_interleave(torch.tensor(sizes)).to(self.device)
        vocabulary = states.shape[-1] if self._layer is None else self._layer.weight.shape[0]
        budget = CHUNK_CPU if self.device.type == "cpu" else CHUNK_ACCELERATOR
        size = max(16, budget // int(vocabulary))
        parts = []
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            logits = states[chunk] if self._layer is None else self._layer(states[chunk])
            parts.append(_reduce(logits, targets[chunk], marked[chunk]))
        logps, greedy, means, variances = (
            torch.split(torch.cat(part), sizes) for part in zip(*parts, strict=True)
        )
        return [
            TokenScores(
                logps[i].tolist(),
                greedy[i].tolist(),
                means[i].tolist() if wanted[i] else [],
                variances[i].tolist() if wanted[i] else [],
            )
            for i in range(len(answers))
        ]

    def _find_layer(self) -> Any:
        """The linear layer that makes logits of hidden states, or None if there is more to it."""
        outer: Any = self.model
        inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
        find: Any = getattr(inner, "get_output_embeddings", lambda: None)
        layer: Any = find()
        if not hasattr(layer, "weight") or _decoder(self.model) is None:
            return None
        ids = torch.arange(4, device=self.device)[None] % layer.weight.shape[0]
        with evaluating(self.model):
            try:
                hidden = _decoder(self.model)(input_ids=ids, use_cache=False).last_hidden_state
                split = layer(hidden)
            except (AttributeError, RuntimeError, TypeError, ValueError):
                return None
            whole = self.model(input_ids=ids, use_cache=False).logits
        return layer if torch.equal(split, whole) else None


def _decoder(model: Any) -> Any:
    """The model without its head, as transformers names it; None if there is no such part."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(inner, "base_model", None)
    return None if decoder is inner else decoder


class _Reduced(NamedTuple):
    """What is left of [N, V] logits, [N] each; moments are 0 where they are not wanted."""

    logps: Tensor
    greedy: Tensor
    means: Tensor
    variances: Tensor


def _reduce(logits: Tensor, targets: Tensor, marked: Tensor) -> _Reduced:
    """Log-softmax at the targets, whether they are the largest, and moments of marked lines.

    Without a second [N, V], but for the marked lines.
    """
    narrow = logits.dtype in (torch.float16, torch.bfloat16)
    values = logits.float() if narrow else logits.clone()
    top, first = values.max(-1)
    values -= top[:, None]
    picked = values.gather(-1, targets[:, None])[:, 0]
    shifted = values[marked]
    total = values.exp_().sum(-1)
    means, variances = torch.zeros_like(picked), torch.zeros_like(picked)
    if len(shifted):
        # E[log p] = E[z] - log Z and Var[log p] = Var[z] for shifted logits z; two passes, since
        # E[z^2] - E[z]^2 loses all digits where the model is sure.
        shares = values[marked].div_(total[marked, None])
        # A logit of -inf has no share, and 0 times inf would be no number.
        shifted.masked_fill_(shifted == -torch.inf, 0.0)
        mean = torch.einsum("nv,nv->n", shares, shifted)
        spread = shifted.sub_(mean[:, None]).square_()
        means[marked] = mean - total[marked].log()
        variances[marked] = torch.einsum("nv,nv->n", shares, spread)
    return _Reduced(picked - total.log(), first == targets, means, variances)
