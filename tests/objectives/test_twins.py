"""Every loss, retain term, option and wrapper beside a slow twin, in value and gradient."""

from typing import Literal, get_args, get_origin

import pytest
import torch
import twins
from twins import LEAVES, A, S, made_up, mean, scored, total

from expunge.core.options import options_of
from expunge.methods import forget_losses, parse, retain_terms, wrappers
from expunge.models.outputs import outputs_from_logits


def record(rows):
    """Our record of the rows of a stream."""

    def stack(name):
        return torch.stack([getattr(row, name) for row in rows])

    return outputs_from_logits(
        stack("logits"),
        torch.tensor([row.labels for row in rows]),
        torch.tensor([row.real for row in rows]).long(),
        input_ids=torch.tensor([row.ids for row in rows]),
        ref_logits=stack("ref_logits"),
        hidden=stack("hidden"),
        activations=stack("activations"),
        ref_activations=stack("ref_activations"),
        index=torch.tensor([row.index for row in rows]),
        valid=torch.tensor([row.counts for row in rows]),
    )


def ours(method, world, **more):
    objective = parse(method).objective
    state = objective.new_state(len(world.past), hidden_size=len(world.control))
    if state.entanglement is not None:
        state.entanglement.start(world.past, world.centre)
    if state.control is not None:
        state.control = world.control
    outputs = {name: record(world.streams[name]) for name in objective.all_streams()}
    return objective(outputs, state=state, **more).total(objective.counts(outputs))


def leaves_of(world):
    rows = [row for stream in world.streams.values() for row in stream]
    return [getattr(row, leaf) for row in rows for leaf in LEAVES]


def assert_twins(actual, expected, world):
    leaves = [
        getattr(row, leaf) for rows in world.streams.values() for row in rows for leaf in LEAVES
    ]
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    found, wanted = (
        torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        for loss in (actual, expected)
    )
    assert any(gradient.abs().max() > 1e-6 for gradient in wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def sample_npo(beta=0.1):
    return lambda row: twins.npo(row, beta)


def npo(w, beta=0.1):
    return mean([twins.npo(row, beta) for row in scored(w.forget)])


def dpo(w, beta=0.1, factor=20.0):
    both = twins.pairs(w.forget, w.alternate)
    return mean([twins.dpo(row, other, beta, factor) for row, other in both])


def simnpo(w, **options):
    return mean([twins.simnpo(row, **options) for row in scored(w.forget)])


def sample_ga(row):
    return -A(row)


def rows_of(sample):
    return lambda w: mean([sample(row) for row in scored(w.forget)])


FORGET = {
    "GA": lambda w: -twins.CE(w.forget),
    "GA(average=rows)": rows_of(sample_ga),
    "GA(average=sums)": rows_of(lambda row: -S(row)),
    "GA(weight=0.25)": lambda w: -twins.CE(w.forget) / 4,
    "NPO": npo,
    "NPO(beta=0.7)": lambda w: npo(w, 0.7),
    "NPO-MUSE": lambda w: twins.npo_muse(w.forget, 0.1),
    "NPO-MUSE(beta=0.8)": lambda w: twins.npo_muse(w.forget, 0.8),
    "NPO-WMDP": lambda w: twins.npo_wmdp(w.forget, 0.0225),
    "NPO-WMDP(beta=1.5)": lambda w: twins.npo_wmdp(w.forget, 1.5),
    "SimNPO": lambda w: simnpo(w, beta=4.5),
    "SimNPO(beta=1.5, delta=0.5)": lambda w: simnpo(w, beta=1.5, delta=0.5),
    "SimNPO(beta=1.5, gamma=0.75)": lambda w: simnpo(w, beta=1.5, gamma=0.75),
    "SimNPO-MUSE": lambda w: twins.simnpo_muse(w.forget, 0.7, 0.0),
    "SimNPO-MUSE(beta=0.75, gamma=0.3)": lambda w: twins.simnpo_muse(w.forget, 0.75, 0.3),
    "SimNPO-WMDP": lambda w: twins.simnpo_wmdp(w.forget, 0.1),
    "SimNPO-WMDP(beta=0.9)": lambda w: twins.simnpo_wmdp(w.forget, 0.9),
    "ME": lambda w: twins.me(w.forget, "model_to_uniform", "nonpad"),
    **{
        f"ME(direction={direction}, positions={positions})": (
            lambda w, d=direction, p=positions: twins.me(w.forget, d, p)
        )
        for direction in ("model_to_uniform", "uniform_to_model")
        for positions in ("labels", "unshifted", "nonpad", "all")
    },
    "LLMU": lambda w: -twins.CE(w.forget) + twins.mismatch([w.mismatch]),
    "LLMU(weight=0.5, mismatch_weight=3, num_mismatch=5, average=rows)": lambda w: (
        0.5 * rows_of(sample_ga)(w) + 3 * twins.mismatch(mismatches(w), average="rows")
    ),
    "LLMU(num_mismatch=5)": lambda w: -twins.CE(w.forget) + twins.mismatch(mismatches(w)),
    "WGA": lambda w: twins.wga(w.forget, 1.0),
    "WGA(beta=0.3)": lambda w: twins.wga(w.forget, 0.3),
    "SatImp": lambda w: twins.satimp(w.forget, 5.0, 1.0),
    "SatImp(beta1=0.5, beta2=2)": lambda w: twins.satimp(w.forget, 0.5, 2.0),
    "CE-U": lambda w: twins.ceu(w.forget, 1),
    "CE-U(ignore_first=0)": lambda w: twins.ceu(w.forget, 0),
    "CE-U(ignore_first=2)": lambda w: twins.ceu(w.forget, 2),
    "UNDIAL": lambda w: twins.undial(w.forget, 10.0),
    "UNDIAL(beta=1.5)": lambda w: twins.undial(w.forget, 1.5),
    "PDU+GD(limit=0.3)": lambda w: twins.pdu(w.forget, "labels") + 100 * (twins.CE(w.retain) - 0.3),
    "PDU(positions=unshifted)+GD(weight=2, limit=0.5)": lambda w: (
        twins.pdu(w.forget, "unshifted") + 2 * (twins.CE(w.retain) - 0.5)
    ),
    "RMU": lambda w: twins.rmu(w.forget, w.control, 20.0),
    "RMU(steering=1.5)": lambda w: twins.rmu(w.forget, w.control, 1.5),
    "RMU(steering=1.5, average=tokens)": lambda w: twins.rmu(
        w.forget, w.control, 1.5, average="tokens"
    ),
    "RMU(steering=1.5, average=broadcast)": lambda w: twins.rmu(
        w.forget, w.control, 1.5, average="broadcast"
    ),
    "RMU(steering=1.5, positions=all, average=tokens)": lambda w: twins.rmu(
        w.forget, w.control, 1.5, positions="all", average="tokens"
    ),
    "IDK": lambda w: twins.CE(w.alternate),
    "IDK-TOFU": lambda w: twins.CE(w.alternate + w.retain),
    "DPO": dpo,
    "DPO(beta=0.5)": lambda w: dpo(w, 0.5, 4.0),
    "DPO(beta=0.5, scale=1)": lambda w: dpo(w, 0.5, 1.0),
    "AltPO": dpo,
    "KTO": lambda w: twins.kto(w.forget, w.alternate, 0.1, twins.sigmoid),
    "KTO(beta=0.6, link=logsigmoid)": lambda w: twins.kto(
        w.forget, w.alternate, 0.6, lambda a: -twins.softplus(-a)
    ),
    "REINFORCE": lambda w: twins.CE(w.forget),
}

RETAIN = {
    "GD": lambda w: twins.CE(w.retain),
    "GD(weight=2.5)": lambda w: 2.5 * twins.CE(w.retain),
    "GD(average=rows)": lambda w: mean([A(row) for row in scored(w.retain)]),
    "GD(average=sums)": lambda w: mean([S(row) for row in scored(w.retain)]),
    "GD(weight=3, limit=1.25, dual_step=2, dual_warmup=1, dual_max=9)": lambda w: (
        3 * (twins.CE(w.retain) - 1.25)
    ),
    "KL": lambda w: twins.kl(w.retain),
    **{
        f"KL(positions={positions}, form={form})": (
            lambda w, p=positions, f=form: twins.kl(w.retain, positions=p, form=f)
        )
        for positions in ("labels", "unshifted", "nonpad", "all")
        for form in ("divergence", "cross_entropy")
    },
    "KL(average=rows)": lambda w: twins.kl(w.retain, average="rows"),
    "KL-MUSE": lambda w: twins.kl_muse(w.retain),
    "KL-forget": lambda w: twins.kl(w.forget),
    "AP": lambda w: twins.ap(w.retain, w.retain_alternate, 0.1),
    "AP(beta=0.6)": lambda w: twins.ap(w.retain, w.retain_alternate, 0.6),
    "ACT": lambda w: twins.act(w.retain),
    "ACT(average=tokens)": lambda w: twins.act(w.retain, average="tokens"),
    "ACT(average=broadcast)": lambda w: twins.act(w.retain, average="broadcast"),
    "ACT(positions=all)": lambda w: twins.act(w.retain, positions="all"),
    "UNIFORM": lambda w: twins.uniform(w.retain),
    "UNIFORM(positions=all)": lambda w: twins.uniform(w.retain, "all"),
}


def mismatches(w):
    return [w.streams[name] for name in w.streams if name.startswith("mismatch")]


def egu(w, sample=sample_ga, lambda_c=0.001, contrast="mean", tokens="all", **options):
    weighted = twins.entangled(w, sample, tokens=tokens, **options)
    return weighted + lambda_c * twins.contrast(w, reduce=contrast, tokens=tokens)


def egu_tokens(w, value, positions="labels", *, k=1.0, of=1, average="tokens"):
    weight = twins.token_efforts(w, w.forget, positions, k=k, of=of, has_next=of == 1)
    return twins.averaged(
        w.forget,
        lambda row, t: weight[id(row), t] * value(row, t),
        positions,
        has_next=of == 1,
        average=average,
    )


def weighted_ga(w, weight):
    return twins.averaged(
        w.forget, lambda row, t: -weight(row, t) * twins.nll(row, t), "labels", has_next=True
    )


def weighted_npo(w, weight, beta=0.1):
    gaps = [twins.weighted_sums(row, weight) for row in scored(w.forget)]
    return mean([2 / beta * twins.softplus(-beta * (now - then)) for now, then in gaps])


def weighted_dpo(w, weight, beta=0.1):
    values = []
    for row, other in twins.pairs(w.forget, w.alternate):
        now, then = twins.weighted_sums(row, weight)
        gap = (now - then) - (S(other) - twins.S0(other))
        values.append(2 / beta * twins.softplus(-beta * gap))
    return mean(values)


def egu_npo_tokens(w, k=1.0):
    weight = twins.token_efforts(w, w.forget, k=k)
    return weighted_npo(w, lambda row, t: weight[id(row), t])


def pooled_tokens(w):
    """IDK-TOFU: the tokens of both streams share one mean of the weights."""
    rows = w.alternate + w.retain
    weight = twins.token_efforts(w, rows)
    return twins.averaged(
        rows, lambda row, t: weight[id(row), t] * twins.nll(row, t), "labels", has_next=True
    )


def misdirected(w, row, t, steering=1.5):
    return ((row.activations[t] - steering * w.control) ** 2).mean()


def drift(w):
    return 0.001 * twins.contrast(w)


SINGLE = {"transform": "single_exp", "k": 0.7, "temperature": "divide"}
WRAPPED = {
    "EGU(GA)": egu,
    "EGU(GA+GD, k=2, lambda_c=0.5)": lambda w: egu(w, k=2.0, lambda_c=0.5) + twins.CE(w.retain),
    "EGU(NPO, direction=entangled_more)": lambda w: egu(
        w, sample_npo(), direction="entangled_more"
    ),
    "EGU(NPO, k=0.7, temperature=divide, transform=single_exp)": lambda w: egu(
        w, sample_npo(), **SINGLE
    ),
    "EGU(NPO, reduce=mean)": lambda w: egu(w, sample_npo(), reduce="mean"),
    "EGU(NPO, scope=micro_batch)": lambda w: egu(w, sample_npo()),
    "EGU(NPO, scope=micro_batch, weight_grad=true)": lambda w: egu(
        w, sample_npo(), weight_grad=True
    ),
    "EGU(NPO, scope=dataset, k=3)": lambda w: egu(w, sample_npo(), dataset=True, k=3.0),
    "EGU(NPO, lambda_c=0.3, contrast_reduce=sum)": lambda w: egu(
        w, sample_npo(), lambda_c=0.3, contrast="sum"
    ),
    "EGU(NPO, lambda_c=0.3, embed_tokens=answer)": lambda w: egu(
        w, sample_npo(), lambda_c=0.3, tokens="answer"
    ),
    "EGU(SimNPO(beta=1.5))": lambda w: egu(w, lambda row: twins.simnpo(row, 1.5)),
    "EGU(DPO)": lambda w: egu(w, lambda row: twins.dpo(row, w.alternate[row.index], 0.1, 20.0)),
    "EGU(IDK)": lambda w: egu(w, lambda row: A(w.alternate[row.index])),
    "EGU(GA, level=token)": lambda w: egu_tokens(w, lambda row, t: -twins.nll(row, t)) + drift(w),
    "EGU(GA(average=rows)+GD, level=token, k=2, lambda_c=0)": lambda w: (
        egu_tokens(w, lambda row, t: -twins.nll(row, t), k=2.0, average="rows") + twins.CE(w.retain)
    ),
    "EGU(NPO, level=token)": lambda w: egu_npo_tokens(w) + drift(w),
    "EGU(NPO, level=token, scope=micro_batch, k=4)": lambda w: egu_npo_tokens(w, 4.0) + drift(w),
    "EGU(IDK-TOFU, level=token)": lambda w: pooled_tokens(w) + drift(w),
    "EGU(RMU(steering=1.5), level=token)": lambda w: (
        egu_tokens(
            w,
            lambda row, t: misdirected(w, row, t),
            "unshifted",
            of=0,
            average="rows",
        )
        + drift(w)
    ),
    "EGU(CONFIDENCE(GA), lambda_c=0)": lambda w: twins.entangled(
        w, lambda row: weighted_row(row, twins.confidence(1.0))
    ),
    "EGUP(GA, mu=0.2)": lambda w: egu(w, lambda_c=0.2) + twins.penalty(w, 0.2),
    "EGUP(NPO+GD, mu=0.2, lambda_c=0.5, k=1.5)": lambda w: (
        egu(w, sample_npo(), lambda_c=0.5, k=1.5) + twins.CE(w.retain) + twins.penalty(w, 0.2)
    ),
    "EGUP(NPO, mu=0.2, level=token)": lambda w: (
        egu_npo_tokens(w) + 0.2 * twins.contrast(w) + twins.penalty(w, 0.2)
    ),
    "PROXY(GA, mu=0.3)": lambda w: rows_of(sample_ga)(w) + twins.penalty(w, 0.3),
    "PROXY(ME)": lambda w: (
        mean([sample_me(row) for row in scored(w.forget)]) + twins.penalty(w, 0.001)
    ),
    "PROXY(IDK)": lambda w: (
        rows_of(lambda row: A(w.alternate[row.index]))(w) + twins.penalty(w, 0.001)
    ),
    "PROXY(ME, penalty_nll=objective)": lambda w: (
        rows_of(sample_me)(w) + twins.penalty(w, 0.001, scale=lambda row: -sample_me(row))
    ),
    "PROXY(NPO, mu=0.3, penalty_reduce=mean)": lambda w: (
        npo(w) + twins.penalty(w, 0.3, reduce="mean")
    ),
    "PROXY(NPO, mu=0.3, penalty_nll=sum)": lambda w: npo(w) + twins.penalty(w, 0.3, scale=S),
    "PROXY(NPO, mu=0.3, penalty_nll=objective)": lambda w: (
        npo(w) + twins.penalty(w, 0.3, scale=lambda row: -twins.npo(row, 0.1))
    ),
    "PROXY(RMU(steering=1.5), mu=0.3, penalty_nll=objective)": lambda w: (
        rows_of(sample_rmu(w))(w) + twins.penalty(w, 0.3, scale=lambda row: -sample_rmu(w)(row))
    ),
    "PROXY(NPO, mu=0.3, proxy_grad=true)": lambda w: npo(w) + twins.penalty(w, 0.3, grad=True),
    "PROXY(NPO, mu=0.3, mu_rule=dual)": lambda w: npo(w) + twins.penalty(w, 0.3),
    "PROXY(EMPIRICAL(SATURATION(GA)), mu=0.3)": lambda w: (
        twins.empirical(w, lambda row: weighted_row(row, twins.saturation(5.0, 1.0)), 0.5)
        + twins.penalty(w, 0.3)
    ),
    "CONFIDENCE(GA)": lambda w: weighted_ga(w, twins.confidence(1.0)),
    "CONFIDENCE(GA, beta=0.4)": lambda w: weighted_ga(w, twins.confidence(0.4)),
    "CONFIDENCE(NPO, beta=0.4)": lambda w: weighted_npo(w, twins.confidence(0.4)),
    "CONFIDENCE(DPO, beta=0.4)": lambda w: weighted_dpo(w, twins.confidence(0.4)),
    "SATURATION(GA)": lambda w: weighted_ga(w, twins.saturation(5.0, 1.0)),
    "SATURATION(NPO, beta1=0.5, beta2=2)": lambda w: weighted_npo(w, twins.saturation(0.5, 2.0)),
    "SATURATION(DPO, beta1=0.5, beta2=2)": lambda w: weighted_dpo(w, twins.saturation(0.5, 2.0)),
    "EMPIRICAL(GA)": lambda w: twins.empirical(w, sample_ga, 0.5),
    "EMPIRICAL(GA+GD, power=1)": lambda w: twins.empirical(w, sample_ga, 1.0) + twins.CE(w.retain),
    "EMPIRICAL(NPO, power=2)": lambda w: twins.empirical(w, sample_npo(), 2.0),
    "EMPIRICAL(IDK)": lambda w: twins.empirical(w, lambda row: A(w.alternate[row.index]), 0.5),
    "SAM(NPO+KL)": lambda w: npo(w) + twins.kl(w.retain),
}


def weighted_row(row, weight):
    """Weighted GA of one row: sums over its tokens, divided by their number."""
    places = twins.predicting(row)
    return -total([weight(row, t) * twins.nll(row, t) for t in places]) / len(places)


def sample_me(row):
    return twins.me([row], "model_to_uniform", "nonpad")


def sample_rmu(w):
    def sample(row):
        places = [t for t in range(len(row.labels)) if row.labels[t] != -100]
        return mean([misdirected(w, row, t) for t in places])

    return sample


@pytest.mark.parametrize("method", FORGET)
def test_forget_loss(method):
    world = made_up()
    assert_twins(ours(method, world), FORGET[method](world), world)


@pytest.mark.parametrize("term", RETAIN)
def test_retain_term_beside_gradient_ascent(term):
    world = made_up(seed=1)
    expected = -twins.CE(world.forget) + RETAIN[term](world)
    assert_twins(ours(f"GA+{term}", world), expected, world)


@pytest.mark.parametrize("method", WRAPPED)
def test_wrapper(method):
    world = made_up(seed=2)
    assert_twins(ours(method, world), WRAPPED[method](world), world)


def test_undial_as_released_holds_down_entry_v_minus_100():
    """With 109 entries, label -100 indexes entry 9 at every position without a label (C-10)."""
    world = made_up(vocabulary=109)
    for beta in (10.0, 1.5):
        expected = twins.undial_ou(world.forget, beta)
        assert_twins(ours(f"UNDIAL-OU(beta={beta})", world), expected, world)


def test_a_fixed_boundary_takes_the_place_of_the_proxies():
    world = made_up(seed=2)
    initial = torch.linspace(0, 4, len(world.forget), dtype=torch.float64)
    actual = ours("PROXY(NPO, mu=0.3, proxy_loss=initial)", world, initial_proxy=initial)
    expected = npo(world) + twins.penalty(world, 0.3, initial=initial)
    assert_twins(actual, expected, world)


def gaps_of(world):
    return [(A(row) - A(world.proxy[row.index])).item() for row in scored(world.forget)]


def test_the_penalty_of_these_rows_fires_for_some_and_not_for_others():
    """Else the twins above would compare zeros."""
    world = made_up(seed=2)
    gaps = gaps_of(world)
    assert min(gaps) < -0.05 < 0.05 < max(gaps)


def test_a_batch_in_which_no_row_counts_gives_no_gradient_and_no_nan():
    world = made_up()
    streams = {
        name: [row._replace(index=twins.FILLER) for row in rows[-2:]]
        for name, rows in world.streams.items()
    }
    nothing = replace_streams(world, streams)
    leaves = leaves_of(nothing)
    for method in [*FORGET, *(f"GA+{term}" for term in RETAIN), *WRAPPED, "UNDIAL-OU"]:
        loss = ours(method, nothing)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        assert all(float(g.abs().max()) == 0 for g in gradients), method


def replace_streams(world, streams):
    return world._replace(streams=streams)


# Multipliers --------------------------------------------------------------------------------------


def test_the_retain_weight_follows_the_dual_rule():
    """lambda <- clamp(lambda + 5 (CE - 0.3), 0, 103), not before 2 epochs are done."""
    objective = parse("PDU+GD(limit=0.3, dual_step=5, dual_warmup=2, dual_max=103)").objective
    state = objective.new_state(7)
    weight, name = 100.0, objective.retain.name
    for epoch, measured in ((1.0, 9.0), (2.0, 9.0), (2.1, 0.4), (2.2, 1.5), (3.0, 0.1), (3.5, 0.2)):
        objective.update(state, {name: measured}, epoch=epoch)
        if epoch > 2:
            weight = min(103.0, max(0.0, weight + 5 * (measured - 0.3)))
        assert state.retain_weight.value == pytest.approx(weight)
    assert weight == pytest.approx(103 - 1 - 0.5)


def test_an_epoch_multiplier_waits_for_its_pass():
    objective = parse("GA+GD(limit=0.3, dual_every=epoch)").objective
    state = objective.new_state(7)
    objective.update(state, {objective.retain.name: 9.0}, epoch=1.0)
    assert state.retain_weight.value == 1.0


def test_mu_follows_the_mean_gap():
    """mu <- max(0, mu + 0.1 (mean d - 0.5)); the gap is that of the scored rows, sign included."""
    world = made_up(seed=2)
    objective = parse("PROXY(NPO, mu=0.3, mu_rule=dual, mu_target=0.5, mu_rate=0.1)").objective
    state = objective.new_state(7)
    outputs = {name: record(world.streams[name]) for name in objective.all_streams()}
    sums = objective(outputs, state=state)
    counts = objective.counts(outputs)
    gaps = gaps_of(world)
    assert sums.gaps == pytest.approx(sum(gaps))
    assert sums.active == sum(gap > 0 for gap in gaps)
    assert int(counts["rows"]) == len(gaps)
    gap = sum(gaps) / len(gaps)
    objective.update(state, {"proxy_gap": gap}, epoch=0.1)
    assert state.proxy_weight.value == pytest.approx(0.3 + 0.1 * (gap - 0.5))
    again = objective(outputs, state=state).total(counts)
    expected = npo(world) + twins.penalty(world, 0.3 + 0.1 * (gap - 0.5))
    assert_twins(again, expected, world)
    objective.update(state, {"proxy_gap": -1e9}, epoch=0.2)
    assert state.proxy_weight.value == 0.0


# Nothing is left out ------------------------------------------------------------------------------


def named(kind):
    """Names that the cases above use of one kind of part."""
    found = set()
    for text in [*FORGET, *(f"GA+{term}" for term in RETAIN), *WRAPPED, "UNDIAL-OU"]:
        method = parse(text)
        parts = {
            "forget": [method.forget.name],
            "retain": [method.retain.name] if method.retain else [],
            "wrapper": [wrapping.wrapper.name for wrapping in method.wrappings],
        }
        found |= set(parts[kind])
    return found


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("forget", forget_losses), ("retain", retain_terms), ("wrapper", wrappers)],
)
def test_every_registered_part_has_a_twin(kind, registry):
    assert named(kind) == set(registry.names())


def test_every_choice_of_a_loss_or_wrapper_has_a_twin():
    """Closed choices that change the value, except those that only say when to look."""
    texts = " ".join([*FORGET, *RETAIN, *WRAPPED])
    owners = {
        part.name: [part.term.loss]
        for part in (
            registry.get(name)
            for registry in (forget_losses, retain_terms)
            for name in registry.names()
        )
    }
    owners |= {name: list(wrappers.get(name).options) for name in wrappers.names()}
    timing = {"centre_refresh", "previous", "proxy_loss", "on"}
    missing = []
    for owner, sources in owners.items():
        for option in (o for source in sources for o in options_of(source).values()):
            if get_origin(option.annotation) is Literal and option.name not in timing:
                missing += [
                    f"{owner}: {option.name}={choice}"
                    for choice in get_args(option.annotation)
                    if choice != option.default and f"{option.name}={choice}" not in texts
                ]
    assert not missing


def test_padding_of_the_twins_is_garbage_that_a_mask_must_hide():
    """Changing it changes no plain loss: the twins above would notice a mask that is one off."""
    world = made_up()
    row = world.forget[0]
    end = sum(row.real)
    changed = row.logits.detach().clone()
    changed[end:] += 3.0
    other = replace_streams(
        world, {**world.streams, "forget": [row._replace(logits=changed), *world.forget[1:]]}
    )
    assert torch.equal(ours("GA", world), ours("GA", other))
    assert not torch.equal(ours("NPO-MUSE", world), ours("NPO-MUSE", other))
