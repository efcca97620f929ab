"""What an unlearning run is made of: how it trains, its texts, and whether they fit the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from expunge.core.errors import InputError, Problems
from expunge.core.fingerprint import fingerprint
from expunge.core.options import check_options, options_of
from expunge.data import RowSet
from expunge.data.alternates import expand
from expunge.data.chunks import TextForm
from expunge.data.encode import OnTooLong
from expunge.data.plan import Pairing
from expunge.data.rows import row_set
from expunge.methods import Method
from expunge.models.combine import UldOptions
from expunge.models.peft import LoraSettings
from expunge.run.afterwards import needs_reserve
from expunge.training import TrainingArguments
from expunge.training.budget import Budget


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a model is trained, besides what it learns or forgets.

    Attributes:
        arguments: How the parameters move.
        lora: Adapters to train; None for the weights themselves.
        trainable: "all", a regular expression searched in parameter names, or "auto": what the
            method asks for, which is all but for RMU.
        pairing: Which retain row goes with a forget row; see `StreamPlan`.
        max_length: Most tokens of a row.
        on_too_long: What to do with longer rows: error, truncate, drop.
        text_form: How plain text is cut into pieces; see `chunk_text`.
        budget: Utility that may be lost, for an automatic alpha and for stopping.
    """

    arguments: TrainingArguments = field(default_factory=TrainingArguments)
    lora: LoraSettings | None = None
    trainable: str = "auto"
    pairing: Pairing = "shuffled"
    max_length: int = 512
    on_too_long: OnTooLong = "error"
    text_form: TextForm = "muse"
    budget: Budget = field(default_factory=Budget)

    def as_plain(self) -> dict[str, Any]:
        """Settings that determine the result, for fingerprints.

        What is not used is left out, so that a new setting does not change old fingerprints.
        """
        ignored = {"logging_steps", "save_steps", "save_total_limit", "max_seconds"}
        if not self.arguments.stop_at:
            ignored |= {"stop_at", "stop_every"}
        ignored |= {"packing", "torch_compile"}  # the same numbers by another way
        usual = {"optimizer": "adamw", "master_weights": "auto"}
        ignored |= {name for name, value in usual.items() if vars(self.arguments)[name] == value}
        arguments = {k: v for k, v in vars(self.arguments).items() if k not in ignored}
        lora = None if self.lora is None else vars(self.lora)
        plain = {**vars(self), "arguments": arguments, "lora": lora}
        del plain["budget"]
        return plain if self.budget == Budget() else {**plain, "budget": vars(self.budget)}


@dataclass(frozen=True, kw_only=True)
class UnlearnInputs:
    """The texts of an unlearning run.

    Attributes:
        forget: What must be unlearned.
        retain: What must be kept.
        rejections: Refusals for targeted methods.
        proxies: One proxy answer per forget row.
        alternates: At least one alternate answer per forget row, for AltPO.
    """

    forget: RowSet
    retain: RowSet | None = None
    rejections: Sequence[str] = ()
    proxies: Sequence[str] | None = None
    alternates: Sequence[Sequence[str]] | None = None

    def check(self, method: Method, settings: TrainSettings | None = None) -> None:
        """See whether the method, and a stop rule, have the texts they need.

        Raises:
            InputError: Lists every text that is missing, with what to do.
        """
        problems = Problems()
        if method.needs_retain and self.retain is None:
            problems.add("retain", f"{method} needs a retain set; give one, or take another method")
        stop_at = settings.arguments.stop_at if settings is not None else ()
        if (method.needs_proxies or "proxy" in stop_at) and self.proxies is None:
            what = method if method.needs_proxies else "stop_at=proxy"
            problems.add(
                "proxies",
                f"{what} needs one proxy answer per forget row; write them with: expunge proxies",
            )
        if method.needs_alternates and self.alternates is None:
            problems.add(
                "alternates",
                f"{method} needs alternate answers for every forget row; write them with: "
                "expunge alternates",
            )
        if method.needs_rejections and not self.rejections:
            problems.add("rejections", f"{method} needs at least one rejection")
        budget = None if settings is None else settings.budget
        if budget is not None and needs_reserve(method, stop_at):
            _check_reserve(self.retain, budget, problems)
        problems.raise_if_any()

    def expanded(self) -> UnlearnInputs:
        """With every forget row as often as it has alternates: each is a row of an epoch."""
        if self.alternates is None:
            return self
        rows, flat = expand(self.forget, self.alternates)
        proxies = None
        if self.proxies is not None:
            proxies = [
                proxy
                for proxy, some in zip(self.proxies, self.alternates, strict=True)
                for _ in some
            ]
        return replace(self, forget=rows, proxies=proxies, alternates=[[text] for text in flat])

    def fingerprint(self) -> str:
        """Fingerprint of all texts."""
        retain = None if self.retain is None else self.retain.fingerprint
        proxies = None if self.proxies is None else list(self.proxies)
        alternates = None if self.alternates is None else [list(some) for some in self.alternates]
        texts = [self.forget.fingerprint, retain, list(self.rejections), proxies]
        return fingerprint(texts if alternates is None else [*texts, alternates])


def _check_reserve(retain: RowSet | None, budget: Budget, problems: Problems) -> None:
    if retain is None:
        problems.add("retain", "a utility budget is measured on retain rows; give a retain set")
    elif len(retain) <= budget.rows:
        problems.add(
            "budget.rows",
            f"{budget.rows} rows are to be set aside and the retain set has {len(retain)}; take "
            f"fewer than that",
        )


def set_aside(rows: RowSet, number: int, *, seed: int) -> tuple[RowSet, RowSet]:
    """Rows to train on and rows to measure on, drawn with a seed; both in their old order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = set(torch.randperm(len(rows), generator=generator)[:number].tolist())
    origin = rows.origin
    kept = [row for row in rows if row.index not in chosen]
    aside = [row for row in rows if row.index in chosen]
    return (
        row_set(kept, name=rows.name, origin=f"{origin}, without {number} set aside"),
        row_set(aside, name="reserve", origin=f"{origin}, {number} set aside"),
    )


def check_combination(method: Method, settings: TrainSettings, config: Any = None) -> None:
    """Refuse settings under which a method does nothing, and blocks that the model has not.

    Args:
        method: The method.
        settings: How it is trained.
        config: Config of the model, for its number of layers.

    Raises:
        InputError: Softmax weights over micro-batches of one row are all 1, or a layer is out of
            range.
    """
    problems = Problems()
    entanglement = method.entanglement
    per_batch = (
        entanglement is not None
        and entanglement.scope == "micro_batch"
        and entanglement.level == "sample"
    )
    if per_batch and settings.arguments.micro_batch_size == 1:
        problems.add(
            "micro_batch_size",
            f"with one row per micro-batch and scope=micro_batch every weight of {method} is 1; "
            "take at least 2, or scope=step",
        )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int):
        problem = layer_fault(method, layers)
        if problem:
            problems.add("method", problem)
    problems.raise_if_any()


def layer_fault(method: Method, layers: int) -> str:
    """What is wrong with the layers a method names, for a model of `layers` blocks; "" if nothing.

    The last block's output is only known after the final norm, so it cannot be looked at.
    """
    if method.block is not None and method.block > layers - 2:
        return (
            f"layer={method.block} is out of range: the model has {layers} blocks, so a layer is 0 "
            f"to {layers - 2} (the last block's output is only known after the final norm)"
        )
    options = method.entanglement
    if options is not None and not -layers - 1 <= options.embed_layer <= layers:
        return (
            f"embed_layer={options.embed_layer} is out of range: with {layers} blocks it is "
            f"{-layers - 1} to {layers}"
        )
    if isinstance(method.post_options, UldOptions) and method.post_options.layers > layers:
        return (
            f"layers={method.post_options.layers} is out of range: the model has {layers} blocks, "
            "and the assistant takes its first ones"
        )
    return ""


def budget_of(values: Mapping[str, Any]) -> Budget:
    """A budget from its keys, checked.

    Raises:
        InputError: A key is unknown or a value is not allowed.
    """
    checked, problems = check_options(values, options_of(Budget), owner="budget")
    if problems:
        raise InputError(problems)
    return Budget(**checked)
