"""Contracts of every registered method; a new one is covered before its author writes a test."""

import re
from dataclasses import replace

import pytest
import torch

from expunge.methods import forget_losses, parse, retain_terms, wrappers
from expunge.objectives import EntanglementState, declared_losses, loss_info
from expunge.testing.fake_outputs import DIMENSION, batch_outputs, fake_rows

STREAMS = ("forget", "retain", "alternate", "retain_alternate", "proxy")
BASES = [name for name in forget_losses.names()] + [
    f"{forget}+{retain}" for forget in forget_losses.names() for retain in retain_terms.names()
]
METHODS = BASES + [f"{wrapper}({base})" for wrapper in wrappers.names() for base in BASES]


def rows_of(num=6, dtype=torch.float64):
    return {name: fake_rows(num, seed, dtype) for seed, name in enumerate(STREAMS, start=1)}


def with_grad(rows):
    return {
        name: [
            replace(
                row,
                logits=row.logits.clone().requires_grad_(),
                hidden=row.hidden.clone().requires_grad_(),
            )
            for row in stream
        ]
        for name, stream in rows.items()
    }


def run(method, rows, splits, pad_to=0):
    """Loss and gradients of a step whose rows are split into the given micro-batches."""
    rows = with_grad(rows)
    objective = parse(method).objective
    state = None
    if objective.entanglement is not None:
        state = EntanglementState(objective.entanglement, len(rows["forget"]))
        generator = torch.Generator().manual_seed(0)
        past = torch.randn(len(rows["forget"]), DIMENSION, generator=generator, dtype=torch.float64)
        centre = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
        state.start(past, centre)
    micros = [
        {
            name: batch_outputs([rows[name][i] for i in part], pad_to=pad_to, indices=part)
            for name in objective.all_streams()
        }
        for part in splits
    ]
    counts = {}
    for micro in micros:
        for name, count in objective.counts(micro).items():
            counts[name] = counts.get(name, 0) + float(count)
    normaliser = None
    if state is not None:
        exponents = torch.cat([objective.weight_exponents(micro, state) for micro in micros])
        total = exponents.logsumexp(0)
        normaliser = lambda _: total  # noqa: E731
    loss = sum(
        objective(micro, entanglement=state, log_normaliser=normaliser).total(counts)
        for micro in micros
    )
    loss.backward()
    gradients = [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name in STREAMS
        for row in rows[name]
        for leaf in (row.logits, row.hidden)
    ]
    return loss.detach(), gradients


def assert_same(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=1e-10, atol=1e-12)
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


WHOLE = [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(method):
    rows = rows_of()
    assert_same(run(method, rows, WHOLE), run(method, rows, WHOLE, pad_to=14))


@pytest.mark.parametrize("method", METHODS)
def test_batch_order_changes_nothing(method):
    rows = rows_of()
    assert_same(run(method, rows, WHOLE), run(method, rows, [[3, 0, 5, 1, 4, 2]]))


@pytest.mark.parametrize("method", METHODS)
def test_every_split_of_a_step_gives_the_same_gradient(method):
    rows = rows_of()
    assert_same(run(method, rows, WHOLE), run(method, rows, [[0, 1, 2], [3], [4, 5]]))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_in_bfloat16(method):
    rows = rows_of(dtype=torch.bfloat16)
    loss, gradients = run(method, rows, WHOLE)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS)
def test_declared_reads_suffice(method):
    """With every undeclared field removed the result is the same, so nothing else is looked at."""
    objective = parse(method).objective
    full = {name: batch_outputs(fake_rows(4, 9)) for name in objective.all_streams()}
    fields = ("ref_logps", "logits", "ref_logits", "hidden")
    bare = {
        name: replace(out, **{f: None for f in fields if f not in objective.reads(name)})
        for name, out in full.items()
    }
    state = None
    if objective.entanglement is not None:
        state = EntanglementState(objective.entanglement, 4)
        state.start(torch.ones(4, DIMENSION), torch.arange(DIMENSION).float())
    counts = objective.counts(full)
    totals = [objective(out, entanglement=state).total(counts) for out in (full, bare)]
    assert torch.equal(*totals)


@pytest.mark.parametrize("fn", declared_losses(), ids=lambda fn: fn.__name__)
def test_a_loss_cites_its_source(fn):
    assert re.search(r"arXiv:\d{4}\.\d{5}", fn.__doc__), fn.__name__


@pytest.mark.parametrize("fn", declared_losses(), ids=lambda fn: fn.__name__)
def test_a_loss_returns_its_unit(fn):
    import inspect

    streams = [
        batch_outputs(fake_rows(3, seed))
        for seed, p in enumerate(inspect.signature(fn).parameters.values())
        if p.kind is not p.KEYWORD_ONLY
    ]
    value = fn(*streams)
    assert value.shape == (streams[0].logps.shape if loss_info(fn).unit == "token" else (3,))


@pytest.mark.parametrize("method", METHODS)
def test_notation_survives_a_round_trip(method):
    assert str(parse(str(parse(method)))) == str(parse(method))


def test_rows_that_do_not_count_change_nothing():
    """A process without rows sends one invalid row through; it must leave no trace."""
    for method in METHODS:
        objective = parse(method).objective
        micro = {name: batch_outputs(fake_rows(3, 4)) for name in objective.all_streams()}
        micro = {
            name: replace(out, valid=torch.zeros_like(out.valid)) for name, out in micro.items()
        }
        state = None
        if objective.entanglement is not None:
            state = EntanglementState(objective.entanglement, 3)
            state.start(torch.ones(3, DIMENSION), torch.ones(DIMENSION))
        normaliser = lambda _: torch.tensor(1.0)  # noqa: E731
        sums = objective(micro, entanglement=state, log_normaliser=normaliser)
        assert float(sums.total(objective.counts(micro))) == 0.0, method
        assert all(float(count) == 0 for count in objective.counts(micro).values())
