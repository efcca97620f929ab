"""What follows training: automatic alpha, negation, combined models; stop rules, RMU."""

import math

import pytest
import torch

import expunge
from expunge.core.errors import InputError
from expunge.methods import parse
from expunge.models.peft import LoraSettings
from expunge.postprocess import extrapolate
from expunge.run.inputs import TrainSettings, check_combination, layer_fault, set_aside
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts
from expunge.training import TrainingArguments
from expunge.training.budget import Budget

TOKENIZER = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])
FACTS = toy_facts(20)
LORA = LoraSettings(r=4, dropout=0.0)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def unlearn(method, **options):
    settings = {"learning_rate": 0.01, "max_steps": 3, "effective_batch_size": 4}
    settings |= {"micro_batch_size": 4, "adam_epsilon": 1e-2} | options
    return expunge.unlearn(
        tiny_model(TOKENIZER), FACTS[:6], FACTS[6:], tokenizer=TOKENIZER, method=method, **settings
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_uipe_is_extrapolation_of_the_plain_run(lora):
    start = weights(tiny_model(TOKENIZER))
    plain = weights(unlearn("NPO+GD", lora=lora).model)
    further = weights(unlearn("UIPE(NPO+GD, alpha=0.5)", lora=lora).model)
    expected = extrapolate(start, plain, alpha=0.5)
    for name, value in further.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_task_vector_is_the_mirror_of_reinforcement(lora):
    start = weights(tiny_model(TOKENIZER))
    learned = weights(unlearn("REINFORCE", lora=lora).model)
    negated = weights(unlearn("TASKVECTOR(alpha=2)", lora=lora).model)
    for name, value in negated.items():
        expected = start[name] - 2 * (learned[name] - start[name])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_automatic_alpha_stays_within_the_budget(lora):
    found = unlearn("UIPE(GA+GD, alpha=auto)", lora=lora, budget=Budget(utility=0.9, rows=6))
    search = found.alpha
    assert len(search.curve) <= 8
    assert dict(search.curve).get(search.alpha, 1.0) >= 0.9
    assert [point.alpha for point in search.curve] == sorted(p.alpha for p in search.curve)
    # The weights that came out are those of the chosen factor.
    _, reserve = set_aside(expunge.load_rows(FACTS[6:], name="retain"), 6, seed=0)
    share = utility(found.model, reserve) / utility(tiny_model(TOKENIZER), reserve)
    assert share == pytest.approx(dict(search.curve)[search.alpha], abs=1e-4)


def utility(model, rows):
    """Mean probability per answer token, one row at a time."""
    from expunge.data import make_template
    from expunge.data.encode import encode_rows

    values = []
    for example in encode_rows(rows, make_template(TOKENIZER, "auto"), max_length=256):
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        picked = logps[:-1].gather(-1, ids[0, 1:, None])[example.num_prompt - 1 :, 0]
        values.append(math.exp(float(picked.mean())))
    return sum(values) / len(values)


def test_a_generous_budget_takes_the_largest_factor():
    found = unlearn("UIPE(NPO+GD, alpha=auto, alpha_max=0.5)", budget=Budget(utility=1e-6, rows=4))
    assert found.alpha.alpha == 0.5
    assert found.alpha.bounded


def test_rows_set_aside_do_not_train():
    rows = expunge.load_rows(FACTS, name="retain")
    kept, aside = set_aside(rows, 5, seed=3)
    assert len(kept) == 15
    assert len(aside) == 5
    assert not {row.answer for row in kept} & {row.answer for row in aside}
    assert [r.answer for r in set_aside(rows, 5, seed=3)[1]] == [r.answer for r in aside]


@pytest.mark.parametrize("method", ["WHP(alpha=2)", "ULD(layers=1, weight=-0.5)"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_combined_models_answer_and_are_evaluated_like_any_other(method, lora, tmp_path):
    from expunge.models.export import save_model
    from expunge.models.loading import load_model

    found = unlearn(method, lora=lora)
    ids = TOKENIZER("Who wrote it?", return_tensors="pt").input_ids
    said = found.model.generate(ids, max_new_tokens=4, do_sample=False)
    save_model(tmp_path / "model", found.model, TOKENIZER, "")
    again = load_model(tmp_path / "model")
    assert torch.equal(again.generate(ids, max_new_tokens=4, do_sample=False), said)
    target = dict(tiny_model(TOKENIZER).named_parameters())
    for name, value in found.model.parts["target"].named_parameters():
        assert torch.equal(value, target[name]), "the target model stays as it is"
    result = expunge.evaluate(
        again, FACTS[:6], FACTS[6:10], tokenizer=TOKENIZER, max_new_tokens=4
    ).results
    assert result.scores["forget/probability"].n == 6


def test_stop_at_the_proxy_boundary():
    proxies = [fact["answer"].replace("a", "o") + " indeed" for fact in FACTS[:6]]
    found = unlearn(
        "GA", proxies=proxies, max_steps=60, learning_rate=0.02, stop_at=("proxy",), stop_every=2
    )
    checks = found.checks
    assert checks[-1].reason
    assert checks[-1].proxy_gap >= 0
    assert all(check.proxy_gap < 0 for check in checks[:-1])
    assert len(found.records) == checks[-1].step < 60


def test_stop_when_the_budget_is_spent_keeps_the_last_check_within_it():
    options = {"learning_rate": 0.002, "stop_every": 1, "lr_scheduler_type": "constant"}
    found = unlearn(
        "GA", max_steps=60, stop_at=("budget",), budget=Budget(utility=0.8, rows=6), **options
    )
    checks = found.checks
    assert checks[-1].utility < 0.8 <= min(check.utility for check in checks[:-1])
    _, reserve = set_aside(expunge.load_rows(FACTS[6:], name="retain"), 6, seed=0)
    share = utility(found.model, reserve) / utility(tiny_model(TOKENIZER), reserve)
    assert share == pytest.approx(checks[-2].utility, abs=1e-4)


def test_rmu_moves_its_three_down_projections_only():
    start = weights(tiny_model(TOKENIZER))
    moved = weights(unlearn("RMU(layer=0, steering=3)+ACT(layer=0)").model)
    changed = [name for name in start if not torch.equal(start[name], moved[name])]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]
    everything = weights(unlearn("RMU(layer=0, steering=3)+ACT(layer=0)", trainable="all").model)
    assert sum(not torch.equal(start[name], everything[name]) for name in start) > 1


def test_altpo_visits_every_alternate():
    alternates = [[f"Perhaps {i} and {j}." for j in range(3)] for i in range(6)]
    found = unlearn("AltPO+GD", alternates=alternates, max_steps=-1, num_train_epochs=1)
    assert len(found.records) == math.ceil(18 / 4)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("RMU(layer=1)+ACT(layer=1)", "layer=1 is out of range: the model has 2 blocks"),
        ("ULD(layers=3)", "layers=3 is out of range"),
        ("EGU(GA, embed_layer=9)", "embed_layer=9 is out of range"),
    ],
)
def test_layers_out_of_range(method, words):
    assert words in layer_fault(parse(method), 2)
    with pytest.raises(InputError, match="out of range"):
        unlearn(method)


def test_missing_texts_are_all_named():
    with pytest.raises(InputError) as caught:
        expunge.unlearn(
            tiny_model(TOKENIZER),
            FACTS[:6],
            tokenizer=TOKENIZER,
            method="EGUP(AltPO+GD)",
            stop_at=("budget",),
        )
    text = str(caught.value)
    for word in ("retain", "proxies", "alternates", "utility budget"):
        assert word in text


def test_a_micro_batch_of_one_is_refused_only_where_it_does_nothing():
    settings = TrainSettings(arguments=TrainingArguments(micro_batch_size=1))
    with pytest.raises(InputError, match="every weight"):
        check_combination(parse("EGU(GA, scope=micro_batch)"), settings)
    check_combination(parse("EGU(GA)"), settings)
    check_combination(parse("EGU(GA, scope=micro_batch, level=token)"), settings)
