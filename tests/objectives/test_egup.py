"""EGU, EGUP and the proxy constraint: the algorithm written out slowly, and its invariants."""

import math

import pytest
import torch

from expunge.methods import parse
from expunge.objectives import EntanglementOptions, EntanglementState
from expunge.objectives.entanglement import effort, sentence_embedding
from expunge.testing.fake_outputs import DIMENSION, batch_outputs, fake_rows

STREAMS = ("forget", "retain", "alternate", "retain_alternate", "proxy")


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def outputs(seed=1, num=4):
    return {name: batch_outputs(fake_rows(num, seed + i)) for i, name in enumerate(STREAMS)}


def started(method, num=4, seed=0):
    objective = parse(method).objective
    state = objective.new_state(num)
    generator = torch.Generator().manual_seed(seed)
    state.entanglement.start(
        torch.randn(num, DIMENSION, generator=generator, dtype=torch.float64),
        torch.randn(DIMENSION, generator=generator, dtype=torch.float64),
    )
    return objective, state


def total(objective, out, state=None, **more):
    return objective(out, state=state, **more).total(objective.counts(out))


def test_algorithm_one_and_two_written_out():
    """L = sum w_i l_i + lambda_c mean softplus(r_i - s_i) + L_retain + mu sum max(0, d_i)."""
    objective, state = started("EGUP(NPO(beta=0.2)+GD(weight=3), k=1.5, mu=0.25, lambda_c=0.5)")
    rows = {name: fake_rows(4, 1 + i) for i, name in enumerate(STREAMS)}
    out = {name: batch_outputs(stream) for name, stream in rows.items()}
    expected, exps, penalty, contrast = 0.0, [], 0.0, 0.0
    for i, row in enumerate(rows["forget"]):
        hidden = row.hidden.tolist()
        mean = [sum(h[d] for h in hidden) / len(hidden) for d in range(DIMENSION)]
        s = cosine(mean, state.entanglement.centre.tolist())
        r = cosine(mean, state.entanglement.past[i].tolist())
        exps.append(math.exp(1.5 * math.exp(-s)))
        contrast += math.log(1 + math.exp(r - s)) / 4
        d = out["forget"].mean_nll()[i].item() - out["proxy"].mean_nll()[i].item()
        penalty += max(0.0, d)
    for i in range(4):
        gap = out["forget"].nll()[i].item() - out["forget"].ref_nll()[i].item()
        expected += exps[i] / sum(exps) * 2 / 0.2 * math.log(1 + math.exp(-0.2 * gap))
    retain = out["retain"].nll().sum().item() / out["retain"].num_tokens().sum().item()
    expected += 0.5 * contrast + 3 * retain + 0.25 * penalty
    assert penalty > 0
    assert float(total(objective, out, state)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("base", ["GA", "NPO", "GA+GD", "NPO+GD", "ME+KL", "IDK+AP"])
def test_egup_equals_egu_bit_for_bit_while_no_penalty_fires(base):
    out = outputs()
    out["proxy"] = out["proxy"].__class__(
        **{**vars(out["proxy"]), "logps": out["proxy"].logps * 100}
    )
    egup, state = started(f"EGUP({base}, lambda_c=0.01)")
    egu, _ = started(f"EGU({base}, lambda_c=0.01)")
    result = egup(out, state=state)
    assert result.active == 0
    assert torch.equal(result.total(egup.counts(out)), total(egu, out, state))


@pytest.mark.parametrize("base", ["NPO", "NPO+GD", "NPO+KL"])
def test_proxy_alone_equals_the_base_bit_for_bit_while_no_penalty_fires(base):
    out = outputs()
    out["proxy"] = out["proxy"].__class__(
        **{**vars(out["proxy"]), "logps": out["proxy"].logps * 100}
    )
    assert torch.equal(
        total(parse(f"PROXY({base})").objective, out), total(parse(base).objective, out)
    )


@pytest.mark.parametrize("base", ["NPO", "NPO+GD"])
def test_equal_weights_equal_the_base_method(base):
    """With k = 0 all weights are 1/B, and the weighted sum is the batch mean."""
    out = outputs()
    objective, state = started(f"EGU({base}, k=0, lambda_c=0)")
    torch.testing.assert_close(total(objective, out, state), total(parse(base).objective, out))


def test_mean_reduction_divides_by_the_batch_once_more():
    out = outputs()
    summed, state = started("EGU(NPO, lambda_c=0)")
    averaged, _ = started("EGU(NPO, lambda_c=0, reduce=mean)")
    torch.testing.assert_close(total(averaged, out, state) * 4, total(summed, out, state))


def test_weights_carry_no_gradient_unless_asked():
    rows = fake_rows(3, 2)
    for grad, wanted in (("false", False), ("true", True)):
        hidden = torch.stack([row.hidden[:3] for row in rows]).requires_grad_()
        base = batch_outputs(rows)
        padded = torch.cat(
            [hidden, torch.zeros(3, base.hidden.shape[1] - 3, DIMENSION, dtype=hidden.dtype)], 1
        )
        out = {"forget": base.__class__(**{**vars(base), "hidden": padded})}
        objective, state = started(
            f"EGU(NPO, lambda_c=0, scope=micro_batch, weight_grad={grad})", num=3
        )
        loss = total(objective, out, state)
        (gradient,) = (
            torch.autograd.grad(loss, hidden, allow_unused=True) if loss.requires_grad else (None,)
        )
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) is wanted


def test_the_proxy_side_carries_no_gradient_unless_asked():
    for grad in (False, True):
        out = outputs()
        logps = out["proxy"].logps.clone().requires_grad_()
        out["proxy"] = out["proxy"].__class__(**{**vars(out["proxy"]), "logps": logps})
        objective = parse(f"PROXY(NPO, mu=1, proxy_grad={str(grad).lower()})").objective
        loss = total(objective, out)
        assert loss.requires_grad is grad


@pytest.mark.parametrize(
    ("base", "positions"), [("ME", "nonpad"), ("RMU", "unshifted"), ("NPO", "labels")]
)
def test_proxies_compared_by_the_objective_get_what_the_forget_rows_get(base, positions):
    objective = parse(f"PROXY({base}, penalty_nll=objective)").objective
    assert objective.positions("proxy") == objective.positions("forget") == positions
    assert objective.reads("proxy") == objective.reads("forget")
    assert parse(f"PROXY({base})").objective.positions("proxy") == "labels"


def test_scope_dataset_has_mean_one_and_uses_stored_weights():
    options = EntanglementOptions(scope="dataset", k=2)
    state = EntanglementState(options, 6)
    embeddings = torch.randn(6, DIMENSION, generator=torch.Generator().manual_seed(3))
    state.start(embeddings, torch.ones(DIMENSION))
    state.refresh(torch.ones(DIMENSION), embeddings)
    assert float(state.dataset_weights.mean()) == pytest.approx(1.0)
    similarities = torch.nn.functional.cosine_similarity(embeddings, torch.ones(1, DIMENSION))
    assert state.dataset_weights.argmax() == similarities.argmin()


@pytest.mark.parametrize("transform", ["double_exp", "single_exp"])
@pytest.mark.parametrize("temperature", ["multiply", "divide"])
def test_entangled_samples_get_less_effort_unless_reversed(transform, temperature):
    similarities = torch.tensor([0.1, 0.5, 0.9])
    for direction, descending in (("entangled_less", True), ("entangled_more", False)):
        options = EntanglementOptions(
            transform=transform, temperature=temperature, direction=direction, k=0.7
        )
        values = effort(similarities, options).tolist()
        assert values == sorted(values, reverse=descending)


def test_answer_embedding_looks_at_labelled_tokens_only():
    rows = fake_rows(3, 5)
    expected = torch.stack([row.hidden[row.labels != -100].mean(0) for row in rows])
    actual = sentence_embedding(batch_outputs(rows, pad_to=12), tokens="answer")
    torch.testing.assert_close(actual, expected)


def test_state_survives_saving():
    objective, state = started("EGU(NPO, scope=dataset)")
    kept = state.entanglement
    kept.remember(torch.tensor([2]), torch.ones(1, DIMENSION, dtype=torch.float64))
    other = objective.new_state(4)
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.entanglement.past, kept.past)
    assert torch.equal(other.entanglement.centre, kept.centre)
    assert torch.equal(other.entanglement.dataset_weights, kept.dataset_weights)


def test_multipliers_and_control_vector_survive_saving():
    objective = parse("PROXY(RMU+GD(limit=0.5), mu=0.25, mu_rule=dual)").objective
    state = objective.new_state(4, hidden_size=DIMENSION, seed=3)
    state.retain_weight.value, state.proxy_weight.value = 7.25, 0.125
    other = objective.new_state(4, hidden_size=DIMENSION, seed=4)
    other.load_state_dict(state.state_dict())
    assert (other.retain_weight.value, other.proxy_weight.value) == (7.25, 0.125)
    assert torch.equal(other.control, state.control)
    assert float(state.control.norm()) == pytest.approx(1.0)
    assert float(state.control.min()) >= 0


def test_moving_centre():
    objective, state = started("EGU(NPO, centre_refresh=batch_ema, ema_decay=0.75)")
    before = state.entanglement.centre.clone()
    state.entanglement.update_centre(torch.ones(DIMENSION, dtype=torch.float64))
    torch.testing.assert_close(state.entanglement.centre, 0.75 * before + 0.25)
    assert "retain" in objective.streams()
