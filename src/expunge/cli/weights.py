"""Verbs that make a model from weights that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.arguments import Budget, budget_values
from expunge.cli.screen import screen
from expunge.core.errors import InputError


def extrapolate(
    initial: Annotated[
        str, typer.Argument(metavar="INITIAL", help="The model that unlearning started from.")
    ],
    unlearned: Annotated[
        str,
        typer.Argument(
            metavar="UNLEARNED", help="The unlearned model of any tool, or a folder of its adapter."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="Where the new model goes.")
    ],
    alpha: Annotated[
        str,
        typer.Option(
            "--alpha",
            metavar="NUMBER|auto",
            help="How much of the update is added once more; auto: the largest within the budget.",
        ),
    ] = "0.5",
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="A,B,...",
            help="Factors to measure on --forget and --retain rows instead of writing a model.",
            show_default=False,
        ),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option("--retain", metavar="DATA", help="Retain rows, for utility."),
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="DATA", help="Forget rows, for a sweep.")
    ] = None,
    budget: Budget = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="float32|bfloat16|float16", help="Number format.")
    ] = "float32",
) -> None:
    """Carry the update of an unlearned model further (UIPE), or bring it back.

    Writes UNLEARNED + alpha (UNLEARNED - INITIAL): 0 is the unlearned model, -1 the initial one.
    Nothing is trained. With --alpha auto a handful of forward passes on the retain rows decide.
    """
    factor: float | str = alpha
    try:
        factor = float(alpha)
        factors = [float(item) for item in sweep.split(",")] if sweep else []
    except ValueError:
        if alpha != "auto":
            raise InputError(f"--alpha {alpha}: a number, or auto") from None
        try:
            factors = [float(item) for item in sweep.split(",")] if sweep else []
        except ValueError:
            raise InputError(f"--sweep {sweep}: numbers with commas, such as 0,0.5,1") from None
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"--dtype {dtype}: one of float32, bfloat16, float16")
    with screen() as ui:
        from expunge.run.extrapolating import extrapolate_models
        from expunge.run.inputs import budget_of

        found = extrapolate_models(
            initial,
            unlearned,
            output,
            alpha=factor,
            sweep=factors,
            retain=retain,
            forget=forget,
            budget=budget_of(budget_values(budget)),
            dtype=dtype,
            ui=ui,
        )
        for point in found.sweep:
            utility = "" if point.utility is None else f"  utility {point.utility:.3f}"
            gone = "" if point.forget is None else f"  forget probability {point.forget:.3f}"
            ui.note(f"alpha {point.alpha:g}{utility}{gone}")
        if found.search is not None:
            for at, share in found.search.curve:
                ui.note(f"alpha {at:g}  utility {share:.3f}")
        if found.alpha is not None:
            ui.note(f"alpha {found.alpha:g}: {output}")
