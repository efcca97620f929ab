"""`expunge verify golden` on small files of the known layouts: agreement, faults, unknown names."""

import copy
import json

import pytest
import torch

from expunge.core.errors import InputError
from expunge.methods import parse
from expunge.run.verify import verify
from expunge.testing.fake_outputs import batch_outputs, fake_rows

SETS = {"forget": 1, "retain": 2, "idk": 3, "retain_idk": 4}
STREAM = {"forget": "forget", "retain": "retain", "idk": "alternate"}
STREAM |= {"retain_idk": "retain_alternate"}
SOURCE = "trainer/losses.py:get_loss"
HYPER = {"beta": 0.2, "forget_coeff": 0.5, "regularization_coeff": 2.0}


def fixture():
    """Stored inputs in the layout of fixtures.json."""
    sets = {}
    for name, seed in SETS.items():
        rows = fake_rows(3, seed)
        length = max(len(row.input_ids) for row in rows)
        out = batch_outputs(rows)

        def padded(row, values, fill, length=length):
            missing = length - len(values)
            tail = torch.full((missing, *values.shape[1:]), fill).to(values)
            return torch.cat([values, tail]).tolist()

        sets[name] = {
            "input_ids": [padded(r, r.input_ids, 0) for r in rows],
            "labels": [padded(r, r.labels, -100) for r in rows],
            "attention_mask": out.nonpad.long().tolist(),
            "logits": out.logits.tolist(),
            "ref_logits": out.ref_logits.tolist(),
        }
    return sets


def by_hand(sets, name):
    """Losses written out with plain torch, apart from everything of ours."""
    logits = {
        k: torch.tensor(v["logits"], dtype=torch.float64).requires_grad_() for k, v in sets.items()
    }

    def sums(key, values=None):
        values = logits[key] if values is None else values
        labels = torch.tensor(sets[key]["labels"])[:, 1:]
        logp = values[:, :-1].log_softmax(-1)
        picked = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return -(picked * (labels != -100)).sum(-1), (labels != -100).sum(-1)

    forget, count = sums("forget")
    reference, _ = sums("forget", torch.tensor(sets["forget"]["ref_logits"], dtype=torch.float64))
    retain, retain_count = sums("retain")
    if name == "NPO+GD":
        gap = -HYPER["beta"] * (forget - reference)
        loss = 0.5 * (2 / HYPER["beta"]) * torch.nn.functional.softplus(gap).mean()
        loss = loss + 2 * retain.sum() / retain_count.sum()
    else:
        loss = -0.5 * forget.sum() / count.sum() + 2 * retain.sum() / retain_count.sum()
    loss.backward()
    gradients = {k: v.grad.tolist() for k, v in logits.items() if v.grad is not None}
    return {"loss": loss.item(), "grad_logits": gradients}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    sets = fixture()
    cases = [
        {"fixture": "A", "name": name, "function": SOURCE, "hyper": HYPER, **by_hand(sets, name)}
        for name in ("NPO+GD", "GA+GD")
    ]
    (root / "fixtures.json").write_text(json.dumps({"fixtures": {"A": sets}}))
    (root / "losses.json").write_text(json.dumps({"header": {}, "cases": cases}))
    return root


def test_agreement_in_value_and_gradient(folder):
    results = list(verify([folder]))
    assert [result.outcome for result in results] == ["passed", "passed"]
    assert results[0].line().startswith("passed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: case.update(loss=case["loss"] * (1 + 1e-8)), "loss differs"),
        (lambda case: case["grad_logits"].update(forget=[[1.0]]), "gradient of forget"),
        (lambda case: case["grad_logits"].pop("retain"), "gradient of retain"),
        (lambda case: case["grad_logits"].update(other=[[1.0]]), "no gradient for other"),
    ],
)
def test_every_disagreement_is_a_failure(folder, tmp_path, change, message):
    content = json.loads((folder / "losses.json").read_text())
    content["cases"] = [copy.deepcopy(content["cases"][0])]
    change(content["cases"][0])
    (tmp_path / "fixtures.json").write_text((folder / "fixtures.json").read_text())
    (tmp_path / "losses.json").write_text(json.dumps(content))
    (result,) = verify([tmp_path / "losses.json"])
    assert result.outcome == "failed"
    assert message in result.detail


def test_an_unknown_objective_is_not_supported_rather_than_passed(folder, tmp_path):
    case = {"fixture": "A_qa", "name": "XYZ", "function": SOURCE, "hyper": HYPER, "loss": 0.0}
    cases = [case, {**case, "fixture": "Z", "name": "GA"}]
    (tmp_path / "losses.json").write_text(json.dumps({"cases": cases}))
    results = list(verify([tmp_path / "losses.json"]))
    assert {result.outcome for result in results} == {"not supported"}
    assert [result.detail for result in results] == ["no such objective", "no fixture Z"]


def test_unreadable_input_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        list(verify([tmp_path / "absent"]))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        list(verify([tmp_path]))


def test_total_of_the_worked_algorithm_is_what_egup_minimises():
    """The checker and the objective share no constant: a changed mu must show."""
    assert parse("EGUP(NPO)").proxy.mu != parse("EGUP(NPO, mu=0.005)").proxy.mu
