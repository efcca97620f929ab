"""The jobs of a run on plain arguments: learn and forget. No YAML and no run folders here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError, Problems
from expunge.core.fingerprint import fingerprint
from expunge.data import RowSet, StreamPlan, Streams, Template
from expunge.data.rows import row_set
from expunge.methods import Method, describe
from expunge.models.loading import torch_dtype
from expunge.models.peft import add_lora, is_peft, merge, select_trainable
from expunge.objectives import Objective, Term
from expunge.objectives.losses import nll
from expunge.postprocess.extrapolate import AlphaSearch
from expunge.run.afterwards import (
    UpdateLine,
    along_line,
    combined,
    model_to_train,
    needs_line,
    needs_reserve,
)
from expunge.run.inputs import TrainSettings, UnlearnInputs, check_combination, set_aside
from expunge.training import Callback, Trainer, TrainResult
from expunge.training.budget import Budget
from expunge.training.tables import TableCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARN = Objective(forget=Term(loss=nll, label="train/nll"))
"""What fine-tuning minimises: the mean NLL of the answer tokens of the plan's first stream."""


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What an unlearning job gives.

    Attributes:
        model: The unlearned model, adapters merged.
        trained: What training did.
        alpha: The search behind an automatic extrapolation factor, if there was one.
    """

    model: PreTrainedModel
    trained: TrainResult
    alpha: AlphaSearch | None = None


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
    reference: PreTrainedModel | Callable[[], PreTrainedModel] | None = None,
    tables: TableCache | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_root: Path | None = None,
    key: str = "",
    accelerator: Any = None,
) -> Forgotten:
    """Unlearn and return the model without adapter, post-processed, in `dtype`.

    `reference` is the model that reference values come from, or loads it; by default the start
    model. `tables` keeps its values for the next run.

    Raises:
        InputError: The method needs texts that are not there, or settings do not go together.
    """
    inputs.check(method, settings)
    check_combination(method, settings, model.config)
    inputs = inputs.expanded()
    retain, reserve = inputs.retain, None
    if retain is not None and needs_reserve(method, settings.arguments.stop_at):
        retain, reserve = set_aside(retain, settings.budget.rows, seed=settings.arguments.seed)
    streams = Streams(
        inputs.forget,
        retain,
        template=template,
        max_length=settings.max_length,
        on_too_long=settings.on_too_long,
        text_form=settings.text_form,
        rejections=inputs.rejections,
        proxy_answers=inputs.proxies,
        alternates=None if inputs.alternates is None else [some[0] for some in inputs.alternates],
        reserve=reserve,
    )
    chosen, beside = model_to_train(model, method)
    prepared = trainable_model(chosen, settings, method)
    line = UpdateLine(prepared) if needs_line(method) else None
    trainer = Trainer(
        prepared,
        method.objective,
        streams,
        _plan(streams, settings),
        settings.arguments,
        pad_token_id=pad_token_id,
        reference=reference,
        # Where a part of the model trains, the cache's name of the whole does not tell which.
        tables=tables if beside is None else None,
        update=method.sharpness,
        budget=settings.budget,
        callbacks=callbacks,
        checkpoint_root=checkpoint_root,
        key=key,
        accelerator=accelerator,
    )
    result = trainer.train()
    alpha = None
    if line is not None:
        alpha = along_line(method, line, trainer.passes, settings.budget)
    trained = finished_model(prepared, dtype)
    if beside is not None:
        trained = combined(method, beside.to(torch_dtype(dtype)).to("cpu").eval(), trained)
    return Forgotten(model=trained, trained=result, alpha=alpha)


def _plan(streams: Streams, settings: TrainSettings) -> StreamPlan:
    arguments = settings.arguments
    return streams.plan(
        batch_size=arguments.effective_batch_size,
        seed=arguments.seed,
        pairing=settings.pairing,
        shuffle=arguments.shuffle,
    )


def training_dtype(precision: str, dtype: str, *, lora: bool) -> str:
    """Type of the weights during training.

    An adapter is kept in float32 anyway, so the frozen weights under it may stay in bfloat16;
    weights that move need float32 unless `bfloat16` is asked for.
    """
    if precision == "bfloat16":
        return "bfloat16"
    return dtype if lora and precision == "mixed" else "float32"


def trainable_model(
    model: PreTrainedModel, settings: TrainSettings, method: Method | None = None
) -> PreTrainedModel:
    """The model with a fresh adapter, or with the chosen parameters thawed."""
    if settings.lora is not None:
        return add_lora(model, settings.lora, seed=settings.arguments.seed)
    wanted = settings.trainable
    if wanted == "auto":
        wanted = "all" if method is None else method.trainable
    select_trainable(model, wanted)
    return model


def finished_model(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The plain model: adapter merged in float32, then rounded once to `dtype`, on the CPU."""
    wanted = torch_dtype(dtype)
    plain = merge(model, dtype=wanted) if is_peft(model) else model.to(wanted)
    return plain.to("cpu").eval()


def unlearning_key(
    method: Method,
    inputs: UnlearnInputs,
    settings: TrainSettings,
    *,
    model_fingerprint: str,
    template_fingerprint: str,
    precision: str,
    reference_fingerprint: str | None = None,
) -> str:
    """Fingerprint of everything that determines an unlearned model."""
    other = {} if reference_fingerprint is None else {"reference": reference_fingerprint}
    return fingerprint(
        {
            **other,
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
    trainable = "all" if settings.trainable == "auto" else settings.trainable
    plain = replace(settings, trainable=trainable, budget=Budget()).as_plain()
    return fingerprint(
        {
            "data": rows.fingerprint,
            "settings": plain,
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
