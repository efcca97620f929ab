"""Contracts of every registered method; a new one is covered before its author writes a test."""

import inspect
import re
from dataclasses import replace

import pytest
import torch

from expunge.methods import forget_losses, parse, retain_terms, wrappers
from expunge.objectives import declared_losses, loss_info
from expunge.testing.fake_outputs import DIMENSION, batch_outputs, fake_rows
from expunge.training.statistics import Collector

STREAMS = ("forget", "retain", "alternate", "retain_alternate", "mismatch", "proxy")


def combined(forget, retain):
    """`forget+retain`, with a multiplier where the loss asks for one."""
    limit = "(limit=0.4, dual_step=0.5)" if forget_losses.get(forget).needs_limit else ""
    return f"{forget}+{retain}{limit}"


def needs_labels(wrapper, forget):
    """Token weights by probability go around losses on answer tokens only."""
    term = forget_losses.get(forget).term
    elsewhere = term.is_token and term.averaged_over != "labels"
    return wrapper in ("CONFIDENCE", "SATURATION") and elsewhere


BASES = [*forget_losses.names()] + [
    combined(forget, retain) for forget in forget_losses.names() for retain in retain_terms.names()
]
WRAPPED = [
    f"{wrapper}({combined(forget, 'GD')})"
    for wrapper in wrappers.names()
    for forget in forget_losses.names()
    if not needs_labels(wrapper, forget)
]
SPECIAL = [
    "EGU(GA+GD, level=token)",
    "EGU(NPO+GD, level=token)",
    "EGUP(DPO+KL, level=token)",
    "EGU(IDK-TOFU, level=token)",
    "EGU(CONFIDENCE(NPO+GD))",
    "SATURATION(ME(positions=labels)+GD)",
    "PROXY(EMPIRICAL(SATURATION(GA)))",
    "EGUP(NPO+GD, mu_rule=dual)",
    "GA(average=rows)+GD(average=sums)",
    "RMU(average=tokens)+ACT(average=tokens)",
    "LLMU(num_mismatch=3)+KL(form=cross_entropy)",
    "NPO+GD(limit=2.0)",
]
METHODS = BASES + WRAPPED + SPECIAL


class Accelerator:
    num_processes = 1


def keeps_to_rows(method):
    """Whether its value is meant to be independent of padding and micro-batches."""
    terms = parse(method).objective.terms
    return not any(loss_info(term.loss).batch_layout for term in terms)


PLAIN = [method for method in METHODS if keeps_to_rows(method)]


def rows_of(num=6, dtype=torch.float64):
    return {name: fake_rows(num, seed, dtype) for seed, name in enumerate(STREAMS, start=1)}


LEAVES = ("logits", "hidden", "activations")


def with_grad(rows):
    return {
        name: [
            replace(row, **{leaf: getattr(row, leaf).clone().requires_grad_() for leaf in LEAVES})
            for row in stream
        ]
        for name, stream in rows.items()
    }


def source(stream):
    return "mismatch" if stream.startswith("mismatch") else stream


def started(objective, num):
    """The state of a run with made-up past and centre."""
    state = objective.new_state(num, hidden_size=DIMENSION)
    if state.entanglement is not None:
        generator = torch.Generator().manual_seed(0)
        past = torch.randn(num, DIMENSION, generator=generator, dtype=torch.float64)
        centre = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
        state.entanglement.start(past, centre)
    return state


def run(method, rows, splits, pad_to=0):
    """Loss and gradients of a step whose rows are split into the given micro-batches."""
    rows = with_grad(rows)
    objective = parse(method).objective
    state = started(objective, len(rows["forget"]))
    micros = [
        {
            name: batch_outputs([rows[source(name)][i] for i in part], pad_to=pad_to, indices=part)
            for name in objective.all_streams()
        }
        for part in splits
    ]
    counts = {}
    statistics = None
    if len(splits) > 1:
        collector = Collector()
        for micro in micros:
            objective.collect(micro, state, collector)
        statistics = collector.reduced(Accelerator())
    for micro in micros:
        for name, count in objective.counts(micro).items():
            counts[name] = counts.get(name, 0) + float(count)
    loss = sum(
        objective(micro, state=state, statistics=statistics).total(counts) for micro in micros
    )
    if state.retain_weight is not None:
        # A constant, which every call adds.
        extra = state.retain_weight.value * state.retain_weight.options.limit
        loss = loss + extra * (len(micros) - 1)
    loss.backward()
    gradients = [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name in STREAMS
        for row in rows[name]
        for leaf in (getattr(row, kind) for kind in LEAVES)
    ]
    return loss.detach(), gradients


def assert_same(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=1e-10, atol=1e-12)
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


WHOLE = [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("method", PLAIN)
def test_padding_changes_nothing(method):
    rows = rows_of()
    assert_same(run(method, rows, WHOLE), run(method, rows, WHOLE, pad_to=14))


@pytest.mark.parametrize("fn", declared_losses(), ids=lambda fn: fn.__name__)
def test_what_depends_on_the_layout_says_so(fn):
    """Released forms that average over padding are marked, and only they."""
    method = next(
        (m for m in BASES if any(term.loss is fn for term in parse(m).objective.terms)), None
    )
    assert method is not None, f"no method uses {fn.__name__}"
    term = next(term for term in parse(method).objective.terms if term.loss is fn)
    assert loss_info(fn).batch_layout == (term.averaged_over == "all")


@pytest.mark.parametrize("method", METHODS)
def test_batch_order_changes_nothing(method):
    rows = rows_of()
    assert_same(run(method, rows, WHOLE), run(method, rows, [[3, 0, 5, 1, 4, 2]]))


@pytest.mark.parametrize("method", PLAIN)
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
    fields = ("ref_logps", "logits", "ref_logits", "hidden", "activations", "ref_activations")
    bare = {
        name: replace(out, **{f: None for f in fields if f not in objective.reads(name)})
        for name, out in full.items()
    }
    state = started(objective, 4)
    counts = objective.counts(full)
    totals = [objective(out, state=state).total(counts) for out in (full, bare)]
    assert torch.equal(*totals)


@pytest.mark.parametrize("fn", declared_losses(), ids=lambda fn: fn.__name__)
def test_a_loss_cites_its_source(fn):
    assert re.search(r"arXiv:\d{4}\.\d{5}", fn.__doc__), fn.__name__


@pytest.mark.parametrize("fn", declared_losses(), ids=lambda fn: fn.__name__)
def test_a_loss_returns_its_unit(fn):
    parameters = inspect.signature(fn).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    records = [
        replace(batch_outputs(fake_rows(3, seed)), control=torch.ones(DIMENSION))
        for seed, name in enumerate(names)
        if not name.startswith("mean")
    ]
    means = [torch.tensor(0.5) for name in names if name.startswith("mean")]
    value = fn(*records, *means)
    assert value.shape == (records[0].logps.shape if loss_info(fn).unit == "token" else (3,))


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
        state = started(objective, 3)
        sums = objective(micro, state=state)
        value = float(sums.total(objective.counts(micro)))
        if state.retain_weight is not None:
            value += state.retain_weight.value * state.retain_weight.options.limit
        assert value == 0.0, method
        assert all(float(count) == 0 for count in objective.counts(micro).values())
