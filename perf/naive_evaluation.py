"""A textbook TOFU evaluation: padded batches, full logits, one pass per metric.

What public code does (open-unlearning, arXiv:2506.12618, src/evals): every metric goes through its
rows by itself, every wrong answer is a pass of its own, Min-K%++ takes two forward passes per
batch, and text is written by `model.generate` in left-padded batches with a fixed
`max_new_tokens`. What it computes once and reads twice is computed once here as well: the
probability of true answers that the truth ratio of authors and facts needs. Batches have 32 rows,
the default of its TOFU metrics. Logits stay in the type of the model, which is float32 for float32
weights.

Only data and templates are shared with Expunge, so that both sides see the same tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from expunge.data import Template
    from expunge.data.rows import Row
    from expunge.evaluation.probes import Probe

IGNORE = -100
BATCH_SIZE = 32
K = 0.4
EPSILON = 1e-10


class Example(NamedTuple):
    """One conversation as tokens."""

    prompt: list[int]
    answer: list[int]


class Values(NamedTuple):
    """What one metric found: a value or a text per row."""

    stage: str
    probe: str
    metric: str
    values: Sequence[float] | Sequence[str]


class NaiveEvaluation:
    """All metrics of TOFU and four membership attacks on one model.

    Args:
        model: A causal language model in evaluation mode.
        template: Writes rows; has the tokenizer.
        probes: Forget, retain, real_authors, world_facts and, for attacks, holdout.
        max_new_tokens: Tokens of every generated answer.
        batch_size: Rows per batch.
    """

    def __init__(
        self,
        model: Any,
        template: Template,
        probes: Sequence[Probe],
        *,
        max_new_tokens: int = 200,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model, self.template = model, template
        self.tokenizer: Any = template.tokenizer
        self.probes = {probe.name: probe for probe in probes}
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        pad = self.tokenizer.pad_token_id
        self.pad = pad if isinstance(pad, int) else 0
        self._known: dict[str, Any] = {}

    def stages(self) -> Iterator[tuple[str, Callable[[], list[Values]]]]:
        """Name and work of every stage, in order."""
        for name in ("forget", "retain", "real_authors", "world_facts"):
            if name in self.probes:
                yield f"{name}: probability", lambda name=name: self._probability(name)
                yield f"{name}: truth ratio", lambda name=name: self._truth_ratio(name)
                yield f"{name}: generating", lambda name=name: self._rouge(name)
        yield "forget: extraction strength", lambda: self._memorised("extraction_strength")
        yield "forget: exact memorisation", lambda: self._memorised("exact_memorization")
        for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
            yield f"attack: {attack}", lambda attack=attack: self._attack(attack)

    # Metrics ------------------------------------------------------------------------------------

    def _probability(self, name: str) -> list[Values]:
        losses = self._known[name] = self._losses(self._true(name))
        return [Values("", name, "probability", np.exp(-losses).tolist())]

    def _truth_ratio(self, name: str) -> list[Values]:
        """Wrong over right; the right answer is the paraphrase where there is one."""
        probe = self.probes[name]
        rows = [row for row in probe.rows if probe.perturbed(row)]
        if not rows:
            return []
        paraphrases = [probe.paraphrase(row) for row in rows]
        right = (
            self._losses([self._encode(*pair) for pair in zip(rows, paraphrases, strict=True)])
            if all(paraphrases)
            else self._known[name]
        )
        count = min(len(probe.perturbed(row)) for row in rows)
        wrong = np.array(
            [
                self._losses([self._encode(row, probe.perturbed(row)[i]) for row in rows])
                for i in range(count)
            ]
        )
        ratio = np.exp(-wrong.mean(0)) / (np.exp(-right) + EPSILON)
        return [Values("", name, "truth_ratio", ratio.tolist())]

    def _rouge(self, name: str) -> list[Values]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        examples = self._true(name)
        texts = self._generate([example.prompt for example in examples])
        recalls = [
            scorer.score(self._text(example.answer), text)["rougeL"].recall
            for example, text in zip(examples, texts, strict=True)
        ]
        return [
            Values("", name, "rouge_l_recall", recalls),
            Values("", name, "generation", texts),
        ]

    def _memorised(self, metric: str) -> list[Values]:
        found: list[float] = []
        for batch in self._batches(self._true("forget")):
            for logps, labels in zip(*self._vocabulary_logps(batch), strict=True):
                hits = (logps.argmax(-1) == labels).tolist()
                found.append(_strength(hits) if metric == "extraction_strength" else _share(hits))
        return [Values("", "forget", metric, found)]

    def _attack(self, name: str) -> list[Values]:
        scores = {
            "loss": self._loss_scores,
            "zlib": self._zlib_scores,
            "min_k": self._min_k_scores,
            "min_k_plus_plus": self._standardised_scores,
        }[name]
        sets = [probe for probe in ("forget", "holdout") if probe in self.probes]
        return [Values("", probe, f"{name}_score", scores(self._true(probe))) for probe in sets]

    def _loss_scores(self, examples: list[Example]) -> list[float]:
        return [float(loss) for loss in self._losses(examples)]

    def _zlib_scores(self, examples: list[Example]) -> list[float]:
        sizes = [len(zlib.compress(self._text(example.answer).encode())) for example in examples]
        return [
            float(loss) / size for loss, size in zip(self._losses(examples), sizes, strict=True)
        ]

    def _min_k_scores(self, examples: list[Example]) -> list[float]:
        return [
            _lowest(logps.float().numpy())
            for batch in self._batches(examples)
            for logps in self._token_logps(batch)
        ]

    def _standardised_scores(self, examples: list[Example]) -> list[float]:
        found = []
        for batch in self._batches(examples):
            every, _ = self._vocabulary_logps(batch)
            for whole, picked in zip(every, self._token_logps(batch), strict=True):
                mu = (whole.exp() * whole).sum(-1)
                variance = (whole.exp() * whole.square()).sum(-1) - mu.square()
                sigma = variance.clamp(min=1e-6).sqrt()
                found.append(_lowest(((picked - mu) / sigma).float().numpy()))
        return found

    # Passes -------------------------------------------------------------------------------------

    def _true(self, name: str) -> list[Example]:
        return [self._encode(row, row.answer) for row in self.probes[name].rows]

    def _encode(self, row: Row, answer: str | None) -> Example:
        prompt, tokens = self.template.encode(row.messages, answer)
        return Example(list(prompt), list(tokens))

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _batches(self, examples: list[Example]) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(examples), self.batch_size):
            part = examples[start : start + self.batch_size]
            width = max(len(prompt) + len(answer) for prompt, answer in part)
            ids = torch.full((len(part), width), self.pad)
            labels = torch.full_like(ids, IGNORE)
            mask = torch.zeros_like(ids)
            for line, (prompt, answer) in enumerate(part):
                size = len(prompt) + len(answer)
                ids[line, :size] = torch.tensor([*prompt, *answer])
                labels[line, len(prompt) : size] = torch.tensor(answer)
                mask[line, :size] = 1
            yield {"input_ids": ids, "labels": labels, "attention_mask": mask}

    @torch.no_grad()
    def _logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Of all positions, [B, L, V]; the model computes its loss as well, as it does there."""
        found: Tensor = self.model(**batch).logits
        return found

    def _losses(self, examples: list[Example]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean NLL of every answer, end of turn included."""
        found: list[float] = []
        for batch in self._batches(examples):
            logits = self._logits(batch)[:, :-1].contiguous()
            labels = batch["labels"][:, 1:].contiguous()
            each = nn.CrossEntropyLoss(ignore_index=IGNORE, reduction="none")
            sums = each(logits.transpose(-1, -2), labels).sum(-1)
            found += (sums / (batch["labels"] != IGNORE).sum(-1)).float().tolist()
        return np.array(found)

    def _token_logps(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Log-probabilities of the answer tokens without the end of the turn, row by row."""
        logps = torch.log_softmax(self._logits(batch), dim=-1)[:, :-1]
        picked = logps.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        return [picked[line, first - 1 : last] for line, first, last in _places(batch)]

    def _vocabulary_logps(self, batch: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Whole distributions at the same places, [N, V] per row, and the tokens."""
        logps = torch.log_softmax(self._logits(batch), dim=-1)[:, :-1]
        places = list(_places(batch))
        return (
            [logps[line, first - 1 : last] for line, first, last in places],
            [batch["labels"][line, first : last + 1] for line, first, last in places],
        )

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            part = prompts[start : start + self.batch_size]
            width = max(len(prompt) for prompt in part)
            ids = torch.full((len(part), width), self.pad)
            mask = torch.zeros_like(ids)
            for line, prompt in enumerate(part):
                ids[line, width - len(prompt) :] = torch.tensor(prompt)
                mask[line, width - len(prompt) :] = 1
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                use_cache=True,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=list(self.template.stop_ids),
                pad_token_id=self.tokenizer.eos_token_id,
            )
            for line in out[:, width:].tolist():
                tokens = _cut(line, self.template.stop_ids)
                texts.append(str(self.tokenizer.decode(tokens, skip_special_tokens=True)))
        return texts


def _places(batch: Mapping[str, Tensor]) -> Iterator[tuple[int, int, int]]:
    """Line, first and last place of the answer without its end of turn."""
    for line, labels in enumerate(batch["labels"]):
        places = (labels != IGNORE).nonzero()[:-1, 0]
        if len(places):
            yield line, int(places[0]), int(places[-1])


def _cut(tokens: list[int], stops: Sequence[int]) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0]] if ends else tokens


def _strength(hits: list[bool]) -> float:
    """One minus the share of the shortest prefix after which everything is right; at least 1/n."""
    start = next((k for k in range(len(hits)) if all(hits[k:])), len(hits) - 1)
    return 1 - start / len(hits)


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def _lowest(values: np.ndarray[Any, Any]) -> float:
    count = max(1, int(len(values) * K))
    return float(-np.mean(np.sort(values)[:count]))
