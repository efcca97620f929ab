"""Two real processes over gloo give the parameters of one; ragged rows show a wrong mean."""

import pytest
import torch

from expunge.testing.distributed import run_distributed

METHODS = (
    "GA+GD",
    "NPO+KL",
    "IDK+AP",
    "EGUP(NPO+GD, mu=0.1, lambda_c=0.3)",
    "EGUP(GA+GD, centre_refresh=batch_ema, proxy_loss=initial)",
    "EGUP(NPO+GD, level=token, lambda_c=0.3, mu=0.1, mu_rule=dual, mu_rate=0.5)",
    "SAM(EMPIRICAL(KTO+GD), rho=0.05)",
    "RMU(layer=0, steering=2)+ACT(layer=0)",
    "PDU+GD(limit=1.0, dual_step=3, weight=2)",
    "NPO-WMDP+GD",
)


def train(methods, micro):
    """Parameters, remembered embeddings and the log of a run in this process's world."""
    from expunge.data import load_rows, make_template
    from expunge.data.streams import Streams
    from expunge.methods import parse
    from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts
    from expunge.training import Trainer, TrainingArguments
    from expunge.training.passes import make_accelerator

    tokenizer = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])
    facts = toy_facts(12)
    facts[0]["answer"] += " and that is a much longer answer than any of the others in here"
    found = []
    for method in methods:
        data = Streams(
            load_rows(facts[:5], name="forget"),
            load_rows(facts[5:], name="retain"),
            template=make_template(tokenizer, "auto"),
            max_length=256,
            rejections=("I do not know.", "No idea about that, sorry."),
            proxy_answers=["It was somebody else.", "Nothing.", "Blue", "Long ago", "Two"],
        )
        # 5 rows in batches of 4: the last batch has one row, so one of two processes has none.
        arguments = TrainingArguments(
            learning_rate=0.01,
            max_steps=4,
            adam_epsilon=1e-2,
            effective_batch_size=4,
            micro_batch_size=micro,
        )
        model = tiny_model(tokenizer)
        accelerator = make_accelerator()
        trainer = Trainer(
            model,
            parse(method).objective,
            data,
            data.plan(batch_size=4, seed=0),
            arguments,
            pad_token_id=tokenizer.pad_token_id,
            update=parse(method).sharpness,
            accelerator=accelerator,
        )
        last = trainer.train().last
        state = None if trainer.entanglement is None else trainer.entanglement.state
        found.append(
            {
                "world": accelerator.num_processes,
                "parameters": [p.detach().tolist() for p in model.parameters()],
                "past": [] if state is None else state.past.tolist(),
                "centre": [] if state is None else state.centre.tolist(),
                "terms": dict(last.terms),
                "rows": last.extra.get("penalty_active"),
            }
        )
    return found


def member(rank, methods, micro):
    return train(methods, micro)


@pytest.fixture(scope="module")
def pair():
    return run_distributed(member, 2, METHODS, 2)


@pytest.mark.parametrize("number", range(len(METHODS)), ids=METHODS)
def test_two_processes_equal_one(pair, number):
    single = train([METHODS[number]], 2)[0]
    for result in (pair[0][number], pair[1][number]):
        assert result["world"] == 2
        for ours, theirs in zip(result["parameters"], single["parameters"], strict=True):
            torch.testing.assert_close(
                torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=2e-6
            )
        for name in ("past", "centre"):
            torch.testing.assert_close(
                torch.tensor(result[name]), torch.tensor(single[name]), rtol=1e-3, atol=1e-5
            )
        assert result["terms"] == pytest.approx(single["terms"], rel=1e-4, abs=1e-6)
        assert result["rows"] == single["rows"]
