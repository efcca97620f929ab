"""Log-probabilities of given answers, whatever they have in common computed once.

A job is a prompt with the answers that are to be scored after it. A batch of jobs is one row of
trees without padding (`models.trees`): the beginning that all prompts share, each prompt, and each
beginning that answers share are there once, in the layers and in the head. For a model that does
not take trees, prompts go through left-padded, and their key-value cache is repeated for the
answers. Logits exist only where an answer is predicted and only a chunk at a time, so the peak
memory is that of the model, one batch without its logits, and one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.decoding import evaluating, first_choice, forward_options, left_pad
from expunge.models.trees import TreeSupport, grow, plant, shared_beginning, tree_support, walking

# Entries of the logits that exist at once. Small enough on a CPU for the allocator to reuse memory
# instead of asking the system for new pages every time; large enough to keep an accelerator busy.
CHUNK_CPU = 2**23
CHUNK_ACCELERATOR = 2**26
# Entries of a chunk that are reduced together on a CPU: as many as its caches hold, since every
# number is looked at several times.
BLOCK_CPU = 2**19


class AnswerJob(NamedTuple):
    """A prompt and the answers to score after it.

    Attributes:
        prompt: Token ids; not empty.
        answers: Token ids of each answer; an empty one gets an empty score.
        moments: Of how many answers, counted from the first, the moments of the model's whole
            distribution are wanted. They cost a second look at every logit.
        greedy: Of how many answers, counted from the first, it is wanted whether tokens are the
            model's own first choice; None: of all.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    moments: int = 0
    greedy: int | None = None

    def wants(self) -> list[_Wanted]:
        """What is wanted of each answer."""
        greedy = len(self.answers) if self.greedy is None else self.greedy
        return [_Wanted(i < self.moments, i < greedy) for i in range(len(self.answers))]


class _Wanted(NamedTuple):
    """What is wanted of an answer beside log-probabilities."""

    moments: bool
    greedy: bool


class TokenScores(NamedTuple):
    """What is kept of one answer, one entry per token.

    Attributes:
        logps: Log-probabilities in nats, from a log-softmax in float32 or wider.
        greedy: The token is the model's own first choice there; empty if that was not asked for.
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
        share_prefix: Compute once what answers or prompts begin with. Exact up to rounding; switch
            it off for a model without a key-value cache.
    """
    head = _Head(model)
    with evaluating(model):
        trees = tree_support(model) if share_prefix else TreeSupport()
    pending = [(index, job) for index, job in enumerate(jobs) if any(job.answers)]
    empty = [
        ScoredJob(index, [TokenScores([], [])] * len(job.answers))
        for index, job in enumerate(jobs)
        if not any(job.answers)
    ]
    if empty:
        yield empty
    for batch in _batches(pending, batch_tokens):
        score = _layout([job for _, job in batch], trees, share_prefix)
        with evaluating(model):
            found = score(head, [job for _, job in batch])
        rows = zip(batch, _regroup(found, [len(job.answers) for _, job in batch]), strict=True)
        yield [ScoredJob(index, scores) for (index, _), scores in rows]


def _layout(
    jobs: list[AnswerJob], trees: TreeSupport, share_prefix: bool
) -> Callable[[_Head, list[AnswerJob]], list[TokenScores]]:
    """How a batch goes through the model."""
    if trees.fits(max(len(job.prompt) + _longest(job) for job in jobs)):
        return partial(_score_trees, together=trees.together)
    # A prompt with a single answer has nothing to share: one pass is cheaper than two.
    shared = share_prefix and any(len(job.answers) > 1 for job in jobs)
    return _score_shared if shared else _score_plain


def _longest(job: AnswerJob) -> int:
    return max(len(answer) for answer in job.answers)


def _batches(
    jobs: Sequence[tuple[int, AnswerJob]], batch_tokens: int
) -> Iterator[list[tuple[int, AnswerJob]]]:
    """Jobs of similar length together, as many as the budget allows, at least one."""
    # The number of answers comes first: a batch of single answers takes the plain path.
    order = sorted(
        jobs,
        key=lambda item: (
            -len(item[1].answers),
            -_longest(item[1]),
            -len(item[1].prompt),
            item[0],
        ),
    )
    batch: list[tuple[int, AnswerJob]] = []
    lines, prompt, answer = 0, 0, 0
    for item in order:
        job = item[1]
        wider = max(prompt, len(job.prompt)) + max(answer, _longest(job))
        if batch and (
            (lines + len(job.answers)) * wider > batch_tokens
            or (len(job.answers) == 1) != (len(batch[0][1].answers) == 1)
        ):
            yield batch
            batch, lines, prompt, answer = [], 0, 0, 0
        batch.append(item)
        lines += len(job.answers)
        prompt, answer = max(prompt, len(job.prompt)), max(answer, _longest(job))
    if batch:
        yield batch


def _regroup(scores: list[TokenScores], counts: list[int]) -> list[list[TokenScores]]:
    groups, start = [], 0
    for count in counts:
        groups.append(scores[start : start + count])
        start += count
    return groups


def _score_trees(head: _Head, jobs: list[AnswerJob], *, together: bool) -> list[TokenScores]:
    """All jobs in one row, every common beginning once."""
    trees = [grow(job.prompt, job.answers) for job in jobs]
    trunk = shared_beginning([job.prompt for job in jobs])
    forest = plant(trees, trunk=trunk, device=head.device, together=together)
    # The place in the row that predicts each answer token, answer by answer. Several answers may be
    # predicted at the same place.
    places = torch.tensor(
        [
            forest.place(number, place)
            for number, tree in enumerate(trees)
            for path in tree.paths
            for place in path
        ]
    )
    columns, which = places.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    columns = columns.to(head.device)
    with walking(head.model, forest) as arguments:
        states = head.states((torch.zeros_like(columns), columns), **arguments)
    return head.scores(states, jobs, which.to(head.device))


def _score_plain(head: _Head, jobs: list[AnswerJob]) -> list[TokenScores]:
    """One sequence per answer, right-padded, one forward pass."""
    pairs = [(job.prompt, answer) for job in jobs for answer in job.answers]
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
    return head.scores(states, jobs)


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
    return head.scores(torch.cat(ordered), jobs)


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
        self._space: Tensor | None = None

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
        self, states: Tensor, jobs: Sequence[AnswerJob], which: Tensor | None = None
    ) -> list[TokenScores]:
        """Scores of every answer of every job.

        Args:
            states: From `states`, [N, D] or [N, V].
            jobs: What to score.
            which: For each answer token the line of `states` that predicts it, [M]; None: there is
                one line per token, in order.
        """
        answers = [answer for job in jobs for answer in job.answers]
        wants = [wanted for job in jobs for wanted in job.wants()]
        sizes = [len(answer) for answer in answers]
        targets = torch.tensor([token for answer in answers for token in answer])
        targets = targets.to(self.device)
        lines = torch.arange(len(targets), device=self.device) if which is None else which
        looks = [_marked(lines, sizes, kind, len(states)) for kind in zip(*wants, strict=True)]
        # Targets in the order of the lines that predict them, so that a chunk finds its own.
        order = lines.argsort(stable=True)
        ends = torch.bincount(lines, minlength=len(states)).cumsum(0)
        vocabulary = states.shape[-1] if self._layer is None else self._layer.weight.shape[0]
        budget = CHUNK_CPU if self.device.type == "cpu" else CHUNK_ACCELERATOR
        size = max(16, budget // int(vocabulary))
        room = self._room(size, states)
        parts, done = [], 0
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            upto = int(ends[chunk][-1])
            asked = order[done:upto]
            logits = self._logits(states[chunk], room)
            parts.append(
                _reduce(
                    logits,
                    lines[asked] - start,
                    targets[asked],
                    moments=looks[0][chunk],
                    greedy=looks[1][chunk],
                )
            )
            done = upto
            del logits  # before the next chunk is made: one exists at a time
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        logps, greedy, means, variances = (
            torch.split(torch.cat(part)[back], sizes) for part in zip(*parts, strict=True)
        )
        return [
            TokenScores(
                logps[i].tolist(),
                greedy[i].tolist() if wanted.greedy else [],
                means[i].tolist() if wanted.moments else [],
                variances[i].tolist() if wanted.moments else [],
            )
            for i, wanted in enumerate(wants)
        ]

    def _room(self, lines: int, states: Tensor) -> Tensor | None:
        """Memory for the logits of a chunk, [lines, V], taken once for all batches.

        A C library that is asked for it again and again puts it in another place each time and
        keeps what it had. None if the head makes its logits by itself.
        """
        plain: bool = type(self._layer) is nn.Linear and getattr(self._layer, "bias", 0) is None
        if not plain:
            return None
        if self._space is None or len(self._space) < lines:
            self._space = None  # not two at a time
            self._space = states.new_empty(lines, len(self._layer.weight))
        return self._space

    def _logits(self, states: Tensor, room: Tensor | None) -> Tensor:
        """Logits of a chunk of states, [N, V]."""
        if self._layer is None:
            return states
        if room is None:
            return self._layer(states)  # type: ignore[no-any-return]
        return torch.mm(states, self._layer.weight.T, out=room[: len(states)])

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


def _marked(lines: Tensor, sizes: list[int], wanted: Sequence[bool], count: int) -> Tensor:
    """Of which of `count` lines something is wanted: those of the answers that want it, bool."""
    chosen = torch.tensor(wanted).repeat_interleave(torch.tensor(sizes)).to(lines.device)
    marked = torch.zeros(count, dtype=torch.bool, device=lines.device)
    marked[lines[chosen]] = True
    return marked


class _Reduced(NamedTuple):
    """What is left of [N, V] logits for M targets, [M] each; 0 where something is not wanted."""

    logps: Tensor
    greedy: Tensor
    means: Tensor
    variances: Tensor


def _reduce(
    logits: Tensor, lines: Tensor, targets: Tensor, *, moments: Tensor, greedy: Tensor
) -> _Reduced:
    """Log-softmax at the targets, whether they are the largest, and moments of distributions.

    Args:
        logits: [N, V].
        lines: The line of each target, [M].
        targets: Token ids, [M].
        moments: Of which lines the moments are wanted, bool, [N].
        greedy: Of which lines the first choice is wanted, bool, [N].
    """
    entries = BLOCK_CPU if logits.device.type == "cpu" else logits.numel()
    size = max(1, entries // logits.shape[-1])
    parts = [
        _reduce_block(logits[place], moments[place], greedy[place])
        for place in (slice(start, start + size) for start in range(0, len(logits), size))
    ]
    top, total, first, mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
    picked = logits[lines, targets].to(top.dtype)
    return _Reduced(
        (picked - top[lines]) - total[lines],
        first[lines] == targets,
        mean[lines],
        variance[lines],
    )


def _reduce_block(values: Tensor, moments: Tensor, greedy: Tensor) -> tuple[Tensor, ...]:
    """Of each line: largest logit, log-sum-exp above it, first choice, mean and variance of log p.

    The sum is taken in float32 or wider. First choice and moments are found for the lines that
    want them, and are -1 and 0 elsewhere.
    """
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    top = values.amax(-1)
    first = torch.full(top.shape, -1, dtype=torch.long, device=top.device)
    if greedy.any():
        first[greedy] = first_choice(values[greedy])
    shifted = values - top[:, None]
    mean, variance = torch.zeros_like(top), torch.zeros_like(top)
    if not moments.any():
        return top, shifted.exp_().sum(-1).log_(), first, mean, variance
    wanted = moments.nonzero()[:, 0]
    chosen = shifted.index_select(0, wanted)
    shares = shifted.exp_()
    total = shares.sum(-1)
    # E[log p] = E[z] - log Z and Var[log p] = Var[z] for shifted logits z; two passes, since
    # E[z^2] - E[z]^2 loses all digits where the model is sure.
    shares = shares.index_select(0, wanted)
    shares /= total[wanted, None]
    # A logit of -inf has no share, and 0 times inf would be no number; nor has any this small.
    chosen.clamp_(min=-1e4)
    expected = torch.linalg.vecdot(shares, chosen)
    spread = chosen.sub_(expected[:, None]).square_()
    mean[wanted] = expected - total[wanted].log()
    variance[wanted] = torch.linalg.vecdot(shares, spread)
    return top, total.log(), first, mean, variance
