"""Whole runs from a configuration: each verb of the command line is one function here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import InputError, Problem
from expunge.core.files import atomic_write_text, cache_root
from expunge.core.fingerprint import fingerprint
from expunge.core.results import DataSummary, MethodSummary, ModelResults, ModelSummary
from expunge.core.scenario import SCENARIO
from expunge.data import Template, check_overlap, load_rejections
from expunge.data.alternates import load_alternates
from expunge.data.proxies import load_proxies
from expunge.methods import Method, describe
from expunge.models.card import model_card
from expunge.models.export import save_model
from expunge.models.fingerprints import model_fingerprint
from expunge.models.loading import load_model
from expunge.models.peft import LoraSettings
from expunge.report import (
    compare,
    console_rows,
    not_assessable_of,
    quality_lines,
    write_comparison,
    write_report,
)
from expunge.report.scenario import write_scenario_report
from expunge.run.arithmetic import training_arguments
from expunge.run.check_data import alternates_file, load_source, proxy_file
from expunge.run.config import RunConfig
from expunge.run.environment import peak_memory_bytes
from expunge.run.evaluating import (
    metric_table,
    run_benchmark,
    score_run,
    scores_table,
)
from expunge.run.folder import RunFolder, RunLog, read_manifest
from expunge.run.inputs import TrainSettings, UnlearnInputs
from expunge.run.jobs import (
    Forgotten,
    forget_job,
    learn,
    learning_key,
    training_dtype,
    union,
    unlearning_key,
)
from expunge.run.measuring import evaluate_roles
from expunge.run.methods import method_of
from expunge.run.preset_match import preset_notes
from expunge.run.resolve import resolve
from expunge.run.sections import EvaluationConfig, LoraConfig, ModelConfig, TrainingConfig
from expunge.run.texts import run_template, run_tokenizer
from expunge.run.ui import Ui
from expunge.training import Callback, JsonlLog, StepRecord, Trackers, TrainResult
from expunge.training.budget import Budget
from expunge.training.passes import make_accelerator
from expunge.training.tables import TableCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Context:
    """What every verb needs, loaded once: rows, tokenizer, template, run folder.

    Args:
        config: The resolved configuration.
        ui: Where progress goes.
    """

    def __init__(self, config: RunConfig, ui: Ui) -> None:
        self.config = config
        self.ui = ui
        self.folder = RunFolder(path=Path(config.output_dir))
        self.forget = load_source(config.data.forget, "forget")
        self.retain = None
        if config.data.retain is not None:
            self.retain = load_source(config.data.retain, "retain")
            check_overlap(self.forget, self.retain)
        self.tokenizer: PreTrainedTokenizerBase = run_tokenizer(config.model)
        self.template: Template = run_template(config)
        trackers = list(config.training.report_to) or None
        logging_dir = str(self.folder.path / "trackers") if trackers else None
        self.accelerator = make_accelerator(log_with=trackers, project_dir=logging_dir)
        self.log = RunLog(
            folder=self.folder,
            config=config,
            ui=ui,
            world_size=self.accelerator.num_processes,
            data={
                rows.name: DataSummary(
                    name=rows.name,
                    origin=rows.origin,
                    num_rows=len(rows),
                    fingerprint=rows.fingerprint,
                )
                for rows in (self.forget, self.retain)
                if rows is not None
            },
        )
        former = read_manifest(self.folder)
        if former is not None and former.config == self.log.manifest("running").config:
            # The same run again: what it does not have to repeat keeps its times and notes.
            self.log.adopt(former)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    @property
    def pad_token_id(self) -> int:
        """Filling of short rows; never labelled or attended, so it may be the end token."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def load(self, path: str, dtype: str, *, training: bool = False) -> Any:
        """A model in the given type."""
        model = self.config.model
        attention = model.attn_implementation
        if attention is None and training and self.accelerator.device.type == "cpu":
            # Short rows on a CPU: the backward pass of the fused kernel takes longer than the plain
            # one (18 of 26 ms per layer at 8 rows of 90 tokens); forward it is the faster one.
            attention = "eager"
        own = path == model.path
        return load_model(
            path,
            dtype=dtype,  # type: ignore[arg-type]
            revision=model.revision if own else None,
            trust_remote_code=model.trust_remote_code and own,
            attn_implementation=attention,
        )

    def settings(self, training: TrainingConfig, lora: LoraConfig | None) -> TrainSettings:
        """A training section in the terms of the trainer."""
        data = self.config.data
        return TrainSettings(
            arguments=training_arguments(training, seed=self.config.seed),
            lora=None if lora is None else lora_settings(lora),
            trainable=training.trainable,
            pairing=data.retain_pairing,
            max_length=data.max_length,
            on_too_long=data.on_too_long,
            text_form=data.text_form,
            budget=Budget(**self.config.budget.model_dump()),
        )

    def note_model(self, role: str, path: str, trained: TrainResult | None = None) -> None:
        """Put a model into the manifest, with the size of what moved if it was trained just now."""
        known = self.log.models.get(role)
        found = model_fingerprint(path)
        if trained is None and known is not None and known.fingerprint == found:
            return
        self.log.models[role] = ModelSummary(
            path=path,
            fingerprint=found,
            dtype=self.config.model.dtype,
            num_parameters=None if trained is None else trained.num_parameters,
            num_trainable=None if trained is None else trained.num_trainable,
        )


class StageProgress(Callback):
    """Shows optimizer steps on the user's screen."""

    def __init__(self, ui: Ui) -> None:
        self.ui = ui
        self.total = 0

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Remember how long it takes; say so when a run goes on where it stopped."""
        self.total = num_steps
        if first_step:
            self.ui.note(f"Resumes after step {first_step} of {num_steps}.")

    def on_step(self, record: StepRecord) -> None:
        """Show the terms."""
        terms = "  ".join(f"{name} {value:.4g}" for name, value in record.terms.items())
        self.ui.progress(record.step, self.total, terms)


def lora_settings(config: LoraConfig) -> LoraSettings:
    """A lora section in the terms of the adapter."""
    modules = config.target_modules
    return LoraSettings(
        r=config.r,
        alpha=config.alpha,
        dropout=config.dropout,
        target_modules=modules[0] if modules == ("all-linear",) else modules,
    )


# Fine-tuning ------------------------------------------------------------------------------------


def finetune(config: RunConfig, role: str, ui: Ui) -> Path:
    """Make the target or the retain model, or find it in the cache, and return its folder.

    Args:
        config: Must have a finetune section and a retain set.
        role: "target": trained on forget and retain set; "retain": on the retain set alone.
        ui: Where progress goes.
    """
    context = Context(config, ui)
    path = finetuned(context, role)
    ui.note(f"{role} model: {path}")
    return path


def finetuned(context: Context, role: str) -> Path:
    """The folder of the target or retain model; trained only if the cache does not have it."""
    config = context.config
    section = config.finetune
    if section is None or context.retain is None:
        raise InputError(
            Problem(where="finetune", message="needs a finetune section and a retain set")
        )
    given = section.target_data if role == "target" else section.retain_data
    if given is not None:
        rows = load_source(given, role)
    elif role == "target":
        rows = union(context.forget, context.retain, name="target")
    else:
        rows = context.retain
    settings = context.settings(section.training, section.lora)
    key = learning_key(
        rows,
        settings,
        model_fingerprint=model_fingerprint(config.model.path, revision=config.model.revision),
        template_fingerprint=context.template.fingerprint(),
        precision=f"{section.training.precision}/{config.model.dtype}",
    )
    folder = cache_root() / "models" / key
    title = f"Fine-tune the {role} model on {len(rows)} rows"
    if (folder / "config.json").is_file():
        context.ui.note(f"The {role} model is in the cache: nothing to train.")
        return folder
    with context.log.stage(title):
        dtype = training_dtype(
            section.training.precision, config.model.dtype, lora=section.lora is not None
        )
        work = cache_root() / "work" / key
        model, _ = learn(
            context.load(config.model.path, dtype, training=True),
            rows,
            context.template,
            settings=settings,
            pad_token_id=context.pad_token_id,
            dtype=config.model.dtype,
            callbacks=[StageProgress(context.ui), JsonlLog(work / "log.jsonl")],
            checkpoint_root=work / "checkpoints",
            key=key,
            accelerator=context.accelerator,
        )
        if context.is_main:
            save_model(folder, model, context.tokenizer, _card(context, ()))
            _remove(work)
        context.accelerator.wait_for_everyone()
    return folder


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# Unlearning -------------------------------------------------------------------------------------


def unlearn(config: RunConfig, ui: Ui) -> Path:
    """Fine-tune where asked, unlearn, evaluate, report; returns the run folder.

    Every stage that a former call finished is taken from disk.
    """
    context = Context(config, ui)
    with context.log.running():
        models = starting_models(context)
        models["unlearned"] = str(unlearned(context, models["target"]))
        if config.evaluation is not None:
            evaluate_roles(context, models)
    if context.is_main:
        finish(context)
    context.accelerator.wait_for_everyone()
    return context.folder.path


def starting_models(context: Context) -> dict[str, str]:
    """Base, target and retain model of the run, made where the configuration says so."""
    config = context.config
    if config.finetune is None:
        models = {"target": config.model.path}
    else:
        models = {"base": config.model.path, "target": str(finetuned(context, "target"))}
        wanted = config.evaluation.roles if config.evaluation is not None else ()
        if wanted is None or "retain" in wanted:
            models["retain"] = str(finetuned(context, "retain"))
    for role, path in models.items():
        context.note_model(role, path)
    return models


def unlearned(context: Context, target: str) -> Path:
    """The folder of the unlearned model; trained only if it is not there yet."""
    config = context.config
    if config.method is None:
        raise InputError(Problem(where="method", message="is required to unlearn"))
    method = method_of(config.method)
    context.log.method = method_summary(method)
    inputs = unlearning_inputs(context, method)
    settings = context.settings(config.training, config.lora)
    other = config.training.reference
    key = unlearning_key(
        method,
        inputs,
        settings,
        model_fingerprint=model_fingerprint(target),
        template_fingerprint=context.template.fingerprint(),
        precision=f"{config.training.precision}/{config.model.dtype}",
        reference_fingerprint=None if other is None else model_fingerprint(other),
    )
    folder = context.folder
    if folder.finished_key() == key:
        context.ui.note("The unlearned model is in the run folder: nothing to train.")
        context.note_model("unlearned", str(folder.model))
        return folder.model
    with context.log.stage(f"Unlearn {len(context.forget)} rows with {method}"):
        dtype = training_dtype(
            config.training.precision, config.model.dtype, lora=config.lora is not None
        )
        callbacks: list[Callback] = [
            StageProgress(context.ui),
            JsonlLog(folder.log, config.training.logging_steps),
        ]
        if config.training.report_to:
            settings_shown = {"method": str(method), **config.training.model_dump()}
            callbacks.append(Trackers(context.accelerator, config.name, settings_shown))
        found = forget_job(
            context.load(target, dtype, training=True),
            method,
            inputs,
            context.template,
            settings=settings,
            pad_token_id=context.pad_token_id,
            dtype=config.model.dtype,
            reference=None if other is None else lambda: context.load(other, dtype, training=True),
            tables=TableCache(
                folder=cache_root() / "references",
                model=fingerprint([model_fingerprint(other or target), dtype]),
            ),
            callbacks=callbacks,
            checkpoint_root=folder.checkpoints,
            key=key,
            accelerator=context.accelerator,
        )
        if context.is_main:
            context.log.diagnostics = diagnostics(found)
            save_model(folder.model, found.model, context.tokenizer, _card(context, ()))
            folder.mark_finished(key)
            _remove(folder.checkpoints)
        context.accelerator.wait_for_everyone()
    for line in explained(found):
        context.ui.note(line)
    context.note_model("unlearned", str(folder.model), found.trained)
    return folder.model


def unlearning_inputs(context: Context, method: Method) -> UnlearnInputs:
    """The texts the method needs, from the files of the run."""
    config = context.config
    stop_at = config.training.stop_at
    needs_proxies = method.needs_proxies or "proxy" in stop_at
    return UnlearnInputs(
        forget=context.forget,
        retain=context.retain,
        rejections=load_rejections(config.data.rejections) if method.needs_rejections else (),
        proxies=load_proxies(proxy_file(config), context.forget) if needs_proxies else None,
        alternates=load_alternates(alternates_file(config), context.forget)
        if method.needs_alternates
        else None,
    )


def diagnostics(found: Forgotten) -> dict[str, Any]:
    """What an automatic alpha and a stop rule measured, for the manifest."""
    facts: dict[str, Any] = {}
    if found.alpha is not None:
        facts["alpha_search"] = {
            **vars(found.alpha),
            "curve": [point._asdict() for point in found.alpha.curve],
        }
    if found.trained.checks:
        facts["stop_checks"] = [vars(check) for check in found.trained.checks]
    return facts


def explained(found: Forgotten) -> list[str]:
    """The same in sentences."""
    lines = []
    search = found.alpha
    if search is not None:
        share = dict(search.curve).get(search.alpha, 1.0)
        more = "; a larger factor may fit too" if search.bounded else ""
        lines.append(
            f"alpha {search.alpha:g} leaves {share:.1%} of the utility, budget "
            f"{search.budget:.1%}, {len(search.curve)} factors measured{more}"
        )
    if found.trained.checks and found.trained.checks[-1].reason:
        lines.append(f"Stopped after step {found.trained.steps}: {found.trained.checks[-1].reason}")
    return lines


def method_summary(method: Method) -> MethodSummary:
    """The method for the manifest."""
    described = describe(method)
    terms = []
    for term in described["terms"]:
        options = [f"weight {term['weight']:g}"]
        options += [f"{name} {value}" for name, value in term["options"].items()]
        if "positions" in term:
            options.append(f"averaged over {term['positions']} by {term['average']}")
        terms.append(f"{term['name']}: {', '.join(options)}")
    return MethodSummary(notation=str(method), terms=terms, hyperparameters=described)


def _card(context: Context, results: Sequence[ModelResults]) -> str:
    return model_card(context.log.manifest("finished"), results)


# Proxy and alternate answers --------------------------------------------------------------------


def proxies(config: RunConfig, ui: Ui, *, force: bool = False) -> Path:
    """Write the proxy answers of the forget set, keeping what is there; returns the file.

    Args:
        config: Names data, writer and file.
        ui: Where progress goes.
        force: Make every line anew, edited ones as well.
    """
    context = Context(config, ui)
    path = written_proxies(context, force=force)
    ui.note(f"Proxy answers: {path}. You may edit them by hand.")
    return path


def written_proxies(context: Context, *, force: bool = False) -> Path:
    """The proxy file of a run, with an answer for every forget row."""
    from expunge.run.writing import write_proxies

    path = proxy_file(context.config)
    title = f"Write proxy answers for {len(context.forget)} questions"
    with context.log.stage(title):
        if context.is_main:
            write_proxies(context, path, force=force)
        context.accelerator.wait_for_everyone()
    return path


def alternates(config: RunConfig, ui: Ui, *, force: bool = False) -> Path:
    """Write the alternate answers of the forget set, keeping what is there; returns the file.

    The model that unlearning starts from writes them; where it is to be fine-tuned first, it is.

    Args:
        config: Names data, writer and file.
        ui: Where progress goes.
        force: Make every line anew, edited ones as well.
    """
    context = Context(config, ui)
    path = written_alternates(context, force=force)
    ui.note(f"Alternate answers: {path}. You may edit them by hand.")
    return path


def written_alternates(context: Context, *, force: bool = False) -> Path:
    """The alternates file of a run, with at least one for every forget row."""
    from expunge.run.writing import write_alternates

    config, section = context.config, context.config.alternates
    path, target = alternates_file(config), config.model.path
    if config.finetune is not None and section.model is None and section.endpoint is None:
        target = str(finetuned(context, "target"))
    with context.log.stage(f"Write alternate answers for {len(context.forget)} questions"):
        if context.is_main:
            write_alternates(context, path, target=target, force=force)
        context.accelerator.wait_for_everyone()
    return path


# Evaluation and report --------------------------------------------------------------------------


def evaluate(config: RunConfig, *, model: str, role: str, ui: Ui) -> Path:
    """Measure one model into the run folder of the configuration; returns that folder.

    Args:
        config: Names data, benchmark and run folder.
        model: Model folder or hub name.
        role: What the model is in a comparison.
        ui: Where progress goes.
    """
    context = Context(config.model_copy(update={"model": _with_path(config, model)}), ui)
    former = read_manifest(context.folder)
    if former is not None:
        # The run keeps its own story; this adds a model to it.
        context.log.adopt(former)
    with context.log.running(keep_config=former is not None):
        context.note_model(role, model)
        evaluate_roles(context, {role: model})
    if context.is_main:
        finish(context)
    context.accelerator.wait_for_everyone()
    return context.folder.path


def _with_path(config: RunConfig, path: str) -> ModelConfig:
    return config.model.model_copy(update={"path": path})


def finish(context: Context) -> None:
    """Score what is stored, show the table, write card and report."""
    config, folder, ui = context.config, context.folder, context.ui
    if config.evaluation is not None:
        results = score_run(config, folder, ui)
        _show(results, ui)
        if "unlearned" in results and (folder.model / "config.json").is_file():
            card = _card(context, list(results.values()))
            atomic_write_text(folder.model / "README.md", card)
    _report(folder, ui)


def score(
    run: Path,
    *,
    retain_run: Sequence[Path] = (),
    preset: str | None = None,
    options: Sequence[str] = (),
    metrics: Sequence[str] = (),
    ui: Ui,
) -> None:
    """Compute the results of a run again from its stored tables, and its report.

    Args:
        run: The run folder.
        retain_run: Where to take retain models' tables from instead of from the run.
        preset: Another preset of the benchmark.
        options: Keys of the evaluation section to change, such as "options.mean=arithmetic".
        metrics: Further metrics to compute and show, "NAME" or "PROBE/NAME".
        ui: Where the table goes.

    Raises:
        InputError: It is not a run folder, or nothing is stored in it.
    """
    folder = RunFolder(path=run)
    flags: dict[str, Any] = {}
    if retain_run:
        flags["evaluation.retain_run"] = [str(path) for path in retain_run]
    if preset is not None:
        flags["evaluation.preset"] = preset
    overrides = [f"evaluation.{text}" for text in options]
    config = resolve(folder.path / "config.yaml", overrides=overrides, flags=flags).config
    section = config.evaluation or EvaluationConfig()
    config = config.model_copy(update={"evaluation": section})
    problems = run_benchmark(config).check_options(section.options)
    if problems:
        raise InputError(problems)
    ui.stage(f"Score {run}")
    notes = preset_notes(folder, config, explicit=preset is not None)
    _show(score_run(config, folder, ui, notes=notes), ui)
    if metrics:
        columns, rows = metric_table(config, folder, metrics)
        ui.table("Further metrics", columns, rows)
    _report(folder, ui)


def _show(results: Mapping[str, ModelResults], ui: Ui) -> None:
    columns, rows = scores_table(results)
    ui.table("Results", columns, rows)
    unlearned = results.get("unlearned")
    if unlearned is not None and unlearned.forget_quality is not None:
        for line in quality_lines(unlearned.forget_quality):
            ui.note(line)
    for gap in not_assessable_of(results):
        ui.note(f"Not assessable: {gap}")


def _report(folder: RunFolder, ui: Ui) -> None:
    path = write_report(folder.path)
    ui.note(f"Report: {path}")


def report(runs: Sequence[Path], *, output: Path | None, ui: Ui) -> Path:
    """Write the report of one run, or a comparison of several; returns the page.

    Args:
        runs: Run folders.
        output: Where the files go; the first run folder if None.
        ui: Where the table goes.
    """
    if len(runs) == 1 and (runs[0] / SCENARIO).is_file():
        path = write_scenario_report(runs[0])
    elif len(runs) == 1:
        path = write_report(runs[0], output)
    else:
        path = write_comparison(runs, runs[0] if output is None else output)
        table = compare(runs)
        shown = console_rows(table)
        ui.table(table.caption, shown.headers, shown.rows)
        for text in shown.notes:
            ui.note(text)
    ui.note(f"Report: {path}")
    return path


# The main job -----------------------------------------------------------------------------------


def run_all(
    config: RunConfig, ui: Ui, *, target: str | None = None, retain: str | None = None
) -> Path:
    """Everything from the first model to the report: what `unlearn` does, and the texts it needs.

    Args:
        config: The run.
        ui: Where progress goes.
        target: Model to start from; None: as the configuration says.
        retain: Retain model to compare with; None: as the configuration says.
    """
    context = Context(config, ui)
    with context.log.running():
        models = starting_models(context)
        if target is not None:
            models["target"] = target
        if retain is not None:
            models["retain"] = retain
            context.note_model("retain", retain)
        method = None if config.method is None else method_of(config.method)
        if method is not None and "proxy" in method.streams:
            written_proxies(context)
        if method is not None and method.needs_alternates:
            written_alternates(context)
        models["unlearned"] = str(unlearned(context, models["target"]))
        if config.evaluation is not None:
            evaluate_roles(context, models)
    if context.is_main:
        finish(context)
    context.accelerator.wait_for_everyone()
    return context.folder.path


def demo(ui: Ui, *, config: RunConfig) -> Path:
    """Everything from the base model to the report: targets, proxies, unlearning, evaluation."""
    started = time.monotonic()
    folder = run_all(config, ui)
    minutes = (time.monotonic() - started) / 60
    peak = (peak_memory_bytes() or 0) / 2**30
    ui.note(f"Took {minutes:.1f} minutes; peak memory {peak:.2f} GiB.")
    return folder
