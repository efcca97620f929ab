"""The verbs that work on models and runs: finetune, unlearn, evaluate, score, report, ..."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.arguments import (
    Arguments,
    Benchmark,
    Budget,
    Forget,
    Method,
    Model,
    Name,
    Output,
    Preset,
    Proxies,
    Retain,
    RetainRun,
    Seed,
    find_config,
    flag_values,
    resolve_run,
    split_arguments,
)
from expunge.cli.screen import screen
from expunge.core.errors import InputError, Problem

if TYPE_CHECKING:  # `expunge --help` should not have to wait for pydantic
    from expunge.run.check import Verb
    from expunge.run.resolve import Resolved
    from expunge.run.ui import Ui


class MadeRole(StrEnum):
    """What finetune makes."""

    both = "both"
    target = "target"
    retain = "retain"


class EvaluatedRole(StrEnum):
    """What an evaluated model is in a comparison."""

    base = "base"
    target = "target"
    unlearned = "unlearned"
    retain = "retain"


def finetune(
    arguments: Arguments = None,
    role: Annotated[
        MadeRole,
        typer.Option(
            "--role",
            metavar="both|target|retain",
            help="target: trained on forget and retain set; retain: on the retain set alone.",
        ),
    ] = MadeRole.both,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    output: Output = None,
    seed: Seed = None,
) -> None:
    """Make the target and the retain model.

    The finetune section says how. Models are kept in the cache by the fingerprint of everything
    that made them, so unlearn finds them again.
    """
    resolved = resolve_run(
        arguments, model=model, forget=forget, retain=retain, output=output, seed=seed
    )
    with screen() as ui:
        _check_first(resolved, "finetune", ui)
        from expunge.run import pipelines

        roles = ("target", "retain") if role is MadeRole.both else (role.value,)
        for each in roles:
            pipelines.finetune(resolved.config, each, ui)


Force = Annotated[bool, typer.Option("--force", help="Make every line anew, edited ones as well.")]


def proxies(
    arguments: Arguments = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    output: Output = None,
    seed: Seed = None,
    force: Force = False,
) -> None:
    """Write the proxy answers that EGUP needs.

    One per forget question: a model that does not know the facts answers them in context, a local
    one (proxies.model, by default the base model) or one behind an OpenAI-compatible server
    (proxies.endpoint). The file is JSON lines, kept when it exists, and may be edited by hand.
    """
    resolved = resolve_run(
        arguments,
        model=model,
        forget=forget,
        retain=retain,
        method=method,
        output=output,
        seed=seed,
    )
    with screen() as ui:
        _check_first(resolved, "proxies", ui)
        from expunge.run import pipelines

        pipelines.proxies(resolved.config, ui, force=force)


def alternates(
    arguments: Arguments = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    output: Output = None,
    seed: Seed = None,
    force: Force = False,
) -> None:
    """Write the alternate answers that AltPO needs.

    Several per forget question, with other facts that are just as plausible: sampled from the model
    that unlearning starts from, from alternates.model, or from an OpenAI-compatible server
    (alternates.endpoint). The file is JSON lines, kept when it exists, and may be edited by hand.
    """
    resolved = resolve_run(
        arguments,
        model=model,
        forget=forget,
        retain=retain,
        method=method,
        output=output,
        seed=seed,
    )
    with screen() as ui:
        _check_first(resolved, "alternates", ui)
        from expunge.run import pipelines

        pipelines.alternates(resolved.config, ui, force=force)


def unlearn(
    arguments: Arguments = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    proxies: Proxies = None,
    benchmark: Benchmark = None,
    preset: Preset = None,
    retain_run: RetainRun = None,
    budget: Budget = None,
    output: Output = None,
    name: Name = None,
    seed: Seed = None,
) -> None:
    """Unlearn the forget set, evaluate, report.

    Model, results and report end up in one run folder. Everything comes from a YAML file, from
    flags, or from both; flags win. A run that was interrupted resumes from its last checkpoint when
    the same command is given again.
    """
    resolved = resolve_run(
        arguments,
        model=model,
        forget=forget,
        retain=retain,
        method=method,
        proxies=proxies,
        benchmark=benchmark,
        preset=preset,
        retain_run=retain_run,
        budget=budget,
        output=output,
        name=name,
        seed=seed,
    )
    with screen() as ui:
        _check_first(resolved, "unlearn", ui)
        from expunge.run import pipelines

        pipelines.unlearn(resolved.config, ui)


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, model folder or hub name.")
    ],
    arguments: Arguments = None,
    forget: Forget = None,
    retain: Retain = None,
    benchmark: Benchmark = None,
    preset: Preset = None,
    role: Annotated[
        EvaluatedRole,
        typer.Option(
            "--role",
            metavar="base|target|unlearned|retain",
            help="What the model is in a comparison.",
        ),
    ] = EvaluatedRole.unlearned,
    retain_run: RetainRun = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="Run folder for the results.",
            show_default="the run folder, else runs/NAME",
        ),
    ] = None,
) -> None:
    """Measure a model.

    Per-sample outputs and the results made from them are kept in a run folder. A run folder brings
    its own configuration and its unlearned model. For another model, name the data with flags or a
    YAML file.
    """
    from expunge.run.resolve import resolve

    run = Path(model)
    is_run = (run / "config.yaml").is_file()
    if is_run and role is not EvaluatedRole.unlearned:
        raise InputError(
            f"{model} is a run and its model is the unlearned one; to evaluate another model give "
            "its own folder"
        )
    file, overrides = split_arguments(arguments)
    own = run / "config.yaml" if is_run else None
    if output is None:
        output = run if is_run else Path("runs") / f"evaluation-{run.name}"
    path = str(run / "model") if is_run else model
    flags = flag_values(
        model=path,
        forget=forget,
        retain=retain,
        benchmark=benchmark,
        preset=preset,
        retain_run=retain_run,
        output=output,
    )
    resolved = resolve(own if file is None else find_config(file), overrides=overrides, flags=flags)
    with screen() as ui:
        _check_first(resolved, "evaluate", ui)
        from expunge.run import pipelines

        pipelines.evaluate(resolved.config, model=path, role=role.value, ui=ui)


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Keys of the evaluation section to change, such as options.mean=arithmetic or "
            "encoder=builtin:all-minilm-l6-v2.",
            show_default=False,
        ),
    ] = None,
    retain_run: RetainRun = None,
    preset: Preset = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="[PROBE/]NAME",
            help="Any further metric to compute, such as forget/rouge1_f1. See: expunge list "
            "metrics",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compute results again from stored outputs.

    Needs none of the evaluated models. Answers that a sentence encoder or a classifier has judged
    are not judged again.
    """
    _require_run(run)
    with screen() as ui:
        from expunge.run import pipelines

        pipelines.score(
            run,
            retain_run=retain_run or (),
            preset=preset,
            options=changes or (),
            metrics=metric or (),
            ui=ui,
        )


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="Where the report goes.",
            show_default="the first run folder",
        ),
    ] = None,
) -> None:
    """Write the report of a run, or compare several.

    One self-contained HTML file, and tables in Markdown and CSV.
    """
    for run in runs:
        _require_run(run)
    with screen() as ui:
        from expunge.run import pipelines

        pipelines.report(runs, output=output, ui=ui)


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Values that override the recipe demo.",
            show_default=False,
        ),
    ] = None,
    output: Output = None,
) -> None:
    """Run the main job on the embedded model and data.

    Needs no network and some minutes on two cores. Teaches SmolLM2-135M-Instruct a slice of TOFU,
    trains a retain model without the forget authors, unlearns with EGUP(NPO+GD), evaluates all four
    models and writes the report. The second time, the fine-tuned models come from the cache. The
    numbers are for looking at, not for papers.
    """
    from expunge.run.resolve import resolve

    file, values = split_arguments(overrides)
    if file is not None:
        raise InputError(f"demo has its own recipe; run {file} with: expunge unlearn {file}")
    resolved = resolve(find_config("demo"), overrides=values, flags=flag_values(output=output))
    with screen() as ui:
        _check_first(resolved, "demo", ui)
        from expunge.run import pipelines

        pipelines.demo(ui, config=resolved.config)


def verify_golden(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Golden files, or folders with some.")
    ],
) -> None:
    """Compare with numbers from the authors' code.

    Losses, metrics and data handling. One line per case: passed, failed with the difference, or not
    supported. Exit code 1 if any case failed.
    """
    from expunge.run.verify import verify

    outcomes: dict[str, int] = {}
    for result in verify(paths):
        typer.echo(result.line())
        outcomes[result.outcome] = outcomes.get(result.outcome, 0) + 1
    typer.echo(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    if outcomes.get("failed"):
        raise typer.Exit(1)


def _check_first(resolved: Resolved, verb: Verb, ui: Ui) -> None:
    """Everything that is wrong in one go, before weights are loaded."""
    from expunge.run.check import check

    found = check(resolved.config, verb=verb)
    found.raise_if_problems(resolved.source)
    for text in found.warnings:
        ui.warning(text)


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(Problem(where=str(folder), message="there is no such run folder"))
    if not any((folder / name).exists() for name in ("run.json", "evaluation", "scenario.json")):
        raise InputError(
            Problem(
                where=str(folder), message="is no run folder: no run.json and no evaluation in it"
            )
        )
