"""Arguments and options that several verbs share, and what they say about a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.core.errors import InputError

if TYPE_CHECKING:  # `expunge --help` should not have to wait for pydantic
    from expunge.run.resolve import Resolved

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN.yaml|KEY=VALUE",
        help="Configuration file or name of a recipe, and values that override it, such as "
        "training.learning_rate=1e-5. All keys: expunge show config",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH",
        help="Model folder, hub name or builtin model.",
        show_default=False,
    ),
]
Forget = Annotated[
    str | None,
    typer.Option(
        "--forget",
        metavar="DATA",
        help="Forget set: a file, a folder, tofu:SPLIT or a hub name.",
        show_default=False,
    ),
]
Retain = Annotated[
    str | None,
    typer.Option(
        "--retain", metavar="DATA", help="Retain set, in the same forms.", show_default=False
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NOTATION",
        help='Method, such as "NPO+GD" or "EGUP(NPO+GD, k=1, mu=0.001)".',
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FOLDER", help="Run folder.", show_default="runs/NAME"),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="TEXT", help="Name of the run.", show_default=False),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Seed of everything random.", show_default=False),
]
Proxies = Annotated[
    Path | None,
    typer.Option(
        "--proxies",
        metavar="FILE",
        help="Proxy answers for EGUP.",
        show_default="proxies.jsonl in the run folder",
    ),
]
Benchmark = Annotated[
    str | None,
    typer.Option(
        "--benchmark", metavar="NAME", help="What to measure.", show_default="by the forget set"
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Variant of the benchmark.",
        show_default="the benchmark's own",
    ),
]
RetainRun = Annotated[
    list[Path] | None,
    typer.Option(
        "--retain-run",
        metavar="RUN",
        help="Run folder with the evaluation of a retain model, or a results file of another "
        "project. Give it several times for retain models of several seeds.",
        show_default=False,
    ),
]


Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="KEY=VALUE",
        help="Utility budget: utility=0.98 is the share that must be left, rows=32 the retain rows "
        "set aside to measure it.",
        show_default=False,
    ),
]


def flag_values(
    *,
    model: str | None = None,
    forget: str | None = None,
    retain: str | None = None,
    method: str | None = None,
    output: Path | None = None,
    name: str | None = None,
    seed: int | None = None,
    proxies: Path | None = None,
    benchmark: str | None = None,
    preset: str | None = None,
    retain_run: Sequence[Path] | None = None,
    budget: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Values of flags by the key they set; None where a flag was not given."""
    if name is None and output is not None:
        name = output.name or None
    return {
        "name": name,
        "model.path": model,
        "data.forget": forget,
        "data.retain": retain,
        "data.proxies": None if proxies is None else str(proxies),
        "method": method,
        "output_dir": None if output is None else str(output),
        "seed": seed,
        "evaluation.benchmark": benchmark,
        "evaluation.preset": preset,
        "evaluation.retain_run": [str(path) for path in retain_run] if retain_run else None,
        **{f"budget.{key}": value for key, value in budget_values(budget).items()},
    }


def budget_values(given: Sequence[str] | None) -> dict[str, Any]:
    """Keys and values of --budget, such as utility=0.98 and rows=16.

    Raises:
        InputError: A value has no key.
    """
    from expunge.core.notation import read_value

    values = {}
    for item in (part for text in given or () for part in text.split(",")):
        key, mark, value = item.partition("=")
        if not mark or not key or not value:
            raise InputError(f"--budget {item}: write --budget utility=0.98, or rows=32")
        values[key.strip()] = read_value(value.strip())
    return values


def split_arguments(arguments: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The configuration file (or recipe) and the overrides among free arguments.

    Raises:
        InputError: There is more than one file.
    """
    files: list[str] = []
    overrides: list[str] = []
    for argument in arguments or ():
        is_override = "=" in argument and not Path(argument).exists()
        (overrides if is_override else files).append(argument)
    if len(files) > 1:
        raise InputError(
            f"one configuration file at most, came {' and '.join(files)}; overrides have the form "
            "key=value"
        )
    return (files[0] if files else None), overrides


def resolve_run(arguments: Sequence[str] | None, **flags: Any) -> Resolved:
    """The configuration that free arguments and flags describe.

    Raises:
        InputError: With every problem of the configuration at once.
    """
    from expunge.run.resolve import resolve

    file, overrides = split_arguments(arguments)
    path = None if file is None else find_config(file)
    return resolve(path, overrides=overrides, flags=flag_values(**flags), source=file)


def find_config(text: str) -> Path:
    """The configuration file called `text`: a path, or the name of a recipe in the package.

    Raises:
        InputError: There is neither.
    """
    from expunge.run.recipes import find_recipe

    path = Path(text)
    return path if path.exists() or path.suffix in (".yaml", ".yml") else find_recipe(text)


def origin_rows(resolved: Resolved) -> Iterator[tuple[str, str, str]]:
    """Key, value and origin of every value, ready to print."""
    from expunge.run.render import yaml_value

    for path, value, origin in resolved.values():
        yield path, yaml_value(value), origin
