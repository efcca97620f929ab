"""UIPE on any two checkpoints: a new model further along the line, or a table of several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.core.errors import InputError, Problem, Problems
from expunge.core.files import atomic_write_text
from expunge.data import RowSet, Streams, Template, load_rows, make_template
from expunge.models.checks import check_model
from expunge.models.export import save_model
from expunge.models.fingerprints import model_fingerprint
from expunge.models.forward import Precision
from expunge.models.loading import load_model, load_tokenizer, resolve_model
from expunge.models.peft import merge
from expunge.postprocess.extrapolate import (
    AlphaSearch,
    check_same_architecture,
    choose_alpha,
    extrapolate,
)
from expunge.run.ui import Ui
from expunge.training.budget import Budget, UtilityMeter, row_probabilities
from expunge.training.passes import Passes, make_accelerator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """What one factor gives, by teacher forcing alone.

    Attributes:
        alpha: The factor.
        utility: Mean probability per token of the retain answers as a share of the initial
            model's; None without retain rows.
        forget: Mean probability per token of the forget answers, 0 to 1, lower is more forgotten;
            None without forget rows.
    """

    alpha: float
    utility: float | None = None
    forget: float | None = None


@dataclass(frozen=True, kw_only=True)
class Extrapolated:
    """What was made.

    Attributes:
        alpha: The factor of the model that was written.
        search: The search behind an automatic factor.
        sweep: The factors of a sweep.
    """

    alpha: float | None = None
    search: AlphaSearch | None = None
    sweep: tuple[SweepPoint, ...] = field(default=())


def extrapolate_models(
    initial: str,
    unlearned: str,
    output: Path,
    *,
    alpha: float | str = 0.5,
    sweep: Sequence[float] = (),
    retain: str | None = None,
    forget: str | None = None,
    budget: Budget | None = None,
    dtype: str = "float32",
    template: str = "auto",
    ui: Ui,
) -> Extrapolated:
    """Write the model at `unlearned + alpha (unlearned - initial)`, arXiv:2503.04693, equation 6.

    Args:
        initial: Folder or name of the model that unlearning started from.
        unlearned: The unlearned model of any tool: a model folder, or a folder with its adapter.
        output: Where the new model goes, with extrapolation.json.
        alpha: The factor, or "auto": the largest within the budget.
        sweep: Factors to measure and tabulate; no model is written then.
        retain: Retain rows, for utility.
        forget: Forget rows, for a sweep.
        budget: How much utility may be lost; 2% by default.
        dtype: Number format of what is written.
        template: How rows become tokens.
        ui: Where progress goes.

    Raises:
        InputError: A model is not there, the two differ in architecture, or rows are missing.
    """
    _check(initial, unlearned, output, alpha, sweep, retain, forget)
    ui.stage("Load both models")
    tokenizer = load_tokenizer(initial)
    start = load_model(initial).state_dict()
    model = _unlearned(unlearned, initial)
    end = {name: value.clone() for name, value in model.state_dict().items()}
    check_same_architecture(start, end)
    place = _Place(model, start, end)
    measure = None
    if retain is not None or forget is not None:
        template_ = make_template(tokenizer, template)
        measure = _Measure(model, tokenizer, template_, _rows(retain), _rows(forget))
    if sweep:
        found = _sweep(place, measure, sweep, ui)
        output.mkdir(parents=True, exist_ok=True)
    else:
        found = _chosen(place, measure, alpha, budget or Budget(), ui)
        assert found.alpha is not None, "a model has a factor"
        place.go_to(found.alpha)
        card = f"# {output.name}\n\nParameter extrapolation (UIPE) with alpha {found.alpha:g}.\n"
        save_model(output, model.to(getattr(torch, dtype)), tokenizer, card)
    record = {
        "initial": model_fingerprint(initial),
        "unlearned": _fingerprint(unlearned),
        "alpha": found.alpha,
        "search": None if found.search is None else _plain_search(found.search),
        "sweep": [vars(point) for point in found.sweep],
    }
    atomic_write_text(output / "extrapolation.json", json.dumps(record, indent=2) + "\n")
    return found


def _check(
    initial: str,
    unlearned: str,
    output: Path,
    alpha: float | str,
    sweep: Sequence[float],
    retain: str | None,
    forget: str | None,
) -> None:
    """Everything that can be known before weights load, all at once."""
    problems = Problems()
    for where, path in (("INITIAL", initial), ("UNLEARNED", unlearned)):
        if where == "UNLEARNED" and _is_adapter(path):
            continue
        for problem in check_model(path):
            problems.add(where, str(problem))
    if isinstance(alpha, str) and alpha != "auto":
        problems.add("--alpha", f"{alpha!r} is not allowed; a number, or auto")
    if alpha == "auto" and not sweep and retain is None:
        problems.add("--retain", "alpha=auto measures utility on retain rows; name some")
    if sweep and retain is None and forget is None:
        problems.add("--sweep", "measures on --retain and --forget rows; name at least one")
    if output.exists() and not sweep and not (output / "extrapolation.json").exists():
        problems.add("--output", f"{output} is there already and not from this command; choose "
                     "another folder")  # fmt: skip
    if not problems:
        _check_configs(initial, unlearned, problems)
    problems.raise_if_any()


def _check_configs(initial: str, unlearned: str, problems: Problems) -> None:
    """Compare the two configs, so that different architectures are found before weights load."""
    from transformers import AutoConfig

    if _is_adapter(unlearned):
        return
    names = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    first = AutoConfig.from_pretrained(resolve_model(initial))
    second = AutoConfig.from_pretrained(resolve_model(unlearned))
    for name in names:
        values = getattr(first, name, None), getattr(second, name, None)
        if values[0] != values[1]:
            problems.add(
                name,
                f"{values[0]} in {initial} and {values[1]} in {unlearned}; both must be of one "
                "architecture: the unlearned model and the one that unlearning started from",
            )


def _is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def _fingerprint(path: str) -> str:
    return "adapter" if _is_adapter(path) else model_fingerprint(path)


def _unlearned(path: str, initial: str) -> PreTrainedModel:
    if not _is_adapter(path):
        return load_model(path)
    if not (Path(path) / "adapter_model.safetensors").is_file():
        raise InputError(
            Problem(where=path, message="has no adapter_model.safetensors; pickles are not read")
        )
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(load_model(initial), path, use_safetensors=True)
    return merge(adapted, dtype=torch.float32)


def _rows(source: str | None) -> RowSet | None:
    return None if source is None else load_rows(source, name="rows")


class _Place:
    """A model that is moved along the line between two state dicts."""

    def __init__(
        self, model: PreTrainedModel, start: Mapping[str, Tensor], end: Mapping[str, Tensor]
    ) -> None:
        self.model = model
        self.start = start
        self.end = end

    def go_to(self, alpha: float) -> None:
        self.model.load_state_dict(extrapolate(self.start, self.end, alpha=alpha))


class _Measure:
    """Teacher-forced probabilities of retain and forget rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        template: Template,
        retain: RowSet | None,
        forget: RowSet | None,
    ) -> None:
        rows = forget if forget is not None else retain
        assert rows is not None, "there are rows to measure"
        streams = Streams(
            rows, template=template, max_length=2048, on_too_long="truncate", reserve=retain
        )
        pad = tokenizer.pad_token_id
        self.passes = Passes(
            model=model,
            streams=streams,
            accelerator=make_accelerator(),
            pad_token_id=pad if isinstance(pad, int) else 0,
            precision=Precision(),
        )
        self.retain = retain
        self.forget = forget
        self.meter: UtilityMeter | None = None

    def start(self) -> None:
        """Take the model as it stands as the one with all utility."""
        self.meter = None if self.retain is None else UtilityMeter(self.passes)

    def utility(self) -> float | None:
        return None if self.meter is None else self.meter.share()

    def forgotten(self) -> float | None:
        if self.forget is None:
            return None
        values = self.passes.over("forget", lambda out: list(row_probabilities(out)))
        return float(torch.stack(values).double().mean())


def _chosen(
    place: _Place, measure: _Measure | None, alpha: float | str, budget: Budget, ui: Ui
) -> Extrapolated:
    if alpha != "auto":
        return Extrapolated(alpha=float(alpha))
    assert measure is not None, "checked before"
    ui.stage("Search the largest factor within the budget")
    place.go_to(-1.0)
    measure.start()

    def utility(at: float) -> float:
        place.go_to(at)
        return measure.utility() or 0.0

    search = choose_alpha(utility, budget=budget.utility)
    return Extrapolated(alpha=search.alpha, search=search)


def _sweep(
    place: _Place, measure: _Measure | None, factors: Sequence[float], ui: Ui
) -> Extrapolated:
    assert measure is not None, "checked before"
    ui.stage(f"Measure {len(factors)} factors")
    place.go_to(-1.0)
    measure.start()
    points = []
    for number, factor in enumerate(factors, start=1):
        place.go_to(factor)
        points.append(
            SweepPoint(alpha=factor, utility=measure.utility(), forget=measure.forgotten())
        )
        ui.progress(number, len(factors), f"alpha {factor:g}")
    return Extrapolated(sweep=tuple(points))


def _plain_search(search: AlphaSearch) -> dict[str, Any]:
    return {**vars(search), "curve": [point._asdict() for point in search.curve]}
