"""Both sides of the comparison, step by step: each waits for a sign before every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from common import (
    MAX_LENGTH,
    TofuRows,
    encoded,
    pad_id,
    peak_bytes,
    reset_peak,
    resident_bytes,
    template_of,
    tofu_rows,
)
from flops import Row, Shape, shape_of, step_flops
from naive import NaiveSettings, NaiveTrainer
from works import Precision, Spec

from expunge.training import Callback, StepRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data import Streams, Template

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "mixed": "float32"}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What both sides start from.

    Attributes:
        model: Fresh weights, for this side alone.
        template: Writes rows; has the tokenizer.
        rows: The rows.
        base_bytes: Resident size before the model was loaded: the libraries.
    """

    model: PreTrainedModel
    template: Template
    rows: TofuRows
    base_bytes: int = 0


class Tokens(NamedTuple):
    """Size of the batch of a step, forget and retain rows together."""

    real: int
    padded: int
    answers: int
    flops: float


class Ready(NamedTuple):
    """What a side says before its first step.

    Attributes:
        prepare_seconds: From the loaded model to the first step: copies, tables, optimiser.
        held_bytes: Weights, gradients and optimiser state of the model that trains.
        base_bytes: The libraries.
        resettable: The peak starts at the loaded model, not at the start of the process.
        tokens: Sizes of all steps.
        shape: What decides how much a step computes.
    """

    prepare_seconds: float
    held_bytes: int
    base_bytes: int
    resettable: bool
    tokens: list[Tokens]
    shape: Shape


class Step(NamedTuple):
    """What a side says after a step.

    Attributes:
        seconds: Wall-clock time from the sign to the end of the step.
        forget: Forget term before the update.
        retain: Retain term before the update.
        peak_bytes: Largest resident size since the model was loaded.
    """

    seconds: float
    forget: float
    retain: float
    peak_bytes: int


class Gate(Protocol):
    """What a side talks to."""

    def ready(self, facts: Ready) -> None:
        """Before the first step."""

    def go(self) -> bool:
        """Wait for the sign for the next step; False ends the work."""

    def report(self, step: Step) -> None:
        """After a step."""


def prepare(spec: Spec) -> Setup:
    """Load rows and model of a worker."""
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401  # loaded before memory is looked at

    import expunge
    from expunge.models.loading import load_model

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    _ = expunge.unlearn  # lazily imported: a part of the libraries, too
    rows, template = tofu_rows(), template_of(spec.model)
    base = resident_bytes()
    model = load_model(
        spec.model,
        dtype=DTYPES[spec.precision],  # type: ignore[arg-type]
        attn_implementation=spec.attention,
    )
    return Setup(model=model, template=template, rows=rows, base_bytes=base)


def run(spec: Spec, setup: Setup, gate: Gate) -> None:
    """Do the steps of a side, each after a sign."""
    resettable = reset_peak()
    if spec.side == "naive":
        run_naive(spec, setup, gate, resettable=resettable)
    else:
        run_ours(spec, setup, gate, resettable=resettable)


def run_naive(spec: Spec, setup: Setup, gate: Gate, *, resettable: bool = True) -> None:
    """The comparator."""
    streams = encoded(setup.rows, setup.template)
    tokens = batch_sizes(spec, setup.model, streams)
    shape = shape_of(setup.model)
    started = time.perf_counter()
    settings = NaiveSettings(
        loss=spec.work.loss,
        learning_rate=spec.learning_rate,
        autocast=spec.precision == "mixed",
        doubled=spec.doubled,
    )
    trainer = NaiveTrainer(setup.model, settings, pad_token_id=pad_id(setup.template))
    gate.ready(
        Ready(
            prepare_seconds=time.perf_counter() - started,
            held_bytes=held_bytes(setup.model),
            base_bytes=setup.base_bytes,
            resettable=resettable,
            tokens=tokens,
            shape=shape,
        )
    )
    plan = streams.plan(batch_size=spec.rows, seed=spec.seed)
    for number in range(spec.steps):
        if not gate.go():
            return
        started = time.perf_counter()
        picks = plan.step(number)
        rows = {name: streams.examples(name, picks) for name in ("forget", "retain")}
        losses = trainer.step(rows)
        seconds = time.perf_counter() - started
        gate.report(Step(seconds, losses.forget, losses.retain, peak_bytes()))


def run_ours(spec: Spec, setup: Setup, gate: Gate, *, resettable: bool = True) -> None:
    """Expunge, by its public function: tables, callbacks and all."""
    import expunge

    streams = encoded(setup.rows, setup.template)
    tokens = batch_sizes(spec, setup.model, streams)
    del streams
    hook = _Gated(gate, spec, setup, tokens, resettable)
    rows = setup.rows
    try:
        expunge.unlearn(
            setup.model,
            rows.forget,
            rows.retain,
            tokenizer=setup.template.tokenizer,
            template=setup.template,
            method=spec.work.method,
            proxies=rows.proxies if "EGUP" in spec.work.method else None,
            lora=True if spec.work.lora else None,
            max_length=MAX_LENGTH,
            callbacks=[hook],
            **training_options(spec),
        )
    except _Ended:
        return


def training_options(spec: Spec) -> dict[str, Any]:
    """Arguments of Expunge that make it do what the comparator does."""
    return {
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": spec.steps,
        "effective_batch_size": spec.rows,
        "micro_batch_size": spec.rows,
        "mixed_precision": mixed_precision(spec.precision, lora=spec.work.lora),
        "seed": spec.seed,
        **spec.options,
    }


def mixed_precision(precision: Precision, *, lora: bool) -> str:
    """An adapter stays in float32 over bfloat16 weights; its products are in bfloat16 then."""
    return "bf16" if precision == "mixed" or (precision == "bf16" and lora) else "no"


class _Ended(Exception):
    """The sign to stop came before the last step."""


class _Gated(Callback):
    """Holds the loop before every step and times what lies between sign and end."""

    def __init__(
        self, gate: Gate, spec: Spec, setup: Setup, tokens: list[Tokens], resettable: bool
    ) -> None:
        self.gate = gate
        self.setup = setup
        self.tokens = tokens
        self.resettable = resettable
        self.steps = spec.steps
        self.options = spec.options
        self.shape = shape_of(setup.model)
        self.started = time.perf_counter()

    def on_start(self, num_steps: int, first_step: int) -> None:
        assert (num_steps, first_step) == (self.steps, 0), "a fresh run of the asked length"
        self.gate.ready(
            Ready(
                prepare_seconds=time.perf_counter() - self.started,
                held_bytes=held_bytes(self.setup.model, self.options),
                base_bytes=self.setup.base_bytes,
                resettable=self.resettable,
                tokens=self.tokens,
                shape=self.shape,
            )
        )
        self._wait()

    def on_step(self, record: StepRecord) -> None:
        seconds = time.perf_counter() - self.started
        self.gate.report(
            Step(
                seconds,
                stream_term(record.terms, "forget"),
                stream_term(record.terms, "retain"),
                peak_bytes(),
            )
        )
        if record.step < self.steps:
            self._wait()

    def _wait(self) -> None:
        if not self.gate.go():
            raise _Ended
        self.started = time.perf_counter()


def stream_term(terms: Mapping[str, float], stream: str) -> float:
    """The one term of a stream in a step's record."""
    found = [value for name, value in terms.items() if name.partition("/")[0] == stream]
    assert len(found) == 1, f"one {stream} term expected, got {sorted(terms)}"
    return found[0]


def batch_sizes(spec: Spec, model: PreTrainedModel, streams: Streams) -> list[Tokens]:
    """What every step of the work has to compute; a pure function of data and seed."""
    shape = shape_of(model)
    plan = streams.plan(batch_size=spec.rows, seed=spec.seed)
    found = []
    for number in range(spec.steps):
        picks = plan.step(number)
        forget, retain = (streams.examples(name, picks) for name in ("forget", "retain"))
        looked_at = streams.examples("proxy", picks) if "EGUP" in spec.work.method else []
        flops = step_flops(
            shape, [*forget, *retain], forward_only=looked_at, moves_weights=not spec.work.lora
        )
        found.append(_tokens(forget, retain, flops))
    return found


def _tokens(forget: list[Any], retain: list[Any], flops: float) -> Tokens:
    rows: list[Row] = [*forget, *retain]
    return Tokens(
        real=sum(len(row.input_ids) for row in rows),
        padded=sum(
            len(stream) * max(len(row.input_ids) for row in stream) for stream in (forget, retain)
        ),
        answers=sum(row.num_labels for row in rows),
        flops=flops,
    )


def held_bytes(model: PreTrainedModel, options: Mapping[str, Any] | None = None) -> int:
    """Weights, and a gradient and two moments for each that trains, in the type of the weight.

    Args:
        model: The model as it trains.
        options: Training options that change what is kept: 8-bit moments, float32 masters.
    """
    given = options or {}
    small = given.get("optimizer") == "adamw_8bit"
    masters = given.get("master_weights") == "float32"
    total = 0
    for parameter in model.parameters():
        number, size = parameter.numel(), parameter.element_size()
        total += number * size
        if parameter.requires_grad:
            wide = masters and size < 4  # the copy and both moments are float32 then
            total += number * (size + (12 if wide else 2 if small else 2 * size))
    return total
