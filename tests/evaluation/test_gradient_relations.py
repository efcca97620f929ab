"""Gradients of facts and updates along them, against a slow twin with whole vectors in float64."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from expunge.core.errors import InputError
from expunge.data import load_rows, make_template
from expunge.data.related import fact_id, generate_related
from expunge.evaluation import gradient_relations
from expunge.evaluation.gradient_relations import (
    pair_facts,
    relation_cosines,
    update_projections,
)
from expunge.testing.tiny import tiny_model, tiny_tokenizer

FACTS = generate_related(3, 3, seed=0)
TOKENIZER = tiny_tokenizer("smollm2", texts=[row.question for row in FACTS.unrelated])
TEMPLATE = make_template(TOKENIZER, "auto")
PAIRS = pair_facts(FACTS.target, FACTS.related, FACTS.unrelated)
GROUPS = ("target", "related", "unrelated")


@pytest.fixture
def model():
    return tiny_model(TOKENIZER)


@pytest.fixture
def unlearned(model):
    """The model after a step of its own: every weight moved a little, not all by the same."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return moved


def flat_gradient(model, row, pattern=""):
    """The gradient of a row's mean NLL as one float64 vector, by the plainest means."""
    wide = copy.deepcopy(model).double()
    prompt, answer = TEMPLATE.encode(row.messages, row.answer)
    logits = wide(torch.tensor([[*prompt, *answer]])).logits[0]
    F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer)).backward()
    return torch.cat(
        [p.grad.flatten() for name, p in wide.named_parameters() if pattern in name]
    ).numpy()


def flat_update(model, unlearned, pattern=""):
    before, after = (dict(item.named_parameters()) for item in (model, unlearned))
    parts = [
        (after[name].double() - before[name].double()).flatten()
        for name in before
        if pattern in name
    ]
    return torch.cat(parts).detach().numpy()


def rows_of(pair, group):
    return [pair.target] if group == "target" else getattr(pair, group)


def cosine(a, b):
    return a @ b / math.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("pattern", ["", "layers.1.mlp"])
def test_cosines_equal_the_twin(model, pattern):
    found = relation_cosines(model, TEMPLATE, PAIRS, trainable=pattern.replace(".", r"\.") or "all")
    assert found.facts == ("t0000", "t0001", "t0002")
    for group in ("related", "unrelated"):
        for i, pair in enumerate(PAIRS):
            own = flat_gradient(model, pair.target, pattern)
            others = [flat_gradient(model, row, pattern) for row in rows_of(pair, group)]
            expected = np.mean([cosine(own, other) for other in others])
            assert found.values[group][i] == pytest.approx(expected, abs=1e-5)
            assert -1 <= found.values[group][i] <= 1


@pytest.mark.parametrize("pattern", ["", "self_attn"])
def test_projections_equal_the_twin(model, unlearned, pattern):
    """norm |v.g| / |g|, share of |v|, and the sign, for every group."""
    found = update_projections(model, unlearned, TEMPLATE, PAIRS, trainable=pattern or "all")
    update = flat_update(model, unlearned, pattern)
    size = math.sqrt(update @ update)
    assert found.update_norm == pytest.approx(size, rel=1e-9)
    for group in GROUPS:
        for i, pair in enumerate(PAIRS):
            gradients = [flat_gradient(model, row, pattern) for row in rows_of(pair, group)]
            along = [g @ update / math.sqrt(g @ g) for g in gradients]
            norm, signed = np.mean(np.abs(along)), np.mean(along) / size
            # The single row may be nearly at a right angle: compare on the scale of the update.
            assert found.norms.values[group][i] == pytest.approx(norm, abs=1e-5 * size)
            assert found.shares.values[group][i] == pytest.approx(norm / size, abs=1e-5)
            assert found.cosines.values[group][i] == pytest.approx(signed, abs=1e-5)


def test_an_update_along_a_gradient_is_its_own_projection(model):
    """v = 0.5 g of the first target: share and cosine 1, norm 0.5 |g|; against it cosine -1."""
    target = PAIRS[0].target
    gradient = torch.tensor(flat_gradient(model, target))
    for sign in (1, -1):
        moved = copy.deepcopy(model).double()
        start = 0
        with torch.no_grad():
            for parameter in moved.parameters():
                part = gradient[start : start + parameter.numel()]
                parameter += sign * 0.5 * part.reshape(parameter.shape)
                start += parameter.numel()
        found = update_projections(model, moved, TEMPLATE, PAIRS[:1])
        length = 0.5 * float(gradient.norm())
        assert found.update_norm == pytest.approx(length, rel=1e-6)
        assert found.norms.values["target"][0] == pytest.approx(length, rel=1e-5)
        assert found.shares.values["target"][0] == pytest.approx(1, abs=1e-5)
        assert found.cosines.values["target"][0] == pytest.approx(sign, abs=1e-5)
        # What the target's own gradient shares with a related fact is what the update does to it.
        cosines = relation_cosines(model, TEMPLATE, PAIRS[:1])
        assert found.cosines.values["related"][0] == pytest.approx(
            sign * cosines.values["related"][0], abs=1e-5
        )


def test_a_state_dict_will_do_and_pieces_change_nothing(model, unlearned, monkeypatch):
    whole = update_projections(model, unlearned, TEMPLATE, PAIRS[:2])
    monkeypatch.setattr(gradient_relations, "_CHUNK", 701)
    pieces = update_projections(model, unlearned.state_dict(), TEMPLATE, PAIRS[:2])
    for group in GROUPS:
        assert pieces.cosines.values[group] == pytest.approx(whole.cosines.values[group], abs=1e-9)
    cosines = relation_cosines(model, TEMPLATE, PAIRS[:2])
    monkeypatch.undo()
    again = relation_cosines(model, TEMPLATE, PAIRS[:2])
    assert cosines.values["related"] == pytest.approx(again.values["related"], abs=1e-9)


def test_no_update_has_no_direction(model):
    found = update_projections(model, copy.deepcopy(model), TEMPLATE, PAIRS[:2])
    assert found.update_norm == 0
    assert found.norms.values["related"].tolist() == [0, 0]
    assert np.isnan(found.shares.values["related"]).all()
    mean = found.cosines.mean("related")
    assert (mean.n, mean.unscored) == (0, 2)


def test_the_model_is_left_as_it_was(model, unlearned):
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    relation_cosines(model, TEMPLATE, PAIRS[:1], trainable="mlp")
    update_projections(model, unlearned, TEMPLATE, PAIRS[:1])
    with pytest.raises(InputError, match="matches no parameter name"):
        relation_cosines(model, TEMPLATE, PAIRS[:1], trainable="mpl")
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (
        len(list(model.parameters())) - 1
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_is_off(model):
    """Equal numbers from a model in training mode with dropout."""
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    calm = relation_cosines(model, TEMPLATE, PAIRS[:1]).values["related"]
    model.train()
    assert relation_cosines(model, TEMPLATE, PAIRS[:1]).values["related"] == calm


def test_at_most_two_gradients_exist_at_a_time(model, monkeypatch):
    """Counts the gradients that are alive whenever a new one is made."""
    import weakref

    real, alive, most = torch.autograd.grad, [], []

    def counted(*args, **options):
        most.append(sum(reference() is not None for reference in alive))
        found = real(*args, **options)
        alive.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(torch.autograd, "grad", counted)
    relation_cosines(model, TEMPLATE, PAIRS)
    assert max(most) == 1
    assert len(most) == 3 * (1 + 3 + 3)


def test_half_precision_is_close(model):
    exact = relation_cosines(model, TEMPLATE, PAIRS[:2]).values["related"]
    half = relation_cosines(copy.deepcopy(model).bfloat16(), TEMPLATE, PAIRS[:2])
    assert half.values["related"] == pytest.approx(exact, abs=0.05)


def test_means_carry_n_and_an_interval(model):
    found = relation_cosines(model, TEMPLATE, PAIRS)
    summary = found.summary()
    assert set(summary) == {"related", "unrelated", "difference"}
    for mean in summary.values():
        assert mean.n == 3
        assert mean.low <= mean.value <= mean.high
    expected = found.values["related"].mean() - found.values["unrelated"].mean()
    assert summary["difference"].value == pytest.approx(expected)


def test_progress(model, unlearned):
    told = []
    update_projections(
        model, unlearned, TEMPLATE, PAIRS[:2], on_progress=lambda *given: told.append(given)
    )
    assert [(done, total) for done, total, _ in told] == [(1, 2), (2, 2)]


class TestPairs:
    def test_controls_have_the_form_of_the_related_rows(self):
        facts = generate_related(13, 5, num_unrelated=13)
        pairs = pair_facts(facts.target, facts.related, facts.unrelated)
        form = ("relation", "chain", "step")
        used = []
        for pair in pairs:
            assert len(pair.related) == len(pair.unrelated) == 5
            for mine, other in zip(pair.related, pair.unrelated, strict=True):
                assert fact_id(mine) == pair.fact
                assert fact_id(other).startswith("u")
                assert [mine.fields[name] for name in form] == [other.fields[name] for name in form]
            assert len({fact_id(row) for row in pair.unrelated}) == 1
            used.append(fact_id(pair.unrelated[0]))
        assert len(set(used)) == 13  # nobody serves twice while others are left

    def test_rows_of_other_makers(self):
        """Without relation, chain and step any unrelated row is a control, in turn."""
        target = load_rows(
            [{"question": f"t{i}?", "answer": "x", "fact_id": i} for i in range(2)], name="target"
        )
        related = load_rows(
            [{"question": f"r{i}?", "answer": "x", "fact_id": i % 3} for i in range(6)],
            name="related",
        )
        unrelated = load_rows(
            [{"question": f"u{i}?", "answer": "x"} for i in range(3)], name="unrelated"
        )
        pairs = pair_facts(target, related, unrelated)
        assert [[row.question for row in pair.related] for pair in pairs] == [
            ["r0?", "r3?"],
            ["r1?", "r4?"],
        ]
        assert [[row.question for row in pair.unrelated] for pair in pairs] == [
            ["u0?", "u1?"],
            ["u2?", "u0?"],
        ]

    def test_a_target_without_related_rows_is_unscored(self, model):
        pairs = pair_facts(FACTS.target[:2], FACTS.related[:3], FACTS.unrelated)
        found = relation_cosines(model, TEMPLATE, pairs)
        assert np.isnan(found.values["related"]).tolist() == [False, True]
        assert (found.mean("related").n, found.mean("related").unscored) == (1, 1)

    def test_what_does_not_fit_together_is_explained(self):
        plain = load_rows([{"question": "q?", "answer": "x"}], name="target")
        with pytest.raises(InputError, match="target row 0 has no fact_id"):
            pair_facts(plain, FACTS.related, FACTS.unrelated)
        with pytest.raises(InputError, match="no related row has the fact_id of a target"):
            pair_facts(FACTS.target[:1], FACTS.related[3:], FACTS.unrelated)
        with pytest.raises(InputError, match="several target rows have the fact_id t0000"):
            pair_facts(FACTS.related[:3], FACTS.related, FACTS.unrelated)
        with pytest.raises(InputError, match="no unrelated rows"):
            pair_facts(FACTS.target, FACTS.related, FACTS.unrelated[:0])


def test_another_architecture_is_refused(model):
    other = tiny_model(TOKENIZER, num_layers=1)
    with pytest.raises(InputError, match=r"layers\.1"):
        update_projections(model, other, TEMPLATE, PAIRS)


def test_a_row_that_is_too_long_is_refused(model):
    with pytest.raises(InputError, match="longer than max_length=8"):
        relation_cosines(model, TEMPLATE, PAIRS, max_length=8)
