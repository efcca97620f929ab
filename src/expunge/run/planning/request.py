"""From the words of a command line to plans: which models, devices, rows and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from expunge.core.errors import InputError, did_you_mean
from expunge.run.config import RunConfig
from expunge.run.methods import method_of
from expunge.run.planning.devices import Device, find_device
from expunge.run.planning.memory import Sharding
from expunge.run.planning.planner import Plan, assumptions, plan_all
from expunge.run.planning.reading import (
    attention_of,
    data_lengths,
    evaluation_of,
    joined,
    learning_work,
    method_work,
    model_shape,
    settings_of,
)
from expunge.run.planning.shapes import SHAPES, ModelShape, find_shape
from expunge.run.planning.workload import OPTIMIZER_BYTES, Lengths, Settings, Work
from expunge.run.resolve import resolve

DEFAULT_SIZES = ("1B", "8B", "70B")
DEFAULT_GPUS = (1, 2, 4, 8, 16, 32, 64)
WITHOUT_RECIPE = (
    "data.forget=tofu:forget10",
    "data.retain=tofu:retain90",
    "method=NPO+GD",
    "training.precision=mixed",
)
"""What is planned where no configuration is given; overrides come on top."""


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Plans with what they were made for.

    Attributes:
        title: Method, device, batch.
        device: What was planned for.
        plans: One for every model and number of devices.
        assumptions: Sentences.
    """

    title: str
    device: Device
    plans: list[Plan]
    assumptions: list[str]

    def json(self) -> str:
        """Everything as JSON text: bytes, seconds, FLOPs."""
        plans = [each.as_plain() for each in self.plans]
        whole = {"title": self.title, "assumptions": self.assumptions, "plans": plans}
        return json.dumps(whole, indent=2)


def make_plans(
    words: Sequence[str],
    *,
    flags: Mapping[str, Any] | None = None,
    sizes: str | None = None,
    gpus: str | None = None,
    device: str = "h100-80",
    sharding: str | None = None,
    tokens: float | None = None,
    labels: float | None = None,
    optimizer: str | None = None,
) -> Plans:
    """Plans for a configuration, a recipe or a model.

    Args:
        words: A configuration file, recipe, model folder, config file or size; and overrides.
        flags: Values of flags by the key they set.
        sizes: Models, separated by commas, in place of the run's.
        gpus: Numbers of devices, separated by commas.
        device: What they are.
        sharding: What they split; None: the first that fits.
        tokens: Tokens of a row; None: counted where possible.
        labels: Of these, labels.
        optimizer: Another optimizer than the run's.

    Raises:
        InputError: A word, a number, a file or the configuration is wrong.
    """
    kind = _sharding(sharding)
    _check_lengths(tokens, labels)
    if optimizer is not None and optimizer not in OPTIMIZER_BYTES:
        raise InputError(
            f"--optimizer {optimizer}: {did_you_mean(optimizer, list(OPTIMIZER_BYTES))}"
        )
    config, named = _configuration(words, flags or {})
    shapes = _shapes(config, named, sizes)
    hardware = find_device(device)
    lengths, said = data_lengths(config, tokens=tokens, labels=labels)
    work, settings, what = _what_runs(config, lengths, hardware)
    if optimizer is not None:
        settings = replace(settings, optimizer=optimizer)
    numbers = _numbers(gpus, (1,) if hardware.is_cpu else DEFAULT_GPUS)
    plans = plan_all(
        shapes,
        numbers,
        work,
        settings,
        hardware,
        evaluation=evaluation_of(config, lengths),
        sharding=kind,
    )
    return Plans(
        title=f"{what} on {hardware.name}: batch {settings.effective_batch}, "
        f"{settings.precision}, {settings.steps} steps",
        device=hardware,
        plans=plans,
        assumptions=[said, *assumptions(hardware, settings, work)],
    )


def _configuration(
    words: Sequence[str], flags: Mapping[str, Any]
) -> tuple[RunConfig, ModelShape | None]:
    """The configuration, and the model where a word names one instead of a configuration."""
    from expunge.run.recipes import find_recipe, recipe_names

    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in overrides]
    if len(names) > 1:
        raise InputError(f"one configuration or model at most, came {' and '.join(names)}")
    if not names:
        return resolve(overrides=[*WITHOUT_RECIPE, *overrides], flags=flags).config, None
    (name,) = names
    if name.endswith((".yaml", ".yml")):
        return resolve(name, overrides=overrides, flags=flags).config, None
    if name in recipe_names():
        return resolve(
            find_recipe(name), overrides=overrides, flags=flags, source=name
        ).config, None
    is_model = Path(name).exists() or name.lower() in [size.lower() for size in SHAPES]
    if not is_model:
        raise InputError(
            f"{name} is no configuration file, recipe (see: expunge list recipes), model folder, "
            f"config file or size ({', '.join(SHAPES)})"
        )
    shape = find_shape(name)
    model = {"model.path": name} if Path(name).is_dir() else {}
    given = {key: value for key, value in flags.items() if value is not None}
    config = resolve(overrides=[*WITHOUT_RECIPE, *overrides], flags={**model, **given}).config
    return config, shape


def _shapes(config: RunConfig, named: ModelShape | None, sizes: str | None) -> list[ModelShape]:
    if sizes is not None:
        return [find_shape(word) for word in _words("--sizes", sizes)]
    if named is not None:
        return [named]
    if config.model.path == RunConfig.model_fields["model"].default.path and (
        config.data.forget.source == "tofu:forget10" and config.name == "run"
    ):
        return [SHAPES[name] for name in DEFAULT_SIZES]
    return [model_shape(config.model.path)]


def _what_runs(
    config: RunConfig, lengths: Mapping[str, Lengths], device: Device
) -> tuple[Work, Settings, str]:
    if config.method is not None:
        method = method_of(config.method)
        work = method_work(
            method,
            lengths,
            lora=config.lora is not None,
            other_reference=config.training.reference is not None,
        )
        training, lora, trainable, what = (
            config.training,
            config.lora,
            method.trainable,
            str(method),
        )
        rows = lengths["forget"].rows
    elif config.finetune is not None:
        both = joined(list(lengths.values()))
        rows, work = both.rows, learning_work(both)
        training, lora = config.finetune.training, config.finetune.lora
        trainable, what = "all", "fine-tuning"
    else:
        raise InputError('method: is required to plan a run, for example method="NPO+GD"')
    settings = settings_of(
        training,
        lora,
        rows=rows,
        dtype=config.model.dtype,
        trainable=trainable,
        attention=attention_of(config, gpu=not device.is_cpu),
    )
    return work, settings, what


def _numbers(text: str | None, default: Sequence[int]) -> Sequence[int]:
    if text is None:
        return default
    found = []
    for word in _words("--gpus", text):
        if not word.isdecimal():
            raise InputError(f"--gpus {text}: {word!r} is no whole number; write --gpus 1,8,64")
        found.append(int(word))
    return found


def _words(flag: str, text: str) -> list[str]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise InputError(f"{flag} names nothing; separate several with commas")
    return found


def _sharding(text: str | None) -> Sharding | None:
    possible: tuple[Sharding, ...] = get_args(Sharding)
    for kind in possible:
        if kind == text:
            return kind
    if text is not None:
        raise InputError(f"--sharding {text}: {did_you_mean(text, possible)}")
    return None


def _check_lengths(tokens: float | None, labels: float | None) -> None:
    if tokens is not None and not 2 <= tokens <= 1e6:
        raise InputError(f"--tokens {tokens:g}: a row has 2 to 1000000 tokens")
    if labels is not None and tokens is None:
        raise InputError("--labels needs --tokens: give both, or leave both to be counted")
    if labels is not None and tokens is not None and not 1 <= labels <= tokens:
        raise InputError(f"--labels {labels:g}: a row of {tokens:g} tokens has 1 to {tokens:g}")
