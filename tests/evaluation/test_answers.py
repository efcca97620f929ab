"""Scored answers equal a naive twin: one sequence at a time, full logits."""

import math
from types import SimpleNamespace

import pytest
import torch

from expunge.evaluation import answers as module
from expunge.evaluation.answers import AnswerJob, score_answers
from expunge.models.trees import TreeSupport
from expunge.testing.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model():
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)  # so that answers differ by more than rounding
    return model


def tokens(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(10, 500, (length,), generator=generator).tolist())


JOBS = [
    AnswerJob(tokens(7, 0), (tokens(5, 1), tokens(1, 2), tokens(12, 3))),
    AnswerJob(tokens(1, 4), (tokens(3, 5), (), tokens(3, 6))),  # shortest prompt, an empty answer
    AnswerJob(tokens(30, 7), (tokens(2, 8),)),  # nothing to share
    AnswerJob(tokens(4, 9), ((),)),  # nothing at all
    AnswerJob(tokens(9, 10), (tokens(1, 11), tokens(1, 12))),  # one-token answers only
    AnswerJob(tokens(12, 13), (tokens(6, 14), tokens(7, 15), tokens(2, 16), tokens(1, 17))),
]


def naive(model, job):
    """Log-softmax over the whole sequence, in float64."""
    found = []
    for answer in job.answers:
        if not answer:
            found.append(([], []))
            continue
        with torch.no_grad():
            logits = model(torch.tensor([job.prompt + answer])).logits[0].double()
        at = logits[len(job.prompt) - 1 : -1].log_softmax(-1)
        picked = at[torch.arange(len(answer)), list(answer)]
        found.append((picked.tolist(), (at.argmax(-1) == torch.tensor(answer)).tolist()))
    return found


def scored(model, jobs=JOBS, **options):
    found = [None] * len(jobs)
    for batch in score_answers(model, jobs, **options):
        for position, scores in batch:
            assert found[position] is None
            found[position] = scores
    return found


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_equals_the_naive_twin(model, share_prefix, batch_tokens):
    found = scored(model, share_prefix=share_prefix, batch_tokens=batch_tokens)
    for job, scores in zip(JOBS, found, strict=True):
        for score, (logps, greedy) in zip(scores, naive(model, job), strict=True):
            assert score.logps == pytest.approx(logps, abs=1e-5)
            assert score.greedy == greedy


def test_greedy_marks_the_models_own_choice(model):
    """An answer that the model itself generates is all greedy, and only that one."""
    own = model.generate(torch.tensor([JOBS[0].prompt]), max_new_tokens=6, do_sample=False)
    own = tuple(own[0, len(JOBS[0].prompt) :].tolist())
    ((first, second),) = scored(model, [AnswerJob(JOBS[0].prompt, (own, tokens(6, 99)))])
    assert first.greedy == [True] * len(own)
    assert not all(second.greedy)


def test_small_chunks_change_nothing(model, monkeypatch):
    whole = scored(model)
    monkeypatch.setattr(module, "CHUNK_CPU", 1)  # 16 positions at a time
    assert scored(model) == whole


def test_batches_keep_to_the_budget_and_go_from_large_to_small(model):
    widths = []
    for batch in score_answers(model, JOBS, batch_tokens=100):
        jobs = [JOBS[position] for position, _ in batch]
        prompt = max(len(job.prompt) for job in jobs)
        answer = max(len(a) for job in jobs for a in job.answers)
        lines = sum(len(job.answers) for job in jobs)
        assert len(jobs) == 1 or lines * (prompt + answer) <= 100
        widths.append(lines)
    assert len(widths) > 2


class Softcapped(torch.nn.Module):
    """A model that does more with its logits than one linear layer, as Gemma 2 does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.config = inner.config
        self.base_model = inner.model

    def get_output_embeddings(self):
        return self.inner.lm_head

    def forward(self, input_ids, attention_mask=None, position_ids=None, **options):
        logits = self.inner(input_ids, attention_mask, position_ids, **options).logits
        return SimpleNamespace(logits=2.0 * torch.tanh(logits / 2.0))


def test_a_model_whose_logits_are_no_plain_linear_layer(model):
    capped = Softcapped(model)
    found = scored(capped)
    for job, scores in zip(JOBS, found, strict=True):
        for score, (logps, _) in zip(scores, naive(capped, job), strict=True):
            assert score.logps == pytest.approx(logps, abs=1e-5)
    assert found[0][0].logps != pytest.approx(scored(model)[0][0].logps, abs=1e-2)


def test_an_adapter_counts(model):
    """A LoRA adapter with weights changes the scores, and they are those of the wrapped model."""
    from peft import LoraConfig, get_peft_model

    plain = tiny_model(TOKENIZER)
    before = scored(plain)
    wrapped = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    found = scored(wrapped)
    assert found[0][0].logps != pytest.approx(before[0][0].logps, abs=1e-3)
    for job, scores in zip(JOBS, found, strict=True):
        for score, (logps, _) in zip(scores, naive(wrapped, job), strict=True):
            assert score.logps == pytest.approx(logps, abs=1e-5)


def test_bfloat16_is_reduced_in_float32(model):
    """Summed in bfloat16, 512 probabilities would be off by more than 1%."""
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16)
    (scores,) = scored(half, JOBS[2:3])
    with torch.no_grad():
        logits = half(torch.tensor([JOBS[2].prompt + JOBS[2].answers[0]])).logits[0].float()
    at = logits.log_softmax(-1)[len(JOBS[2].prompt) - 1 : -1]
    expected = [float(row[t]) for row, t in zip(at, JOBS[2].answers[0], strict=True)]
    assert scores[0].logps == pytest.approx(expected, abs=0.05)
    assert all(math.isfinite(value) for value in scores[0].logps)


def test_the_mode_is_left_alone_between_batches(model):
    model.train()
    try:
        for _ in score_answers(model, JOBS, batch_tokens=50):
            assert model.training
            assert torch.is_grad_enabled()
    finally:
        model.eval()


@pytest.mark.parametrize("layout", ["trees", "padded"])
def test_layouts_agree_and_trees_are_used(model, monkeypatch, layout):
    """Answers that begin alike and prompts that begin alike, moments and choices of some."""
    stem = tokens(6, 20)
    own = tokens(8, 21)
    jobs = [
        AnswerJob((*stem, *tokens(3, 22)), (own, (*own[:5], *tokens(4, 23)), own[:3]), 1, 1),
        AnswerJob((*stem, *tokens(5, 24)), (tokens(4, 25), tokens(4, 26)), 2),
        AnswerJob((*stem, *tokens(2, 27)), (tokens(9, 28),), 1),
    ]
    if layout == "padded":
        monkeypatch.setattr(module, "tree_support", lambda _: TreeSupport())
    rows = []
    forward = type(model.model).forward

    def spy(self, *args, **kwargs):
        rows.append(tuple(kwargs["input_ids"].shape))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", spy)
    found = scored(model, jobs)
    # One row for the two jobs of several answers: the stem once, and what answers share once.
    size = 6 + 3 + (7 + 3) + 5 + (3 + 3)
    assert ((1, size) in rows) == (layout == "trees")
    for job, scores in zip(jobs, found, strict=True):
        for number, (score, (logps, greedy)) in enumerate(
            zip(scores, naive(model, job), strict=True)
        ):
            assert score.logps == pytest.approx(logps, abs=1e-5)
            wanted = job.greedy is None or number < job.greedy
            assert score.greedy == (greedy if wanted else [])
            means, variances = naive_moments(model, job, number)
            if number < job.moments:
                assert score.means == pytest.approx(means, abs=1e-4)
                assert score.variances == pytest.approx(variances, abs=1e-4)
            else:
                assert score.means == []


def naive_moments(model, job, number):
    """Mean and variance of log p under p, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([job.prompt + job.answers[number]])).logits[0].double()
    at = logits[len(job.prompt) - 1 : -1].log_softmax(-1)
    mean = (at.exp() * at).sum(-1)
    variance = (at.exp() * (at - mean[:, None]) ** 2).sum(-1)
    return mean.tolist(), variance.tolist()


def test_impossible_tokens_do_not_spoil_the_moments():
    """A logit of -inf has no share: uniform over the other two, mean -log 2, variance 0."""
    logits = torch.tensor([[1.0, 1.0, -torch.inf]])
    yes = torch.tensor([True])
    found = module._reduce(logits, torch.tensor([0]), torch.tensor([1]), moments=yes, greedy=yes)
    assert found.logps.tolist() == pytest.approx([-math.log(2)])
    assert found.means.tolist() == pytest.approx([-math.log(2)])
    assert found.variances.tolist() == pytest.approx([0.0])
    assert found.greedy.tolist() == [False]


def test_small_blocks_change_nothing(model, monkeypatch):
    whole = scored(model)
    monkeypatch.setattr(module, "BLOCK_CPU", 1)
    assert scored(model) == whole
