"""Verbs that exchange evaluations with other projects."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.runs import EvaluatedRole
from expunge.cli.screen import screen


class ExportFormat(StrEnum):
    """Whose files are written."""

    open_unlearning = "open-unlearning"


def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="TOFU_EVAL.json, MUSE_EVAL.json or ..._SUMMARY.json of open-unlearning, or "
            "eval_log_aggregated.json of TOFU.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="RUN", help="Run folder it goes to, new or not.")
    ],
    role: Annotated[
        EvaluatedRole,
        typer.Option(
            "--role",
            metavar="base|target|unlearned|retain",
            help="What the model is in a comparison.",
        ),
    ] = EvaluatedRole.unlearned,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="What was to be forgotten, such as forget10.",
            show_default="by the number of rows",
        ),
    ] = None,
) -> None:
    """Bring the evaluation of another project into a run folder.

    Then score, report and --retain-run work with it as with a model that was evaluated here. Rows
    are matched by position. Metrics that are not known here are named and left out.
    """
    with screen() as ui:
        from expunge.run.exchange import import_evaluation

        import_evaluation(file, output, role=role.value, split=split, ui=ui)


def export_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    form: Annotated[
        ExportFormat,
        typer.Option("--format", metavar="open-unlearning", help="Whose files to write."),
    ] = ExportFormat.open_unlearning,
    role: Annotated[
        EvaluatedRole,
        typer.Option(
            "--role", metavar="base|target|unlearned|retain", help="Whose results to write."
        ),
    ] = EvaluatedRole.unlearned,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="Where the files go.",
            show_default="open-unlearning/ROLE in the run folder",
        ),
    ] = None,
) -> None:
    """Write results the way another project does.

    TOFU_EVAL.json with every sample and TOFU_SUMMARY.json with one number per metric, or MUSE's.
    What the run does not have is left out and named.
    """
    assert form is ExportFormat.open_unlearning, "the only one there is"
    with screen() as ui:
        from expunge.run.exchange import export_run as write

        write(run, output, role=role.value, ui=ui)
