"""The Python interface: unlearn, fine-tune and evaluate live models, no config needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError
from expunge.core.options import check_options, options_of
from expunge.data import RowSet, Template, check_overlap, load_rejections, load_rows, make_template
from expunge.data.alternates import load_alternates
from expunge.data.encode import OnTooLong
from expunge.data.plan import Pairing
from expunge.data.proxies import load_proxies
from expunge.methods import Method, parse
from expunge.models.loading import load_model, load_tokenizer
from expunge.models.peft import LoraSettings
from expunge.postprocess.extrapolate import AlphaSearch
from expunge.run.inputs import TrainSettings, UnlearnInputs, budget_of
from expunge.run.jobs import forget_job, learn
from expunge.training import Callback, StepRecord, TrainingArguments
from expunge.training.budget import Budget
from expunge.training.stopping import StopCheck

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from expunge.core.results import ModelResults
    from expunge.evaluation import ProbeTable


Data = RowSet | str | Path | Sequence[Mapping[str, Any]] | Any
"""Rows: anything `expunge.load_rows` takes."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What `unlearn` and `finetune` return.

    Attributes:
        model: The plain model, adapters merged, in eval mode on the CPU.
        tokenizer: Its tokenizer.
        method: The method, None after fine-tuning.
        records: One record per optimizer step.
        checks: What a stop rule measured; the last one has the reason if it ended the run.
        alpha: The search behind UIPE's automatic alpha, with its curve.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    method: Method | None
    records: tuple[StepRecord, ...]
    checks: tuple[StopCheck, ...] = ()
    alpha: AlphaSearch | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` returns.

    Attributes:
        results: Scores with n, unscored count, interval and good direction.
        tables: Per-sample outputs by probe, from which every score can be computed again.
    """

    results: ModelResults
    tables: Mapping[str, ProbeTable]


class _Collect(Callback):
    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)


def unlearn(
    model: PreTrainedModel | str | Path,
    forget: Data,
    retain: Data | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: str | Method = "NPO+GD",
    proxies: str | Path | Sequence[str] | None = None,
    rejections: str | Path | Sequence[str] | None = None,
    alternates: str | Path | Sequence[Sequence[str]] | None = None,
    lora: LoraSettings | bool | None = None,
    trainable: str = "auto",
    budget: Budget | float | None = None,
    template: Template | str = "auto",
    retain_pairing: Pairing = "shuffled",
    max_length: int = 512,
    on_too_long: OnTooLong = "error",
    callbacks: Sequence[Callback] = (),
    checkpoint_root: str | Path | None = None,
    **training: Any,
) -> TrainedModel:
    """Remove the forget set from a model.

    A live model is changed in place; a path is loaded in float32 first.

        result = expunge.unlearn(model, "forget.jsonl", "retain.jsonl", tokenizer=tokenizer,
                                 method="NPO+GD", learning_rate=1e-5, num_train_epochs=5)
        result.model.save_pretrained("unlearned")

    Args:
        model: The target model, or its folder or hub name.
        forget: What must be unlearned.
        retain: What must be kept; needed by methods with a retain term and by EGU and EGUP.
        tokenizer: The model's; loaded from the path if None.
        method: Notation such as "EGUP(NPO+GD, k=1, mu=0.001)", or a parsed method.
        proxies: For EGUP: a proxy file, or one answer per forget row.
        rejections: For IDK: a file, or the refusals themselves; TOFU's hundred if None.
        alternates: For AltPO: a file, or the alternate answers of every forget row.
        lora: Adapter settings, or True for the defaults; None trains the weights themselves.
        trainable: "all", a regular expression searched in parameter names, or "auto": what the
            method asks for (all but for RMU).
        budget: Share of the utility that must be left, for UIPE with alpha=auto and for
            stop_at=("budget",); a number, or a `Budget` that also says how many retain rows are set
            aside to measure it.
        template: How rows become tokens: a template or the name of one.
        retain_pairing: Which retain row goes with a forget row; see `StreamPlan`.
        max_length: Most tokens of a row.
        on_too_long: What to do with longer rows: error, truncate, drop.
        callbacks: Hooks of the training loop.
        checkpoint_root: Folder of checkpoints; the same call resumes from the last one.
        training: Fields of `TrainingArguments`.

    Raises:
        InputError: Something about the input is wrong; the message says what is possible.
        RunError: The loss diverged, or the disk is full.
    """
    chosen = parse(method) if isinstance(method, str) else method
    rows = load_rows(forget, name="forget")
    kept = None if retain is None else load_rows(retain, name="retain")
    if kept is not None:
        check_overlap(rows, kept)
    inputs = UnlearnInputs(
        forget=rows,
        retain=kept,
        rejections=_rejections(chosen, rejections),
        proxies=_proxies(proxies, rows),
        alternates=_alternates(chosen, alternates, rows),
    )
    settings = _settings(
        training, lora, trainable, pairing=retain_pairing, max_length=max_length,
        on_too_long=on_too_long, budget=_budget(budget),
    )  # fmt: skip
    inputs.check(chosen, settings)
    live, own = _load(model, tokenizer)
    log = _Collect()
    found = forget_job(
        live,
        chosen,
        inputs,
        _template(template, own),
        settings=settings,
        pad_token_id=_pad(own),
        dtype=_dtype(live),
        callbacks=[log, *callbacks],
        checkpoint_root=None if checkpoint_root is None else Path(checkpoint_root),
    )
    return TrainedModel(
        model=found.model,
        tokenizer=own,
        method=chosen,
        records=tuple(log.records),
        checks=found.trained.checks,
        alpha=found.alpha,
    )


def finetune(
    model: PreTrainedModel | str | Path,
    data: Data,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    lora: LoraSettings | bool | None = None,
    trainable: str = "all",
    template: Template | str = "auto",
    max_length: int = 512,
    on_too_long: OnTooLong = "error",
    callbacks: Sequence[Callback] = (),
    checkpoint_root: str | Path | None = None,
    **training: Any,
) -> TrainedModel:
    """Teach a model rows: how target and retain models are made.

    A live model is changed in place; a path is loaded in float32 first. Arguments as in `unlearn`.

    Raises:
        InputError: Something about the input is wrong; the message says what is possible.
        RunError: The loss diverged, or the disk is full.
    """
    rows = load_rows(data, name="train")
    settings = _settings(
        training, lora, trainable, pairing="shuffled", max_length=max_length,
        on_too_long=on_too_long,
    )  # fmt: skip
    live, own = _load(model, tokenizer)
    log = _Collect()
    result, _ = learn(
        live,
        rows,
        _template(template, own),
        settings=settings,
        pad_token_id=_pad(own),
        dtype=_dtype(live),
        callbacks=[log, *callbacks],
        checkpoint_root=None if checkpoint_root is None else Path(checkpoint_root),
    )
    return TrainedModel(model=result, tokenizer=own, method=None, records=tuple(log.records))


def evaluate(
    model: PreTrainedModel | str | Path,
    forget: Data,
    retain: Data | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    benchmark: str | None = None,
    preset: str | None = None,
    rows: Mapping[str, int | None] | None = None,
    retain_model: Evaluation | Sequence[Evaluation] | None = None,
    options: Mapping[str, Any] | None = None,
    template: Template | str = "auto",
    folder: str | Path | None = None,
    role: str = "model",
    **settings: Any,
) -> Evaluation:
    """Measure a model on a forget set, and on what should be kept.

        gold = expunge.evaluate(retain_model, "tofu:forget01", "tofu:retain99", tokenizer=tokenizer)
        found = expunge.evaluate(model, "tofu:forget01", "tofu:retain99", tokenizer=tokenizer,
                                 retain_model=gold)
        found.results.scores["forget_quality"]

    Args:
        model: The model, or its folder or hub name; left as it is.
        forget: What was to be unlearned.
        retain: What was to be kept.
        tokenizer: The model's; loaded from the path if None.
        benchmark: "tofu" or "custom"; by default tofu for a "tofu:..." forget set, else custom.
        preset: Variant of the benchmark, such as "tofu_classic".
        rows: First rows of each probe to use, such as {"retain": 40}.
        retain_model: Evaluation of a model that never saw the forget set, or of several, trained
            with different seeds. Without one forget quality is absent; nothing takes its place.
        options: Options of the benchmark, such as {"holdout": "rows.jsonl"}, and of its metrics.
        template: How rows become tokens.
        folder: Keep the per-sample tables there; the same call then goes on where it stopped.
        role: What the model is, for the record.
        settings: Fields of `EvaluationSettings`, such as max_new_tokens.

    Raises:
        InputError: Something about the input is wrong; the message says what is possible.
    """
    from expunge.benchmarks import Evidence, benchmarks
    from expunge.evaluation import EvaluationStore, run_probes
    from expunge.evaluation.probes import EvaluationSettings

    problems = check_options(settings, options_of(EvaluationSettings), owner="EvaluationSettings")[
        1
    ]
    if problems:
        raise InputError(problems)
    own_name = isinstance(forget, str) and forget.startswith("tofu:")
    chosen = benchmarks.get(benchmark or ("tofu" if own_name else "custom"))
    wrong = chosen.check_options(options or {})
    if wrong:
        raise InputError(wrong)
    probes = chosen.build_probes(
        load_rows(forget, name="forget"),
        None if retain is None else load_rows(retain, name="retain"),
        preset=preset,
        rows=rows,
        options=options,
    )
    live, own = _load(model, tokenizer)
    tables = run_probes(
        live,
        own,
        _template(template, own),
        probes,
        chosen.settings(preset, **settings),
        store=None if folder is None else EvaluationStore(folder),
    )
    results = chosen.score_tables(
        Evidence(tables=tables, retains=[item.tables for item in _several(retain_model)]),
        preset=preset,
        options=options,
        role=role,
        model=model if isinstance(model, str) else type(live).__name__,
    )
    return Evaluation(results=results, tables=tables)


def _several(found: Evaluation | Sequence[Evaluation] | None) -> Sequence[Evaluation]:
    if found is None:
        return ()
    return [found] if isinstance(found, Evaluation) else found


def _settings(
    training: Mapping[str, Any],
    lora: LoraSettings | bool | None,
    trainable: str,
    **data: Any,
) -> TrainSettings:
    known = options_of(TrainingArguments)
    values, problems = check_options(training, known, owner="TrainingArguments")
    if problems:
        raise InputError(problems)
    adapter = LoraSettings() if lora is True else lora or None
    return TrainSettings(
        arguments=replace(TrainingArguments(), **values), lora=adapter, trainable=trainable, **data
    )


def _load(
    model: Any, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Any, PreTrainedTokenizerBase]:
    if isinstance(model, str | Path):
        own = load_tokenizer(model) if tokenizer is None else tokenizer
        return load_model(model), own
    if tokenizer is None:
        raise InputError("a live model needs its tokenizer: pass tokenizer=...")
    return model, tokenizer


def _template(template: Template | str, tokenizer: PreTrainedTokenizerBase) -> Template:
    return make_template(tokenizer, template) if isinstance(template, str) else template


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """Filling; masks never look at it, so any id will do for a tokenizer without one."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def _dtype(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _rejections(method: Method, given: Any) -> tuple[str, ...]:
    if not method.needs_rejections:
        return ()
    if given is None or isinstance(given, str | Path):
        return load_rejections(given)
    return tuple(given)


def _proxies(given: Any, forget: RowSet) -> list[str] | None:
    if given is None:
        return None
    return load_proxies(given, forget) if isinstance(given, str | Path) else list(given)


def _alternates(method: Method, given: Any, forget: RowSet) -> list[list[str]] | None:
    if given is None or not method.needs_alternates:
        return None
    if isinstance(given, str | Path):
        return load_alternates(given, forget)
    return [[some] if isinstance(some, str) else list(some) for some in given]


def _budget(given: Budget | float | None) -> Budget:
    if given is None or isinstance(given, Budget):
        return given or Budget()
    return budget_of({"utility": given})
