"""Limits, identities and bounds that hold for any rows: hypothesis draws them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.methods import parse
from expunge.objectives import Multiplier, MultiplierOptions, OwnRows, ProxyOptions
from expunge.objectives.constraints import control_vector
from expunge.postprocess import extrapolate
from expunge.postprocess.extrapolate import choose_alpha
from expunge.testing.fake_outputs import DIMENSION, batch_outputs, fake_row
from expunge.training.statistics import AcrossProcesses, Collector

SEEDS = st.integers(0, 10_000)
LEAVES = ("logits", "hidden", "activations")
few = settings(max_examples=15, deadline=None)


class Accelerator:
    num_processes = 1


@st.composite
def shapes(draw, least=1, most=6):
    """Lengths and prompts of ragged rows: plain text, short answers, now and then no answer."""
    lengths = draw(st.lists(st.integers(2, 8), min_size=least, max_size=most))
    found = [(length, draw(st.integers(0, length))) for length in lengths]
    found[0] = (found[0][0], 1)  # at least one label
    return found


def make(objective, rows, seed, change=lambda name, row: row):
    """Rows of every stream with leaves that take gradients."""
    made = {}
    for number, name in enumerate(objective.all_streams()):
        made[name] = [
            change(name, fake_row(length, prompt, seed * 13 + number * 101 + i))
            for i, (length, prompt) in enumerate(rows)
        ]
        made[name] = [
            replace(row, **{leaf: getattr(row, leaf).clone().requires_grad_() for leaf in LEAVES})
            for row in made[name]
        ]
    return made


def started(objective, num, seed=0):
    state = objective.new_state(num, hidden_size=DIMENSION)
    if state.entanglement is not None:
        generator = torch.Generator().manual_seed(seed)
        past = torch.randn(num, DIMENSION, generator=generator, dtype=torch.float64)
        centre = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
        state.entanglement.start(past, centre)
    return state


def loss_of(method, rows, seed, change=lambda name, row: row, proxy=lambda out: out):
    """Loss of a method and its gradients, stream by stream."""
    objective = parse(method).objective
    made = make(objective, rows, seed, change)
    outputs = {name: batch_outputs(stream) for name, stream in made.items()}
    if "proxy" in outputs:
        outputs["proxy"] = proxy(outputs["proxy"])
    result = objective(outputs, state=started(objective, len(rows)))
    loss = result.total(objective.counts(outputs))
    leaves = [getattr(row, leaf) for s in made.values() for row in s for leaf in LEAVES]
    # The loss of a batch in which every row is empty has no graph.
    gradients = torch.autograd.grad(loss + 0 * leaves[0].sum(), leaves, materialize_grads=True,
                                    allow_unused=True)  # fmt: skip
    names = [name for name, s in made.items() for _ in s for _ in LEAVES]
    return result, loss.detach(), list(zip(names, gradients, strict=True))


def assert_same(first, second, *, exact=False, rtol=1e-10, scale=1.0):
    """Equal losses and gradients; streams that only one of two methods has carry none."""
    common = {n for n, _ in first[2]} & {n for n, _ in second[2]}
    for name, gradient in (*first[2], *second[2]):
        assert name in common or float(gradient.abs().max()) == 0
    pairs = list(
        zip(
            [first[1], *(g for n, g in first[2] if n in common)],
            [scale * second[1], *(scale * g for n, g in second[2] if n in common)],
            strict=True,
        )
    )
    for a, b in pairs:
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


# Limits -------------------------------------------------------------------------------------------


@few
@given(shapes(), SEEDS)
def test_npo_tends_to_gradient_ascent_on_sums_as_beta_goes_to_zero(rows, seed):
    """2 sigmoid(-beta gap) -> 1, so the gradient tends to that of the mean of -S."""
    near, ascent = loss_of("NPO(beta=1e-8)", rows, seed), loss_of("GA(average=sums)", rows, seed)
    for (_, a), (_, b) in zip(near[2], ascent[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@few
@given(shapes(), SEEDS, st.floats(0.05, 2))
def test_npo_falls_below_gradient_ascent_as_a_row_is_forgotten(rows, seed, beta):
    """The weight of a row is 2 sigmoid(-beta (S - S0)), between 0 and 2."""
    found, ascent = (
        loss_of(f"NPO(beta={beta})", rows, seed),
        loss_of("GA(average=sums)", rows, seed),
    )
    for (_, a), (_, b) in zip(found[2], ascent[2], strict=True):
        assert bool((a.abs() <= 2 * b.abs() + 1e-12).all())


@few
@given(shapes(), SEEDS)
def test_kto_limits(rows, seed):
    """The sigmoid keeps it in [1 - 2/beta, 1]; at the reference z = r = 0: 1 - (2/beta) g(0)."""
    for beta in (0.1, 2.0):
        _, value, _ = loss_of(f"KTO(beta={beta})", rows, seed)
        assert 1 - 2 / beta - 1e-12 <= float(value) <= 1 + 1e-12

    def at_reference(name, row):
        return replace(row, ref_logits=row.logits)

    _, value, _ = loss_of("KTO(beta=0.5)", rows, seed, at_reference)
    assert float(value) == pytest.approx(1 - 4 * 0.5, rel=1e-12)
    _, value, _ = loss_of("KTO(beta=0.5, link=logsigmoid)", rows, seed, at_reference)
    assert float(value) == pytest.approx(1 + 4 * math.log(2), rel=1e-12)


@few
@given(shapes(), SEEDS)
def test_kto_moves_only_the_forget_rows(rows, seed):
    _, _, gradients = loss_of("KTO", rows, seed)
    assert all(float(g.abs().max()) == 0 for name, g in gradients if name == "alternate")
    assert any(float(g.abs().max()) > 0 for name, g in gradients if name == "forget")


# A setting that turns a part off ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "plain"),
    [
        ("WGA(beta=0)", "GA"),
        ("SatImp(beta1=0, beta2=0)", "GA"),
        ("CONFIDENCE(GA, beta=0)", "GA"),
        ("CONFIDENCE(NPO, beta=0)", "NPO"),
        ("CONFIDENCE(DPO+GD, beta=0)", "DPO+GD"),
        ("SATURATION(NPO+KL, beta1=0, beta2=0)", "NPO+KL"),
        ("EGU(GA, level=token, k=0, lambda_c=0)", "GA"),
        ("EGU(NPO+GD, level=token, k=0, lambda_c=0)", "NPO+GD"),
        ("EGU(IDK-TOFU, level=token, k=0, lambda_c=0)", "IDK-TOFU"),
        ("EGU(ME+GD, level=token, k=0, lambda_c=0)", "ME+GD"),
        ("EGU(RMU+ACT, level=token, k=0, lambda_c=0)", "RMU+ACT"),
        ("SAM(NPO+GD)", "NPO+GD"),
        ("SimNPO(beta=1.5, delta=0.5)", "SimNPO(beta=1.5, gamma=0.75)"),
    ],
)
@settings(max_examples=5, deadline=None)
@given(rows=shapes(), seed=SEEDS)
def test_turned_off_it_is_the_plain_method(method, plain, rows, seed):
    exact = not method.startswith("SimNPO")
    assert_same(loss_of(method, rows, seed), loss_of(plain, rows, seed), exact=exact)


@pytest.mark.parametrize("method", ["WGA(beta=0.7)", "SatImp(beta1=2, beta2=0.5)"])
@settings(max_examples=5, deadline=None)
@given(rows=shapes(), seed=SEEDS)
def test_a_weighted_ascent_is_the_wrapper_around_ga(method, rows, seed):
    options = method[method.index("(") + 1 : -1]
    wrapper = "CONFIDENCE" if method.startswith("WGA") else "SATURATION"
    assert_same(loss_of(method, rows, seed), loss_of(f"{wrapper}(GA, {options})", rows, seed))


# Base and its form with one value per row, which samples are weighted in (C-15).
PER_SAMPLE = {
    "GA": "GA(average=rows)",
    "NPO": "NPO",
    "SimNPO": "SimNPO",
    "DPO+GD": "DPO+GD",
    "WGA+KL": "WGA(average=rows)+KL",
    "UNDIAL": "UNDIAL(average=rows)",
    "CE-U(ignore_first=0)": "CE-U(ignore_first=0, average=rows)",
    "RMU(positions=labels)+ACT": "RMU(positions=labels)+ACT",
    "NPO+GD(weight=2, limit=0.5)": "NPO+GD(weight=2, limit=0.5)",
}


@pytest.mark.parametrize(
    "wrapper",
    [
        "EGU({}, k=0, lambda_c=0)",
        "EGU({}, k=0, lambda_c=0, scope=micro_batch)",
        "EGU({}, k=0, lambda_c=0, transform=single_exp)",
        "EMPIRICAL({}, power=0)",
    ],
)
@pytest.mark.parametrize("base", PER_SAMPLE)
@settings(max_examples=3, deadline=None)
@given(rows=shapes(), seed=SEEDS)
def test_equal_weights_are_the_base_per_sample(wrapper, base, rows, seed):
    found = loss_of(wrapper.format(base), rows, seed)
    assert_same(found, loss_of(PER_SAMPLE[base], rows, seed), rtol=1e-9)


@few
@given(
    shapes(least=3), SEEDS, st.floats(0, 4), st.sampled_from(["entangled_less", "entangled_more"])
)
def test_weights_sum_to_one_so_a_constant_loss_stays(rows, seed, k, direction):
    """Where NPO has the same value for every row, (2/beta) ln 2, weighing changes no value."""

    def at_reference(name, row):
        return replace(row, ref_logits=row.logits)

    method = f"EGU(NPO(beta=0.1), k={k}, lambda_c=0, direction={direction})"
    _, value, _ = loss_of(method, rows, seed, at_reference)
    assert float(value) == pytest.approx(20 * math.log(2), rel=1e-12)


# The proxy constraint -----------------------------------------------------------------------------


def hopeless(out):
    """Proxies far less likely than any answer: no penalty fires. Rows without one count as 0."""
    return replace(out, logps=torch.full_like(out.logps, -1e4), mask=torch.ones_like(out.mask))


@pytest.mark.parametrize("base", ["GA", "NPO+GD", "ME+KL", "DPO", "RMU+ACT", "SimNPO+AP"])
@pytest.mark.parametrize("options", ["", ", penalty_nll=sum", ", penalty_reduce=mean"])
@settings(max_examples=2, deadline=None)
@given(rows=shapes(), seed=SEEDS)
def test_egup_is_egu_bit_for_bit_while_no_penalty_fires(base, options, rows, seed):
    egup = loss_of(f"EGUP({base}, lambda_c=0.25, mu=3{options})", rows, seed, proxy=hopeless)
    assert egup[0].active == 0
    assert_same(egup, loss_of(f"EGU({base}, lambda_c=0.25)", rows, seed), exact=True)


@pytest.mark.parametrize("base", ["GA", "NPO+GD", "DPO+KL", "SimNPO", "EMPIRICAL(NPO)"])
@settings(max_examples=3, deadline=None)
@given(rows=shapes(), seed=SEEDS)
def test_proxy_alone_is_the_base_per_sample_bit_for_bit(base, rows, seed):
    plain = {"GA": "GA(average=rows)"}.get(base, base)
    for options in ("", ", mu_rule=dual"):
        found = loss_of(f"PROXY({base}{options})", rows, seed, proxy=hopeless)
        assert found[0].active == 0
        assert_same(found, loss_of(plain, rows, seed), exact=True)


@few
@given(shapes(), SEEDS, st.floats(0, 2))
def test_a_penalty_only_ever_adds_and_grows_with_mu(rows, seed, mu):
    _, base, _ = loss_of("NPO", rows, seed)
    _, once, _ = loss_of(f"PROXY(NPO, mu={mu})", rows, seed)
    _, twice, _ = loss_of(f"PROXY(NPO, mu={2 * mu})", rows, seed)
    assert float(once) >= float(base) - 1e-12
    assert float(twice - base) == pytest.approx(2 * float(once - base), rel=1e-9, abs=1e-9)


# At the reference, and at a uniform guess ---------------------------------------------------------


def at_start(name, row):
    """The model is its own reference."""
    return replace(row, ref_logits=row.logits, ref_activations=row.activations)


@few
@given(shapes(), SEEDS, st.sampled_from(["labels", "unshifted", "nonpad", "all"]))
def test_what_keeps_to_the_reference_is_zero_there_with_no_gradient(rows, seed, positions):
    if positions == "all":  # made-up padding is not at the reference, so there is none
        rows = [(6, prompt) for _, prompt in rows]
    for term in ("KL", "ACT"):
        # A retain term alone: the forget loss has weight 0.
        method = f"GA(weight=0)+{term}(positions={positions})"
        _, value, gradients = loss_of(method, rows, seed, at_start)
        assert float(value.abs()) < 1e-13
        assert all(float(g.abs().max()) < 1e-13 for _, g in gradients)


@few
@given(shapes(), SEEDS, st.floats(0.5, 20))
def test_misdirection_is_zero_at_its_target_and_above_it_elsewhere(rows, seed, steering):
    target = steering * control_vector(DIMENSION, 0).double()

    def arrived(name, row):
        return replace(row, activations=target.expand_as(row.activations))

    _, value, gradients = loss_of(f"RMU(steering={steering})", rows, seed, arrived)
    assert float(value) < 1e-13
    assert all(float(g.abs().max()) < 1e-13 for _, g in gradients)
    assert float(loss_of(f"RMU(steering={steering})", rows, seed)[1]) > 0


@few
@given(shapes(), SEEDS)
def test_cross_entropy_to_the_reference_has_no_gradient_there_only_without_holding_down(rows, seed):
    """UNDIAL with beta 0 distils the reference as it is; its value there is the entropy."""
    _, _, gradients = loss_of("UNDIAL(beta=0)", rows, seed, at_start)
    assert all(float(g.abs().max()) < 1e-13 for _, g in gradients)
    _, _, gradients = loss_of("UNDIAL(beta=3)", rows, seed, at_start)
    assert any(float(g.abs().max()) > 1e-6 for _, g in gradients)
    method = "GA(weight=0)+KL(form=cross_entropy)"
    assert all(float(g.abs().max()) < 1e-13 for _, g in loss_of(method, rows, seed, at_start)[2])


@few
@given(shapes(), SEEDS, st.sampled_from(["model_to_uniform", "uniform_to_model"]))
def test_maximum_entropy_is_least_at_a_uniform_guess(rows, seed, direction):
    # 1e-12 in the released form lowers its value by at most V 1e-12.
    method = f"ME(direction={direction})"
    assert float(loss_of(method, rows, seed)[1]) > 0
    flat = loss_of(method, rows, seed, lambda _, r: replace(r, logits=torch.full_like(r.logits, 3)))
    assert abs(float(flat[1])) < 1e-10
    assert all(float(g.abs().max()) < 1e-10 for _, g in flat[2])


@few
@given(shapes(), SEEDS, st.floats(0.02, 5))
def test_values_at_the_start(rows, seed, beta):
    """S = S0 everywhere: 2/beta ln 2; equal likelihoods of both answers: 1/beta ln 2."""
    rows = [(7, prompt) for _, prompt in rows]  # no padding, which NPO-MUSE looks at
    for method in ("NPO", "DPO", "NPO-WMDP", "NPO-MUSE"):
        _, value, _ = loss_of(f"{method}(beta={beta})", rows, seed, at_start)
        assert float(value) == pytest.approx(2 / beta * math.log(2), rel=1e-10), method
    _, value, _ = loss_of(f"DPO(beta={beta}, scale=1)", rows, seed, at_start)
    assert float(value) == pytest.approx(math.log(2), rel=1e-10)

    def equal(name, row):
        return replace(row, logits=torch.zeros_like(row.logits))

    _, value, _ = loss_of(f"GA(weight=0)+AP(beta={beta})", rows, seed, equal)
    assert float(value) == pytest.approx(math.log(2) / beta, rel=1e-10)


# Statistics over a step ---------------------------------------------------------------------------


@st.composite
def split_rows(draw):
    rows = draw(shapes(least=2, most=7))
    order = draw(st.permutations(range(len(rows))))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows) - 1))))
    edges = [0, *cuts, len(rows)]
    return rows, [list(order[a:b]) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    "method",
    [
        "EGU(NPO+GD)",
        "EGU(GA, level=token, k=2)",
        "EGU(NPO, level=token)",
        "EGUP(IDK-TOFU, level=token)",
        "EMPIRICAL(GA)",
        "KTO(beta=0.5)",
        "NPO-WMDP(beta=1)",
        "SimNPO-WMDP(beta=1)+GD",
        "PROXY(EMPIRICAL(KTO))",
        "EGU(NPO-WMDP(beta=1))",
    ],
)
@settings(max_examples=6, deadline=None)
@given(split=split_rows(), seed=SEEDS)
def test_collected_statistics_are_those_of_one_batch(method, split, seed):
    """However the rows are split: same loss and gradient, so same weights and means."""
    rows, parts = split
    objective = parse(method).objective
    state = started(objective, len(rows))
    gradients, losses = [], []
    for division in ([list(range(len(rows)))], parts):
        made = make(objective, rows, seed)
        micros = [
            {n: batch_outputs([s[i] for i in part], indices=part) for n, s in made.items()}
            for part in division
        ]
        collector = Collector()
        for micro in micros:
            objective.collect(micro, state, collector)
        statistics = OwnRows() if len(division) == 1 else collector.reduced(Accelerator())
        counts = {}
        for micro in micros:
            for name, count in objective.counts(micro).items():
                counts[name] = counts.get(name, 0) + float(count)
        totals = [objective(m, state=state, statistics=statistics).total(counts) for m in micros]
        loss = sum(totals)
        leaves = [getattr(row, leaf) for s in made.values() for row in s for leaf in LEAVES]
        gradients.append(
            torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        )
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-12)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@few
@given(st.lists(st.lists(st.floats(-30, 30), min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_collected_mean_and_logarithm_are_those_of_the_whole(parts):
    """Entries below -25 stand for what does not count."""
    tensors = [torch.tensor(part, dtype=torch.float64) for part in parts]
    tensors = [torch.where(t < -25, -torch.inf, t) for t in tensors]
    collector, whole = Collector(), torch.cat(tensors)
    for t in tensors:
        counted = t.isfinite()
        collector.mean("m", torch.where(counted, t, 0.0), counted)
        collector.log_sum("s", t)
        collector.log_mean("l", t)
    step, own, across = collector.reduced(Accelerator()), OwnRows(), AcrossProcesses(Accelerator())
    counted = whole.isfinite()
    sums = torch.where(counted, whole, 0.0)
    for name, arguments in (
        ("mean", ("m", sums, counted)),
        ("log_sum", ("s", whole)),
        ("log_mean", ("l", whole)),
    ):
        expected = getattr(own, name)(*arguments)
        for statistics in (step, across):
            actual = getattr(statistics, name)(*arguments)
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    if counted.any():
        assert float(own.mean("m", sums, counted)) == pytest.approx(float(whole[counted].mean()))
        by_hand = math.log(sum(math.exp(v) for v in whole[counted].tolist()) / int(counted.sum()))
        assert float(own.log_mean("l", whole)) == pytest.approx(by_hand, rel=1e-9, abs=1e-9)


# Multipliers --------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, st.floats(0, 10)), max_size=12),
    st.floats(-5, 5),
    st.floats(0, 200),
    st.floats(1e-3, 100),
    st.floats(0, 5),
    st.floats(1e-3, 1e3),
)
def test_a_multiplier_stays_between_zero_and_its_maximum(
    measured, limit, start, rate, warmup, maximum
):
    multiplier = Multiplier(
        MultiplierOptions(limit=limit, start=start, rate=rate, warmup=warmup, maximum=maximum)
    )
    assert 0 <= multiplier.value <= maximum
    for value, epoch in measured:
        before = multiplier.value
        multiplier.update(value, epoch=epoch)
        assert 0 <= multiplier.value <= maximum
        if epoch <= warmup or value == limit:
            assert multiplier.value == before
        elif value > limit:
            assert multiplier.value >= before
        else:
            assert multiplier.value <= before


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, max_size=8), st.floats(0, 1), st.floats(-2, 2), st.floats(1e-3, 10))
def test_mu_never_falls_under_zero(gaps, mu, target, rate):
    objective = parse("PROXY(NPO)").objective
    proxy = ProxyOptions(mu=mu, mu_rule="dual", mu_target=target, mu_rate=rate)
    objective = replace(objective, proxy=proxy)
    state = objective.new_state(1)
    for gap in gaps:
        objective.update(state, {"proxy_gap": gap}, epoch=0.0)
        assert state.proxy_weight.value >= 0


# Extrapolation ------------------------------------------------------------------------------------


@few
@given(SEEDS, st.floats(-3, 3))
def test_extrapolation_is_a_line_through_both_models(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        {"w": torch.randn(7, generator=generator, dtype=torch.float64)} for _ in range(2)
    )
    assert torch.equal(extrapolate(first, second, alpha=0)["w"], second["w"])
    assert torch.equal(extrapolate(first, second, alpha=-1)["w"], first["w"])
    expected = first["w"] + (1 + alpha) * (second["w"] - first["w"])
    torch.testing.assert_close(extrapolate(first, second, alpha=alpha)["w"], expected)


def falling(kind, edge, start):
    """A utility of 1 at -1 that falls along the update; the budget is met up to `edge`."""
    if kind == "step":
        return lambda alpha: 1.0 if alpha <= edge else start
    if kind == "line":
        return lambda alpha: 1.0 - (1 - start) * (alpha + 1) / (edge + 1)
    return lambda alpha: start ** ((alpha + 1) / (edge + 1))


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["step", "line", "power"]),
    st.floats(-0.99, 4),
    st.floats(0.3, 0.99),
    st.floats(0.1, 3),
    st.integers(2, 14),
)
def test_the_chosen_factor_is_the_largest_within_the_budget(
    kind, edge, start, alpha_max, evaluations
):
    """Up to the width the bisection has reached; below 0 where 0 is beyond the budget."""
    curve = falling(kind, edge, start)
    budget = (start + 1) / 2 if kind == "step" else start
    asked = []

    def utility(alpha):
        asked.append(alpha)
        return curve(alpha)

    found = choose_alpha(utility, budget=budget, alpha_max=alpha_max, evaluations=evaluations)
    assert len(asked) == len(set(asked)) <= evaluations
    assert [point.alpha for point in found.curve] == sorted(asked)
    assert curve(found.alpha) >= budget
    assert found.alpha <= alpha_max
    assert all(p.alpha <= found.alpha for p in found.curve if p.utility >= budget)
    if curve(0.0) < budget:
        assert -1 <= found.alpha < 0
        width = 0.5 ** (evaluations - 1)
    elif curve(alpha_max) >= budget:
        assert (found.alpha, found.bounded, len(asked)) == (alpha_max, True, 2)
        return
    else:
        assert found.alpha >= 0
        width = alpha_max * 0.5 ** (evaluations - 2)
    assert not found.bounded
    assert len(asked) == evaluations
    # Just behind the interval the budget is broken.
    assert curve(found.alpha + width * (1 + 1e-12)) < budget


@pytest.mark.parametrize("edge", [-1.0, -0.3, 0.0, 0.7])
def test_more_evaluations_than_there_are_numbers_come_to_an_end(edge):
    found = choose_alpha(lambda alpha: float(alpha <= edge), budget=0.5, evaluations=5000)
    assert found.alpha == pytest.approx(edge, abs=1e-12)
    assert len(found.curve) < 2000
