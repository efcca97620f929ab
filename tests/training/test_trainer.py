"""Equal runs are equal: splits, padding, restarts and repetitions give one trajectory."""

import math

import pytest
import torch
import torch.nn.functional as F

from expunge.core.errors import RunError
from expunge.data import load_rows, make_template
from expunge.data.collate import collate
from expunge.data.streams import Streams
from expunge.methods import parse
from expunge.models.forward import Precision, StreamRequest, forward_streams
from expunge.models.outputs import outputs_from_logits
from expunge.models.peft import LoraSettings
from expunge.run.inputs import TrainSettings
from expunge.run.jobs import trainable_model
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts
from expunge.training import Callback, Trainer, TrainingArguments
from expunge.training.checkpoint import checkpoints

METHODS = [
    "GA+GD",
    "NPO+KL",
    "IDK+AP",
    "ME+GD",
    "EGUP(NPO+GD, mu=0.1, lambda_c=0.3)",
    "EGU(GA, scope=dataset, previous=previous_step, centre_refresh=every_n, refresh_every=2)",
    "EGUP(GA+GD, penalty_nll=objective, proxy_loss=initial, centre_refresh=batch_ema)",
    "PROXY(NPO, proxy_grad=true, mu=0.5)",
    "EGUP(NPO+GD, level=token, lambda_c=0.3, mu=0.1, mu_rule=dual, mu_rate=0.5)",
    "EMPIRICAL(CONFIDENCE(GA+GD))",
    "SAM(NPO+GD, rho=0.05)",
    "SAM(EGU(GA), on=total, rho=0.05)",
    "SAM(EMPIRICAL(KTO+GD), rho=0.05)",
    "RMU(layer=0, steering=2)+ACT(layer=0)",
    "PDU+GD(limit=1.0, dual_step=3, weight=2)",
    "PDU+GD(limit=1.0, dual_step=3, weight=2, dual_every=epoch)",
    "KTO+GD",
    "DPO+KL",
    "LLMU(num_mismatch=2)+KL",
    "UNDIAL+GD",
    "NPO-WMDP+GD",
    "IDK-TOFU",
]
TOKENIZER = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])
TEMPLATE = make_template(TOKENIZER, "auto")
FACTS = toy_facts(14)


def streams():
    return Streams(
        load_rows(FACTS[:6], name="forget"),
        load_rows(FACTS[6:], name="retain"),
        template=TEMPLATE,
        max_length=256,
        rejections=("I do not know.", "No idea about that, sorry."),
        proxy_answers=["It was somebody else.", "Nothing.", "Blue", "A long time ago", "Two", "X"],
    )


def trainer(method, *, lora=None, callbacks=(), root=None, **arguments):
    # sgd-like sensitivity: a large epsilon keeps Adam from blowing rounding noise up to +-lr.
    settings = {"learning_rate": 0.01, "max_steps": 4, "adam_epsilon": 1e-2, "micro_batch_size": 4}
    settings |= {"effective_batch_size": 4, **arguments}
    model = tiny_model(TOKENIZER)
    training = TrainingArguments(**settings)
    prepared = trainable_model(model, TrainSettings(arguments=training, lora=lora))
    data = streams()
    return Trainer(
        prepared,
        parse(method).objective,
        data,
        data.plan(batch_size=training.effective_batch_size, seed=training.seed),
        training,
        pad_token_id=TOKENIZER.pad_token_id,
        update=parse(method).sharpness,
        callbacks=callbacks,
        checkpoint_root=root,
        key="test",
    )


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])


def trained(method, **options):
    run = trainer(method, **options)
    run.train()
    return parameters(run)


@pytest.mark.parametrize("method", METHODS)
def test_every_split_of_a_step_gives_the_same_parameters(method):
    """4 rows at once, 2 + 2, and 1 + 1 + 1 + 1; the second step of an epoch has 2 rows."""
    whole = trained(method, micro_batch_size=4)
    start = parameters(trainer(method))
    assert float((whole - start).abs().max()) > 1e-4
    for size in (2, 1):
        split = trained(method, micro_batch_size=size)
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=2e-6)
        assert abs(float((split - whole).mean())) < 1e-7


@pytest.mark.parametrize("method", ["GA+GD", "NPO+KL", "EGUP(NPO+GD)"])
def test_padding_changes_nothing(method):
    torch.testing.assert_close(trained(method, pad_to=200), trained(method), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_packed_rows_train_the_same_model_as_padded_ones(method):
    run = trainer(method)
    assert run.passes.layout.packed
    assert run.passes.layout.fused_head
    run.train()
    padded = trained(method, packing="off")
    torch.testing.assert_close(parameters(run), padded, rtol=1e-4, atol=2e-6)


def test_positions_all_do_depend_on_padding():
    """The as-released form of KL; if this passed unnoticed the plain form would be pointless."""
    plain = trained("GA+KL(positions=all)", learning_rate=0.05)
    padded = trained("GA+KL(positions=all)", learning_rate=0.05, pad_to=200)
    assert float((plain - padded).abs().max()) > 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_are_identical(method):
    assert torch.equal(trained(method), trained(method))


class Stop(Exception):
    """A process that dies."""


class DieAt(Callback):
    """Dies after a step, before its checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_step(self, record):
        if record.step == self.step:
            raise Stop


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, dropout=0.3)], ids=["full", "lora"])
def test_resumed_equals_straight_bit_for_bit(method, lora, tmp_path):
    straight = trained(method, lora=lora, max_steps=5)
    options = {"lora": lora, "max_steps": 5, "root": tmp_path, "save_steps": 1}
    with pytest.raises(Stop):
        trainer(method, callbacks=[DieAt(4)], **options).train()
    run = trainer(method, **options)
    assert run.train().resumed_from == 3
    assert torch.equal(parameters(run), straight)


@pytest.mark.parametrize("rule", ["none", "float32", "stochastic_rounding"])
def test_bfloat16_weights_resume_bit_for_bit(rule, tmp_path, monkeypatch):
    wide = tiny_model
    monkeypatch.setitem(globals(), "tiny_model", lambda tokenizer: wide(tokenizer).bfloat16())
    options = {"master_weights": rule, "max_steps": 5}
    straight = trained("NPO+GD", **options)
    options |= {"root": tmp_path, "save_steps": 1}
    with pytest.raises(Stop):
        trainer("NPO+GD", callbacks=[DieAt(4)], **options).train()
    run = trainer("NPO+GD", **options)
    assert run.train().resumed_from == 3
    assert straight.dtype == torch.bfloat16
    assert torch.equal(parameters(run), straight)


def test_a_finished_run_trains_no_further(tmp_path):
    first = trainer("NPO+GD", root=tmp_path, save_steps=2)
    first.train()
    again = trainer("NPO+GD", root=tmp_path, save_steps=2)
    result = again.train()
    assert (result.resumed_from, result.last) == (4, None)
    assert torch.equal(parameters(again), parameters(first))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trainer("NPO+GD", root=tmp_path).train()
    other = trainer("NPO+GD", root=tmp_path)
    other.key = "other"
    with pytest.raises(RunError, match="other settings, data or model"):
        other.train()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    trainer("GA", root=tmp_path, save_steps=1, save_total_limit=2).train()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000003", "step-000004"]


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    trainer("GA", root=tmp_path).train()
    (checkpoints(tmp_path)[-1] / "parameters.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="Delete that folder"):
        trainer("GA", root=tmp_path).train()


def test_time_limit_leaves_a_checkpoint(tmp_path):
    with pytest.raises(RunError, match="goes on from there"):
        trainer("GA", root=tmp_path, max_seconds=1e-9).train()
    run = trainer("GA", root=tmp_path)
    assert run.train().resumed_from == 1
    assert torch.equal(parameters(run), trained("GA"))


def test_a_loss_that_is_not_a_number_stops_the_run():
    with pytest.raises(RunError, match=r"gradient_ascent is no longer a finite number"):
        trainer("GA", learning_rate=1e30, max_steps=20, max_grad_norm=0.0).train()


@pytest.mark.parametrize(
    ("method", "lora", "expected"),
    [
        ("NPO+GD", None, {"forget": "table"}),
        ("NPO+KL", None, {"forget": "table", "retain": "table"}),
        ("DPO+GD", LoraSettings(), {"forget": "table", "alternate": "table"}),
        ("NPO+KL(positions=all)", None, {"forget": "table", "retain": "frozen_copy"}),
        ("NPO+KL", LoraSettings(), {"forget": "table", "retain": "adapter_off"}),
        ("GA+GD", None, {}),
        ("ME+GD", None, {}),
    ],
)
def test_a_second_model_only_where_nothing_else_will_do(method, lora, expected):
    run = trainer(method, lora=lora)
    assert run.reference.sources == expected
    run._prepare_objective()
    assert (run.reference.frozen is not None) == ("frozen_copy" in expected.values())


def test_adapter_off_gives_the_frozen_copys_values():
    """With a fresh adapter both references are the start model, so both runs agree."""
    lora = LoraSettings(r=4, dropout=0.0)
    with_adapter = trainer("NPO+KL", lora=lora)
    with_copy = trainer("NPO+KL", lora=lora)
    with_copy.reference.sources = {"forget": "frozen_copy", "retain": "frozen_copy"}
    with_adapter.train()
    with_copy.train()
    torch.testing.assert_close(
        parameters(with_adapter), parameters(with_copy), rtol=1e-4, atol=1e-6
    )


def test_textbook_npo_gd_loop_gives_the_same_parameters():
    """Padded batches, full logits, a second model and torch's AdamW, as public code does it."""
    arguments = {"max_steps": 3, "learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 1.0}
    ours = trained("NPO(beta=0.3)+GD(weight=2)", **arguments)
    model, reference = tiny_model(TOKENIZER), tiny_model(TOKENIZER)
    data = streams()
    plan = data.plan(batch_size=4, seed=0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, eps=1e-2)

    def sums(net, rows):
        logits = net(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        flat = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), rows.labels[:, 1:].flatten(), reduction="none"
        )
        return flat.view(len(rows.input_ids), -1).sum(-1)

    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 3)
        picks = plan.step(step)
        forget, retain = (
            collate(data.examples(name, picks), pad_token_id=0) for name in ("forget", "retain")
        )
        with torch.no_grad():
            reference_sums = sums(reference, forget)
        gap = sums(model, forget) - reference_sums
        loss = (2 / 0.3 * F.softplus(-0.3 * gap)).mean()
        loss = loss + 2 * sums(model, retain).sum() / (retain.labels[:, 1:] != -100).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    textbook = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(ours, textbook, rtol=1e-4, atol=2e-6)


def test_one_forward_over_streams_equals_one_per_stream():
    model = tiny_model(TOKENIZER)
    data = streams()
    picks = data.plan(batch_size=4, seed=1).step(0)
    positions = {"forget": "labels", "retain": "nonpad", "retain_alternate": "all"}
    requests = {
        name: StreamRequest(
            rows=collate(data.examples(name, picks), pad_token_id=0),
            reads=frozenset({"logits", "hidden"}) if name == "retain" else frozenset(),
            positions=where,
        )
        for name, where in positions.items()
    }
    with torch.no_grad():
        together = forward_streams(model, requests, pad_token_id=0)
        for name, request in requests.items():
            rows = request.rows
            result = model(
                input_ids=rows.input_ids,
                attention_mask=rows.attention_mask,
                output_hidden_states=True,
            )
            alone = outputs_from_logits(result.logits, rows.labels, rows.attention_mask)
            ours = together[name]
            torch.testing.assert_close(ours.nll(), alone.nll(), rtol=1e-5, atol=1e-5)
            assert torch.equal(ours.num_tokens(), alone.num_tokens())
            assert torch.equal(ours.num_labels, alone.num_labels)
            for which in ("labels", positions[name]):
                assert torch.equal(ours.positions(which).sum(-1), alone.positions(which).sum(-1))
            assert torch.equal(ours.predicts.sum(-1) >= ours.mask.sum(-1), torch.ones(4).bool())
            if name == "retain":
                hidden = result.hidden_states[-1] * rows.attention_mask[..., None]
                kept = ours.hidden * rows.attention_mask[..., None]
                torch.testing.assert_close(kept, hidden, rtol=1e-5, atol=1e-5)
                shown = ours.logits[ours.mask]
                torch.testing.assert_close(shown, alone.logits[alone.mask], rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_bfloat16_and_returns_float32():
    model = tiny_model(TOKENIZER)
    data = streams()
    rows = collate(data.fixed("forget"), pad_token_id=0)
    requests = {"forget": StreamRequest(rows=rows)}
    with torch.no_grad():
        full = forward_streams(model, requests, pad_token_id=0)["forget"]
        half = forward_streams(model, requests, pad_token_id=0, precision=Precision(autocast=True))[
            "forget"
        ]
    assert half.logps.dtype == torch.float32
    assert not torch.equal(half.logps, full.logps)
    torch.testing.assert_close(half.logps, full.logps, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_learning_rate_follows_transformers(name, warmup):
    from transformers import get_scheduler

    arguments = TrainingArguments(
        learning_rate=0.5, max_steps=10, warmup_steps=warmup, lr_scheduler_type=name
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    kind = "constant_with_warmup" if name == "constant" else name
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    for step in range(10):
        expected = optimizer.param_groups[0]["lr"]
        assert arguments.learning_rate_at(step, 5) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warmup_in_epochs_is_none_where_an_epoch_is_one_step():
    arguments = TrainingArguments(warmup_epochs=1, num_train_epochs=5)
    assert arguments.num_warmup_steps(7) == 7
    assert arguments.num_warmup_steps(1) == 0
    assert TrainingArguments(warmup_ratio=0.1, max_steps=25).num_warmup_steps(5) == math.ceil(2.5)


def test_weights_per_micro_batch_are_averaged_over_the_step():
    """Two micro-batches whose weights each add up to 1 must not double the forget term."""
    run = trainer("EGU(GA, scope=micro_batch, lambda_c=0)", micro_batch_size=2, max_steps=1)
    halves = run.train().last.terms["forget/gradient_ascent"]
    whole = trainer("EGU(GA, scope=micro_batch, lambda_c=0)", micro_batch_size=4, max_steps=1)
    assert halves == pytest.approx(whole.train().last.terms["forget/gradient_ascent"], rel=0.05)
