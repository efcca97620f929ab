"""Losses against slow, obvious twins and against hand-made examples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.models.outputs import outputs_from_logits
from expunge.objectives import Term
from expunge.objectives.distribution import kl_to_reference, maximise_entropy
from expunge.objectives.losses import gradient_ascent, nll
from expunge.objectives.preference import answer_preservation, npo
from expunge.testing.fake_outputs import batch_outputs, fake_rows


def token_nlls(row, logits=None):
    """Negative log-likelihood of every labelled token after the first, one at a time."""
    logits = row.logits if logits is None else logits
    values = []
    for t in range(1, len(row.input_ids)):
        label = int(row.labels[t])
        if label != -100:
            scores = [math.exp(v) for v in logits[t - 1].tolist()]
            values.append(-math.log(scores[label] / sum(scores)))
    return values


def probabilities(scores):
    exps = [math.exp(v) for v in scores.tolist()]
    return [v / sum(exps) for v in exps]


ROWS = fake_rows(5, 3)
OTHERS = fake_rows(5, 8)


def mean_of(loss, rows=ROWS, **options):
    term = Term(loss=loss, options=options)
    out = {"forget": batch_outputs(rows, pad_to=11)}
    sums, counts = term.rows(out)
    return float(sums.sum() / counts.sum())


def test_nll_is_the_mean_over_tokens_not_over_rows():
    values = [value for row in ROWS for value in token_nlls(row)]
    assert mean_of(nll) == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert mean_of(gradient_ascent) == pytest.approx(-sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_twin(beta):
    total = 0.0
    for row in ROWS:
        gap = sum(token_nlls(row)) - sum(token_nlls(row, row.ref_logits))
        total += 2 / beta * math.log(1 + math.exp(-beta * gap))
    assert mean_of(npo, beta=beta) == pytest.approx(total / len(ROWS), rel=1e-12)


def test_npo_starts_at_two_over_beta_ln_two():
    """At the reference S = S0, so the loss is (2/beta) softplus(0) = (2/beta) ln 2 = 13.863."""
    out = batch_outputs(ROWS)
    same = npo(out.__class__(**{**vars(out), "ref_logps": out.logps}), beta=0.1)
    assert same.tolist() == pytest.approx([20 * math.log(2)] * 5, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_npo_tends_to_sequence_sum_gradient_ascent(seed):
    rows = [r for r in fake_rows(2, seed)]
    out = batch_outputs(rows)
    leaf = out.logits.clone().requires_grad_()

    def rebuilt():
        labels = torch.where(out.label_mask, 1, -100)
        return outputs_from_logits(leaf, labels, out.hidden_mask.long(), ref_logits=out.ref_logits)

    (ascent,) = torch.autograd.grad(-rebuilt().nll().sum(), leaf)
    (gradient,) = torch.autograd.grad(npo(rebuilt(), beta=1e-7).sum(), leaf)
    torch.testing.assert_close(gradient, ascent, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("direction", ["model_to_uniform", "uniform_to_model"])
def test_maximise_entropy_twin_over_question_and_answer(direction):
    total, count = 0.0, 0
    for row in ROWS:
        for t in range(len(row.input_ids) - 1):  # the last position predicts nothing
            p = probabilities(row.logits[t])
            size = len(p)
            if direction == "model_to_uniform":
                total += sum(v * math.log(v * size) for v in p)
            else:
                total += sum(math.log(1 / size / (v + 1e-12)) / size for v in p)
            count += 1
    assert mean_of(maximise_entropy, direction=direction) == pytest.approx(total / count, rel=1e-9)


def test_kl_twin_over_question_and_answer():
    total, count = 0.0, 0
    for row in ROWS:
        for t in range(len(row.input_ids)):
            p, ref = probabilities(row.logits[t]), probabilities(row.ref_logits[t])
            total += sum(r * math.log(r / v) for r, v in zip(ref, p, strict=True))
            count += 1
    assert mean_of(kl_to_reference) == pytest.approx(total / count, rel=1e-10)


def test_kl_is_zero_at_the_reference():
    out = batch_outputs(ROWS)
    same = out.__class__(**{**vars(out), "ref_logits": out.logits})
    assert float(kl_to_reference(same).abs().max()) < 1e-14


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_answer_preservation_twin(beta):
    values = []
    for row, other in zip(ROWS, OTHERS, strict=True):
        gap = sum(token_nlls(other)) - sum(token_nlls(row))
        values.append(math.log(1 + math.exp(-beta * gap)) / beta)
    actual = answer_preservation(batch_outputs(ROWS), batch_outputs(OTHERS), beta=beta)
    assert actual.tolist() == pytest.approx(values, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_entropy_and_kl_are_not_negative(seed):
    out = batch_outputs(fake_rows(3, seed))
    assert float(maximise_entropy(out).min()) > -1e-12
    assert float(kl_to_reference(out).min()) > -1e-12
