"""The verbs that only look and write text: list, show, init, check, env."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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
    flag_values,
    origin_rows,
    resolve_run,
)
from expunge.cli.screen import screen
from expunge.core.errors import InputError, did_you_mean
from expunge.run.table import aligned


def list_things(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="methods, losses, retain, wrappers, metrics, benchmarks, recipes, templates or "
            "splits.",
            show_default="all of them",
        ),
    ] = None,
) -> None:
    """List what exists."""
    from expunge.run.catalog import KINDS, entries, method_rows

    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no list of {kind!r}. {did_you_mean(kind, list(KINDS))}")
    for each in [kind] if kind else KINDS:
        if kind is None:
            typer.echo(f"\n{each}: {KINDS[each]}")
        rows: list[tuple[str, ...]] = [(entry.name, entry.summary) for entry in entries(each)]
        if kind == "methods":
            rows = [("name", "class", "needs", "paper"), *method_rows()]
        for line in aligned(rows) if rows else ():
            typer.echo(line if kind else f"  {line}")


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help='A method such as "NPO+GD", a loss, wrapper, metric, benchmark, recipe, template '
            "or split; a key of the configuration; or: config, schema.",
        ),
    ],
) -> None:
    """Explain one thing.

    Its terms, options with defaults and meaning, needs and paper.
    """
    from expunge.run.pages import page

    typer.echo(page(name))


def init(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|FILE.yaml|KEY=VALUE",
            help="Recipe to start from (default: custom), file to write (default: run.yaml), "
            "values to fill in.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    output: Output = None,
    name: Name = None,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a complete configuration to edit.

    Every key is there, with its meaning above it.
    """
    from expunge.core.files import atomic_write_text
    from expunge.run.recipes import find_recipe, recipe_header
    from expunge.run.render import to_yaml
    from expunge.run.resolve import resolve

    recipe, file, overrides = _init_arguments(arguments or ())
    if file.exists() and not force:
        raise InputError(f"{file} exists; choose another name, or overwrite it with --force")
    flags = flag_values(
        model=model,
        forget=forget,
        retain=retain,
        method=method,
        output=output,
        name=name,
        seed=seed,
    )
    config = resolve(find_recipe(recipe), overrides=overrides, flags=flags).config
    atomic_write_text(file, to_yaml(config, comments=True, header=recipe_header(recipe)))
    typer.echo(f"Wrote {file}. Next: expunge check {file}, then expunge unlearn {file}")


def _init_arguments(arguments: Sequence[str]) -> tuple[str, Path, list[str]]:
    overrides = [text for text in arguments if "=" in text]
    names = [text for text in arguments if "=" not in text]
    files = [text for text in names if text.endswith((".yaml", ".yml"))]
    recipes = [text for text in names if text not in files]
    if len(files) > 1 or len(recipes) > 1:
        raise InputError(
            f"came {' and '.join(names)}: give one recipe and one file that ends in .yaml"
        )
    return (recipes or ["custom"])[0], Path((files or ["run.yaml"])[0]), overrides


def check(
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
    """Validate everything before weights load.

    Prints every problem at once, the batch arithmetic, and every value with where it came from:
    default, file, override (key=value) or flag.
    """
    from expunge.run.check import check as check_run

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
    found = check_run(resolved.config)
    with screen() as ui:
        for line in aligned([("key", "value", "from"), *origin_rows(resolved)]):
            ui.note(line)
        ui.note("")
        for line in aligned(found.facts) if found.facts else ():
            ui.note(line)
        for text in found.warnings:
            ui.warning(text)
        found.raise_if_problems(resolved.source)
        ui.note(f"\n{resolved.source} has no problems.")


def env() -> None:
    """Print versions and hardware, for a bug report."""
    from expunge.run.environment import environment_lines

    for line in environment_lines():
        typer.echo(line)
