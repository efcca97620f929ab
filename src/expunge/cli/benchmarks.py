"""The verb that runs whole benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.arguments import (
    Method,
    Model,
    Name,
    Output,
    Seed,
    find_config,
    flag_values,
    split_arguments,
)
from expunge.cli.screen import screen
from expunge.run.table import aligned


def run_benchmark(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="tofu, continual, real_world, muse, muse_scalability, muse_sustainability, wmdp "
            "or related_knowledge.",
            show_default="show what there is",
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE] [KEY=VALUE]",
            help="YAML file or recipe, and values that override it.",
            show_default="the benchmark's own recipe",
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Data of the benchmark: a folder, for muse also a name on the hub.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    method: Method = None,
    output: Output = None,
    run_name: Name = None,
    seed: Seed = None,
) -> None:
    """Run a whole benchmark from one recipe.

    Target model, retain model, unlearning, evaluation and report; of continual unlearning every
    request in turn. Stages that are on disk already are not repeated, so a run that was interrupted
    goes on with the same command.
    """
    from expunge.run.benchmarking import protocols, run_benchmark_protocol
    from expunge.run.resolve import resolve

    if name is None:
        rows = [(found.name, found.title, found.source) for found in protocols]
        for line in aligned(rows):
            typer.echo(line)
        return
    protocol = protocols.get(name)
    file, overrides = split_arguments(arguments)
    flags: dict[str, Any] = {
        **flag_values(model=model, method=method, output=output, name=run_name, seed=seed),
        "evaluation.options.folder": folder,
    }
    if file is None and run_name is None and output is None:
        flags["name"] = protocol.name
    path: Path = find_config(protocol.recipe if file is None else file)
    resolved = resolve(path, overrides=overrides, flags=flags, source=file or protocol.recipe)
    with screen() as ui:
        run_benchmark_protocol(protocol.name, resolved.config, ui)
