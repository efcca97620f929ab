"""The verb plan: what a run would need on other hardware, before it is started anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.arguments import Forget, Method, Model, Retain

if TYPE_CHECKING:
    from expunge.run.planning.planner import Plan

COLUMNS = (
    *("model", "GPUs", "fits", "GiB each", "weights", "gradients", "optimizer", "activations"),
    *("other", "sharding", "tokens/step", "s/step", "run", "evaluation"),
)


def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN.yaml|MODEL|KEY=VALUE",
            help="Configuration file, name of a recipe, model folder, config.json or size; and "
            "values that override the configuration, such as training.micro_batch_size=2.",
            show_default="NPO+GD on tofu:forget10 in mixed precision",
        ),
    ] = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            metavar="LIST",
            help="Models to plan for: 1B, 8B, 70B (Llama 3), folders or config files.",
            show_default="the run's model; without one 1B,8B,70B",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="LIST",
            help="Numbers of devices, 1 to 64.",
            show_default="1,2,4,8,16,32,64",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            help="a100-40, a100-80, h100-80, h200, l40s, rtx4090; or cpu: this machine, measured "
            "for a second.",
        ),
    ] = "h100-80",
    sharding: Annotated[
        str | None,
        typer.Option(
            "--sharding",
            metavar="KIND",
            help="none, optimizer (ZeRO-2) or full (FSDP, ZeRO-3).",
            show_default="the first that fits",
        ),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(
            "--tokens",
            metavar="N",
            help="Tokens of a row, prompt and answer.",
            show_default="counted where the tokenizer is here, else 80",
        ),
    ] = None,
    labels: Annotated[
        float | None,
        typer.Option(
            "--labels",
            metavar="N",
            help="Of these, tokens of the answer.",
            show_default="counted, else half",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="NAME",
            help="adamw, adamw_8bit, or adamw_bf16 (bfloat16 moments with stochastic rounding).",
            show_default="the run's",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON: bytes, seconds, FLOPs.")
    ] = False,
) -> None:
    """Predict memory and time of a run on other models and hardware.

    Nothing is loaded and nothing is trained. Every assumption is printed below the table.
    """
    from expunge.cli.arguments import flag_values
    from expunge.run.planning.request import make_plans

    flags = flag_values(model=model, forget=forget, retain=retain, method=method)
    found = make_plans(
        arguments or [],
        flags=flags,
        sizes=sizes,
        gpus=gpus,
        device=device,
        sharding=sharding,
        tokens=tokens,
        labels=labels,
        optimizer=optimizer,
    )
    if as_json:
        typer.echo(found.json())
        return
    _show(found.title, [_cells(each) for each in found.plans])
    typer.echo("\nAssumed:")
    for line in found.assumptions:
        typer.echo(f"- {line}")


def _show(title: str, rows: list[tuple[str, ...]]) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number in (0, 9) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A file or a pipe has no width: the table keeps the one it needs.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty()).print(table)


def _cells(plan: Plan) -> tuple[str, ...]:
    memory = plan.memory
    listed = memory.parts()
    main = ("weights", "gradients", "optimizer", "activations")
    other = sum(value for name, value in listed.items() if name not in main)
    evaluation = "-" if plan.evaluation_seconds is None else duration(plan.evaluation_seconds)
    return (
        plan.model,
        str(plan.gpus),
        "yes" if plan.fits else "no",
        f"{memory.peak / 2**30:.1f} of {plan.available / 2**30:.1f}",
        *(f"{listed[name] / 2**30:.1f}" for name in main),
        f"{other / 2**30:.1f}",
        plan.sharding,
        f"{plan.tokens_per_step:.0f}",
        f"{plan.time.step:.3g}",
        duration(plan.time.run),
        evaluation,
    )


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, in two or three digits."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"
