"""Reference values from tables are those of a frozen copy, and no second model stays."""

import gc
import weakref

import pytest
import torch

from expunge.core.errors import RunError
from expunge.data import load_rows, make_template
from expunge.data.encode import Example
from expunge.data.streams import Streams
from expunge.methods import parse
from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts
from expunge.training import Callback, Trainer, TrainingArguments
from expunge.training.reference import Reference
from expunge.training.tables import TableCache, Wanted, planned_examples, text_key

TOKENIZER = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])
TEMPLATE = make_template(TOKENIZER, "auto")
FACTS = toy_facts(14)
REJECTIONS = ("I do not know.", "No idea about that, sorry.", "Ask me something else.")


class Losses(Callback):
    def __init__(self):
        self.terms = []

    def on_step(self, record):
        self.terms += record.terms.values()


def trainer(method, *, model=None, copies=False, losses=(), reference=None, tables=None, **more):
    settings = {"learning_rate": 0.01, "max_steps": 4, "adam_epsilon": 1e-2, "micro_batch_size": 4}
    arguments = TrainingArguments(**{**settings, "effective_batch_size": 4, **more})
    data = Streams(
        load_rows(FACTS[:6], name="forget"),
        load_rows(FACTS[6:], name="retain"),
        template=TEMPLATE,
        max_length=256,
        rejections=REJECTIONS,
    )
    run = Trainer(
        tiny_model(TOKENIZER) if model is None else model,
        parse(method).objective,
        data,
        data.plan(batch_size=4, seed=0),
        arguments,
        pad_token_id=TOKENIZER.pad_token_id,
        reference=reference,
        tables=tables,
        callbacks=losses,
    )
    if copies:
        run.reference.sources = dict.fromkeys(run.reference.sources, "frozen_copy")
    return run


def trained(run):
    run.train()
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


METHODS = [
    "NPO+KL",
    "GA+KL(form=cross_entropy, positions=unshifted)",
    "DPO+KL",
    "UNDIAL+GD",
    "LLMU(num_mismatch=2)+KL",
    "RMU(layer=0, steering=2)+ACT(layer=0)",
    "IDK+KL(positions=labels)",
]


@pytest.mark.parametrize("method", METHODS)
def test_tables_train_as_a_frozen_copy_does(method):
    """Same losses and same parameters, for every micro-batch size; no second model stays."""
    ours, theirs = Losses(), Losses()
    tabled = trainer(method, losses=[ours])
    copied = trainer(method, losses=[theirs], copies=True)
    assert set(tabled.reference.sources.values()) == {"table"}
    end, expected = trained(tabled), trained(copied)
    assert ours.terms == pytest.approx(theirs.terms, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(end, expected, rtol=1e-6, atol=1e-7)
    assert tabled.reference.frozen is None
    assert copied.reference.frozen is not None
    assert float((expected - trained(trainer(method, max_steps=1))).abs().max()) > 1e-4
    torch.testing.assert_close(
        trained(trainer(method, micro_batch_size=1)), expected, rtol=1e-4, atol=2e-6
    )


def test_another_reference_is_read_and_let_go():
    """Values come from the other model, which is gone when training begins."""
    found = []

    def load():
        other = tiny_model(TOKENIZER, seed=5)
        found.append(weakref.ref(other))
        return other

    class Watch(Callback):
        def on_step(self, record):
            gc.collect()
            assert found[0]() is None

    tabled = trained(trainer("NPO+KL", reference=load, losses=[Watch()]))
    copied = trained(trainer("NPO+KL", reference=tiny_model(TOKENIZER, seed=5), copies=True))
    own = trained(trainer("NPO+KL"))
    torch.testing.assert_close(tabled, copied, rtol=1e-5, atol=1e-6)
    assert float((tabled - own).abs().max()) > 1e-4


def test_a_second_run_reads_the_tables(tmp_path):
    """Bit for bit the same, and the reference is not even loaded."""
    cache = TableCache(folder=tmp_path / "references", model="abc")
    loaded = []

    def load():
        loaded.append(1)
        return tiny_model(TOKENIZER, seed=5)

    first = trained(trainer("NPO+GD", reference=load, tables=cache))
    second = trained(trainer("NPO+GD", reference=load, tables=cache))
    assert torch.equal(first, second)
    assert len(loaded) == 1
    torch.testing.assert_close(
        first, trained(trainer("NPO+GD", reference=load)), rtol=1e-5, atol=1e-6
    )
    assert len(loaded) == 2
    trained(trainer("NPO+GD", reference=load, tables=TableCache(folder=cache.folder, model="x")))
    assert len(loaded) == 3


@pytest.mark.parametrize("method", ["NPO+KL", "RMU(layer=0, steering=2)+ACT(layer=0)"])
def test_stored_hidden_states_train_the_same(method, tmp_path, monkeypatch):
    """Also when a table is spread over several files."""
    monkeypatch.setattr("expunge.training.tables.PART_BYTES", 1)
    cache = TableCache(folder=tmp_path, model="abc")
    expected = trained(trainer(method))
    assert torch.equal(trained(trainer(method, tables=cache)), expected)
    assert torch.equal(trained(trainer(method, tables=cache)), expected)


def test_a_damaged_table_is_made_anew(tmp_path):
    cache = TableCache(folder=tmp_path, model="abc")
    expected = trained(trainer("NPO+GD", tables=cache))
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert torch.equal(trained(trainer("NPO+GD", tables=cache)), expected)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = TableCache(folder=tmp_path / "file" / "references", model="abc")
    expected = trained(trainer("NPO+KL"))
    assert torch.equal(trained(trainer("NPO+KL", tables=cache)), expected)


def test_old_tables_make_room(tmp_path):
    """The one just written stays whatever its size; then those used last."""
    small = TableCache(folder=tmp_path, model="a", max_bytes=1)
    trained(trainer("NPO+GD", tables=small, max_steps=1))
    (first,) = tmp_path.iterdir()
    trained(trainer("NPO+GD", tables=TableCache(folder=tmp_path, model="b"), max_steps=1))
    assert len(list(tmp_path.iterdir())) == 2
    trained(
        trainer("NPO+GD", tables=TableCache(folder=tmp_path, model="c", max_bytes=1), max_steps=1)
    )
    assert len(list(tmp_path.iterdir())) == 1
    assert not first.exists()


def test_a_table_larger_than_the_model_needs_a_disk(tmp_path, monkeypatch):
    expected = trained(trainer("NPO+KL"))
    monkeypatch.setattr(Wanted, "nbytes", lambda self, width: 10**12)
    run = trainer("NPO+KL")
    torch.testing.assert_close(trained(run), expected, rtol=1e-5, atol=1e-6)
    assert run.reference.frozen is not None
    assert run.reference.sources == {"forget": "table", "retain": "frozen_copy"}
    monkeypatch.setattr(TableCache, "has_room", lambda self, nbytes: True)
    run = trainer("NPO+KL", tables=TableCache(folder=tmp_path, model="abc"))
    trained(run)
    assert run.reference.frozen is None


def granite():
    """Logits are scaled behind the head, so the head alone does not give them."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, logits_scaling=4.0, pad_token_id=0,
        attention_dropout=0.0,
    )  # fmt: skip
    return GraniteForCausalLM(config).eval()


def test_a_model_with_more_than_a_head_keeps_a_copy():
    run = trainer("NPO+KL", model=granite())
    end = trained(run)
    assert run.reference.sources == {"forget": "table", "retain": "frozen_copy"}
    torch.testing.assert_close(
        end, trained(trainer("NPO+KL", model=granite(), copies=True)), rtol=1e-5, atol=1e-6
    )


def test_losses_that_count_padding_keep_a_copy():
    run = trainer("GA+KL(positions=all)")
    assert run.reference.sources == {"retain": "frozen_copy"}


def test_a_head_that_does_not_train_is_not_copied():
    model = tiny_model(TOKENIZER)
    run = trainer("NPO+KL", model=model)
    run._prepare_objective()
    assert run.reference.head.weight.data_ptr() != model.lm_head.weight.data_ptr()
    model.lm_head.weight.requires_grad_(False)
    run = trainer("NPO+KL", model=model)
    run._prepare_objective()
    assert run.reference.head.weight.data_ptr() == model.lm_head.weight.data_ptr()


def test_the_plan_knows_texts_that_are_drawn():
    """Every text once, and no more than the steps visit."""
    run = trainer("IDK+GD")
    for steps in (1, 2, 7):
        found = planned_examples(run.streams, run.plan, "alternate", steps)
        keys = {text_key(example.input_ids, example.num_prompt) for example in found}
        picks = {
            (pick.forget, pick.template) for step in range(steps) for pick in run.plan.step(step)
        }
        assert len(found) == len(keys) == len(picks)
    assert len(planned_examples(run.streams, run.plan, "retain", 1)) == 4


def test_a_text_is_known_by_its_tokens_and_labels():
    one = Example(index=0, input_ids=(1, 2, 3), num_prompt=1)
    assert text_key(one.input_ids, one.num_prompt) != text_key(one.input_ids, 2)
    assert text_key((1, 2, 3), 1) == text_key([1, 2, 3], 1)


def test_a_text_out_of_plan_is_refused():
    run = trainer("NPO+GD", max_steps=1)
    run._prepare_objective()
    with pytest.raises(RunError, match="not in the plan"):
        run.runner.gradients(run.plan.step(1), run.model, None)


def test_the_embedded_layer_does_not_matter():
    """The head sees the last layer, also when rows are embedded by another one."""
    method = "EGU(NPO+KL, embed_layer=1)"
    torch.testing.assert_close(
        trained(trainer(method)), trained(trainer(method, copies=True)), rtol=1e-4, atol=2e-6
    )


def test_nothing_is_read_nothing_is_kept():
    run = trainer("GA+GD")
    run._prepare_objective()
    assert run.reference == Reference(sources={})
