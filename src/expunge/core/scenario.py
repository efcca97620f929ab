"""What a folder of several runs that belong together says about itself."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import field_validator

from expunge.core.errors import InputError, Problem
from expunge.core.results import Record, load_record

SCENARIO: Final = "scenario.json"
"""Name of the file that holds the record."""


class Stage(Record):
    """One run of a scenario.

    Attributes:
        name: "request_01", or the name of an arm; also the probe under which later runs ask for its
            rows again.
        title: What was asked, for people.
        folder: Run folder, relative to the scenario's.
        num_rows: Rows to forget.
    """

    name: str
    title: str
    folder: str
    num_rows: int

    @field_validator("folder")
    @classmethod
    def _is_inside(cls, folder: str) -> str:
        path = PurePosixPath(folder)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise ValueError(f"must be a folder inside the scenario's folder, not {folder!r}")
        return folder


class ScenarioRecord(Record):
    """What `scenario.json` holds.

    Attributes:
        schema_version: Version of this layout.
        name: Name of the scenario.
        kind: `requests`: one after the other; `arms`: side by side.
        start: Where a request starts from: the model of the one before, or the target model.
        reference: Whether reference values come from the start model of each request, or always
            from the first one.
        stages: The runs, in order.
    """

    schema_version: int = 1
    name: str
    kind: Literal["requests", "arms"]
    start: Literal["previous", "target"] = "previous"
    reference: Literal["refreshed", "fixed"] = "refreshed"
    stages: list[Stage]


def load_scenario(folder: Path | str) -> ScenarioRecord:
    """The record of a scenario's folder.

    Raises:
        InputError: It is none, or its record is damaged.
    """
    path = Path(folder) / SCENARIO
    if not path.is_file():
        raise InputError(
            Problem(
                where=str(folder),
                message=f"not a folder of several runs: it holds no {SCENARIO}. Give the folder "
                "that the command printed at its end, normally runs/NAME",
            )
        )
    return load_record(ScenarioRecord, path)
