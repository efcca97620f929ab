"""Batch arithmetic, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.core.errors import InputError
from expunge.run.arithmetic import plan_batches, training_arguments
from expunge.run.sections import TrainingConfig


def training(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(values)


@pytest.mark.parametrize(
    ("values", "samples", "world", "expected"),
    [
        # 400 rows in steps of 32 are 12.5, so 13 steps an epoch; 32 = 4 x 8 or 4 x 4 x 2.
        ({"warmup_epochs": 1}, 400, 1, (8, 13, 65, 13)),
        ({"warmup_epochs": 1}, 400, 2, (4, 13, 65, 13)),
        # One step per epoch: the warm-up of one epoch is none.
        ({"warmup_epochs": 1, "effective_batch_size": 400}, 400, 1, (100, 1, 5, 0)),
        ({"warmup_ratio": 0.1}, 400, 1, (8, 13, 65, 7)),
        ({"warmup_steps": 3}, 400, 1, (8, 13, 65, 3)),
        ({"max_steps": 4, "warmup_steps": 9}, 400, 1, (8, 13, 4, 4)),
        ({"max_steps": 100}, 400, 1, (8, 13, 100, 0)),
        ({"num_train_epochs": 0.5}, 400, 1, (8, 13, 7, 0)),
    ],
)
def test_steps(
    values: dict[str, Any], samples: int, world: int, expected: tuple[int, int, int, int]
) -> None:
    plan = plan_batches(training(**values), samples, world_size=world)

    found = (plan.accumulation, plan.steps_per_epoch, plan.total_steps, plan.warmup_steps)
    assert found == expected


@pytest.mark.parametrize(
    ("effective", "micro", "world", "advice"),
    [
        (10, 4, 1, "take 8 or 12, or micro_batch_size 2"),
        (10, 4, 2, "10 is no multiple of micro_batch_size 4 x 2 processes; take 8 or 16, or "
         "micro_batch_size 1"),
        (2, 4, 1, "take 4, or micro_batch_size 2"),
        (12, 4, 2, "take 8 or 16, or micro_batch_size 3"),
        (5, 2, 2, "take 4 or 8"),
    ],
)  # fmt: skip
def test_uneven_batches_come_with_advice(
    effective: int, micro: int, world: int, advice: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_batches(
            training(effective_batch_size=effective, micro_batch_size=micro), 40, world_size=world
        )

    (problem,) = caught.value.problems
    assert problem.where == "effective_batch_size"
    assert problem.message.endswith(advice)


def test_nulls_become_what_the_trainer_calls_off() -> None:
    arguments = training_arguments(
        training(max_grad_norm=None, save_steps=None, precision="mixed"), seed=3
    )

    assert (arguments.max_steps, arguments.max_grad_norm, arguments.save_steps) == (-1, 0.0, -1)
    assert (arguments.mixed_precision, arguments.seed, arguments.pad_to) == ("bf16", 3, 0)


def test_defaults_of_config_and_trainer_agree() -> None:
    from expunge.training.arguments import TrainingArguments

    assert training_arguments(training()) == TrainingArguments()
