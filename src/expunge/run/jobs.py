"""The jobs of a run on plain arguments: learn and forget. No YAML and no run folders here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.core.errors import InputError, Problem, Problems
from expunge.core.fingerprint import fingerprint
from expunge.data import RowSet, StreamPlan, Streams, Template
from expunge.data.chunks import TextForm
from expunge.data.encode import OnTooLong
from expunge.data.plan import Pairing
from expunge.data.rows import row_set
from expunge.methods import Method, describe
from expunge.models.loading import torch_dtype
from expunge.models.peft import LoraSettings, add_lora, is_peft, merge, select_trainable
from expunge.objectives import Objective, Term
from expunge.objectives.losses import nll
from expunge.postprocess import extrapolate
from expunge.training import Callback, Trainer, TrainingArguments, TrainResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARN = Objective(forget=Term(loss=nll, label="train/nll"))
"""What fine-tuning minimises: the mean NLL of the answer tokens of the plan's first stream."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a model is trained, besides what it learns or forgets.

    Attributes:
        arguments: How the parameters move.
        lora: Adapters to train; None for the weights themselves.
        trainable: "all" or a regular expression searched in parameter names.
        pairing: Which retain row goes with a forget row; see `StreamPlan`.
        max_length: Most tokens of a row.
        on_too_long: What to do with longer rows: error, truncate, drop.
        text_form: How plain text is cut into pieces; see `chunk_text`.
    """

    arguments: TrainingArguments = field(default_factory=TrainingArguments)
    lora: LoraSettings | None = None
    trainable: str = "all"
    pairing: Pairing = "shuffled"
    max_length: int = 512
    on_too_long: OnTooLong = "error"
    text_form: TextForm = "muse"

    def as_plain(self) -> dict[str, Any]:
        """Settings that determine the result, for fingerprints."""
        ignored = {"logging_steps", "save_steps", "save_total_limit", "max_seconds"}
        arguments = {k: v for k, v in vars(self.arguments).items() if k not in ignored}
        lora = None if self.lora is None else vars(self.lora)
        return {**vars(self), "arguments": arguments, "lora": lora}


@dataclass(frozen=True, kw_only=True)
class UnlearnInputs:
    """The texts of an unlearning run.

    Attributes:
        forget: What must be unlearned.
        retain: What must be kept.
        rejections: Refusals for targeted methods.
        proxies: One proxy answer per forget row.
    """

    forget: RowSet
    retain: RowSet | None = None
    rejections: Sequence[str] = ()
    proxies: Sequence[str] | None = None

    def check(self, method: Method) -> None:
        """See whether the method has the texts it needs.

        Raises:
            InputError: Lists every text that is missing, with what to do.
        """
        problems = Problems()
        if method.needs_retain and self.retain is None:
            problems.add("retain", f"{method} needs a retain set; give one, or take another method")
        if "proxy" in method.streams and self.proxies is None:
            problems.add(
                "proxies",
                f"{method} needs one proxy answer per forget row; write them with: expunge proxies",
            )
        alternates = {"alternate", "retain_alternate"} & set(method.streams)
        if alternates and not self.rejections:
            problems.add("rejections", f"{method} needs at least one rejection")
        problems.raise_if_any()

    def fingerprint(self) -> str:
        """Fingerprint of all texts."""
        retain = None if self.retain is None else self.retain.fingerprint
        proxies = None if self.proxies is None else list(self.proxies)
        return fingerprint([self.forget.fingerprint, retain, list(self.rejections), proxies])


def learn(
    model: PreTrainedModel,
    rows: RowSet,
    template: Template,
    *,
    settings: TrainSettings,
    pad_token_id: int,
    dtype: str = "float32",
    callbacks: Sequence[Callback] = (),
    checkpoint_root: Path | None = None,
    key: str = "",
    accelerator: Any = None,
) -> tuple[PreTrainedModel, TrainResult]:
    """Fine-tune a model on all rows and return it without adapter, in `dtype`."""
    streams = Streams(
        rows,
        template=template,
        max_length=settings.max_length,
        on_too_long=settings.on_too_long,
        text_form=settings.text_form,
    )
    prepared = trainable_model(model, settings)
    trainer = Trainer(
        prepared,
        LEARN,
        streams,
        _plan(streams, settings),
        settings.arguments,
        pad_token_id=pad_token_id,
        callbacks=callbacks,
        checkpoint_root=checkpoint_root,
        key=key,
        accelerator=accelerator,
    )
    result = trainer.train()
    return finished_model(prepared, dtype), result


def forget_job(
    model: PreTrainedModel,
    method: Method,
    inputs: UnlearnInputs,
    template: Template,
    *,
    settings: TrainSettings,
    pad_token_id: int,
    dtype: str = "float32",
    callbacks: Sequence[Callback] = (),
    checkpoint_root: Path | None = None,
    key: str = "",
    accelerator: Any = None,
) -> tuple[PreTrainedModel, TrainResult]:
    """Unlearn and return the model without adapter, post-processed, in `dtype`.

    Raises:
        InputError: The method needs texts that are not there, or settings do not go together.
    """
    inputs.check(method)
    check_combination(method, settings)
    streams = Streams(
        inputs.forget,
        inputs.retain,
        template=template,
        max_length=settings.max_length,
        on_too_long=settings.on_too_long,
        text_form=settings.text_form,
        rejections=inputs.rejections,
        proxy_answers=inputs.proxies,
    )
    prepared = trainable_model(model, settings)
    initial = _initial_state(prepared, method)
    trainer = Trainer(
        prepared,
        method.objective,
        streams,
        _plan(streams, settings),
        settings.arguments,
        pad_token_id=pad_token_id,
        callbacks=callbacks,
        checkpoint_root=checkpoint_root,
        key=key,
        accelerator=accelerator,
    )
    result = trainer.train()
    if method.extrapolate is not None:
        _extrapolate(prepared, initial, method.extrapolate)
    return finished_model(prepared, dtype), result


def _plan(streams: Streams, settings: TrainSettings) -> StreamPlan:
    arguments = settings.arguments
    return streams.plan(
        batch_size=arguments.effective_batch_size,
        seed=arguments.seed,
        pairing=settings.pairing,
        shuffle=arguments.shuffle,
    )


def check_combination(method: Method, settings: TrainSettings) -> None:
    """Refuse settings under which a method does nothing.

    Raises:
        InputError: Softmax weights over micro-batches of one row are all 1.
    """
    entanglement = method.entanglement
    per_batch = entanglement is not None and entanglement.scope == "micro_batch"
    if per_batch and settings.arguments.micro_batch_size == 1:
        raise InputError(
            Problem(
                where="micro_batch_size",
                message=f"with one row per micro-batch and scope=micro_batch every weight of "
                f"{method} is 1; take at least 2, or scope=step",
            )
        )


def training_dtype(precision: str, dtype: str, *, lora: bool) -> str:
    """Type of the weights during training.

    An adapter is kept in float32 anyway, so the frozen weights under it may stay in bfloat16;
    weights that move need float32 unless `bfloat16` is asked for.
    """
    if precision == "bfloat16":
        return "bfloat16"
    return dtype if lora and precision == "mixed" else "float32"


def trainable_model(model: PreTrainedModel, settings: TrainSettings) -> PreTrainedModel:
    """The model with a fresh adapter, or with the chosen parameters thawed."""
    if settings.lora is not None:
        return add_lora(model, settings.lora, seed=settings.arguments.seed)
    select_trainable(model, settings.trainable)
    return model


def finished_model(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The plain model: adapter merged in float32, then rounded once to `dtype`, on the CPU."""
    wanted = torch_dtype(dtype)
    plain = merge(model, dtype=wanted) if is_peft(model) else model.to(wanted)
    return plain.to("cpu").eval()


def _initial_state(model: PreTrainedModel, method: Method) -> dict[str, torch.Tensor]:
    """A copy of what trains, when the update is to be extrapolated later."""
    if method.extrapolate is None or is_peft(model):
        return {}
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _extrapolate(model: PreTrainedModel, initial: dict[str, torch.Tensor], alpha: float) -> None:
    """UIPE in place: scale the adapter's update by 1 + alpha, or move the weights themselves."""
    with torch.no_grad():
        if is_peft(model):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(1 + alpha)
            return
        trained = dict(model.named_parameters())
        current = {name: trained[name].detach().to("cpu") for name in initial}
        for name, value in extrapolate(initial, current, alpha=alpha).items():
            trained[name].copy_(value)


def unlearning_key(
    method: Method,
    inputs: UnlearnInputs,
    settings: TrainSettings,
    *,
    model_fingerprint: str,
    template_fingerprint: str,
    precision: str,
) -> str:
    """Fingerprint of everything that determines an unlearned model."""
    return fingerprint(
        {
            "method": describe(method),
            "data": inputs.fingerprint(),
            "settings": settings.as_plain(),
            "model": model_fingerprint,
            "template": template_fingerprint,
            "precision": precision,
        }
    )


def learning_key(
    rows: RowSet,
    settings: TrainSettings,
    *,
    model_fingerprint: str,
    template_fingerprint: str,
    precision: str,
) -> str:
    """Fingerprint of everything that determines a fine-tuned model."""
    return fingerprint(
        {
            "data": rows.fingerprint,
            "settings": settings.as_plain(),
            "model": model_fingerprint,
            "template": template_fingerprint,
            "precision": precision,
        }
    )


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Put the place `where` in front of the problems of input errors raised inside."""
    try:
        yield
    except InputError as error:
        problems = Problems()
        problems.extend(error, where=where)
        raise InputError(list(problems)) from None


def union(first: RowSet, second: RowSet, *, name: str) -> RowSet:
    """The rows of two sets, one after the other, numbered anew."""
    return row_set([*first, *second], name=name, origin=f"{first.origin} + {second.origin}")
