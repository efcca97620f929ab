"""The values of a scenario in their places: which request, after which request, of which model.

A run folder that is missing or not finished leaves holes with a reason, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from expunge.core.errors import InputError
from expunge.core.results import Better, ModelResults, R, RunManifest, Score, load_record
from expunge.core.scenario import ScenarioRecord, Stage, load_scenario
from expunge.report.load import retain_folders
from expunge.report.measures import ordered, split_key
from expunge.report.model import ROLES, ModelReport, ReportData, role_label
from expunge.report.tables import Cell, Column, Table, TableRow, table_of
from expunge.report.text import DASH, number, one_line

FORGET: Final = "forget"
"""Probe under which a request asks for its own rows; later ones ask under its name."""

MAIN_MEASURES: Final = ("probability", "rouge_l_recall", "truth_ratio", "extraction_strength")
"""What the page shows of every request; the files beside it have all."""

FORGET_PROBES: Final = (FORGET, "target", "related", "reconstruction")
"""Probes of an arm that ask for what was to be forgotten, by whatever way."""

ARM_MEASURES: Final = ("rouge_l_recall", "probability")
"""What is drawn and said of them."""

TITLE_LIMIT: Final = 60


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One run of a scenario, as far as it is there.

    Attributes:
        position: Its place in the order, from 1.
        stage: What the scenario says about it.
        is_request: It is one of several requests, not an arm.
        report: What its folder holds; None when there is no such folder.
        missing: Why its unlearned model has no scores; "" where it has.
        has_page: Its own report is there.
    """

    position: int
    stage: Stage
    is_request: bool
    report: ReportData | None
    missing: str
    has_page: bool

    @property
    def label(self) -> str:
        """Short name: "request 2", or the arm's."""
        return f"request {self.position}" if self.is_request else one_line(self.stage.name, 40)

    @property
    def title(self) -> str:
        """What was asked, on one line."""
        return one_line(self.stage.title, TITLE_LIMIT)

    def model(self, role: str) -> ModelReport | None:
        """An evaluated model of the run; None when there is none, or it has no scores."""
        found = self.report.models.get(role) if self.report else None
        return found if found is not None and found.results is not None else None

    def score(self, role: str, key: str) -> Score:
        """The score of a model, or the reason why there is none."""
        model = self.model(role)
        if model is None:
            why = f"the {role_label(role).lower()} of {self.label} was not evaluated"
            is_due = self.missing and (role == "unlearned" or self.report is None)
            return absent(self.missing if is_due else why)
        return model.score(key) or absent(f"{key} was not measured with {self.label}")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario with its runs.

    Attributes:
        folder: Its folder.
        record: What it says about itself.
        stages: Its runs, in order.
    """

    folder: Path
    record: ScenarioRecord
    stages: tuple[StageReport, ...]

    @property
    def is_continual(self) -> bool:
        """Every request starts from the model of the one before, so that earlier ones can return.

        False for arms, and for requests that each start from the target model.
        """
        return self.record.kind == "requests" and self.record.start == "previous"

    @property
    def finished(self) -> tuple[StageReport, ...]:
        """The runs whose unlearned model has scores."""
        return tuple(stage for stage in self.stages if not stage.missing)

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not there yet, a sentence each."""
        return tuple(f"{_capital(each.missing)}." for each in self.stages if each.missing)


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """One measure of one request.

    Attributes:
        stage: The request.
        before: Of the model that its unlearning started from.
        retain: Of the retain model: the level to reach.
        after: After request 1, 2, ...; None where the request had not been made.
    """

    stage: StageReport
    before: Score
    retain: Score
    after: tuple[Score | None, ...]

    @property
    def own(self) -> Score:
        """Right after the request itself."""
        found = self.after[self.stage.position - 1]
        assert found is not None, "every request is measured after itself"
        return found

    @property
    def later(self) -> tuple[tuple[int, Score], ...]:
        """Values after later requests that have one, with the position of that request."""
        return tuple(
            (t, score)
            for t, score in enumerate(self.after, 1)
            if t > self.stage.position and score is not None and score.value is not None
        )


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One measure: requests by the times at which they were measured.

    Attributes:
        name: Name of the measure: "probability".
        better: Good direction.
        unit: What the number is.
        rows: The requests.
    """

    name: str
    better: Better
    unit: str
    rows: tuple[RequestRow, ...]

    @property
    def scores(self) -> list[Score]:
        """All scores, also those without a value."""
        found = []
        for row in self.rows:
            found += [row.before, *(score for score in row.after if score is not None), row.retain]
        return found


def read_scenario(folder: Path | str) -> Scenario:
    """Gather a scenario's folder.

    Raises:
        InputError: It is no such folder.
    """
    folder = Path(folder)
    record = load_scenario(folder)
    stages = [
        _read_stage(folder, stage, i, is_request=record.kind == "requests")
        for i, stage in enumerate(record.stages, 1)
    ]
    return Scenario(folder=folder, record=record, stages=tuple(stages))


def _read_stage(folder: Path, stage: Stage, position: int, *, is_request: bool) -> StageReport:
    run = folder / stage.folder
    name = f"request {position}" if is_request else f"arm {one_line(stage.name, 40)}"
    name += f" ({one_line(stage.title, TITLE_LIMIT)})"
    report = _read_run(run)
    return StageReport(
        position=position,
        stage=stage,
        is_request=is_request,
        report=report,
        missing=f"{name} has not been run" if report is None else _unfinished(report, name),
        has_page=(run / "report.html").is_file(),
    )


def _read_run(folder: Path) -> ReportData | None:
    """What a run's folder says, without the texts and tables of its own report; None: not run."""
    manifest = _record(RunManifest, folder / "run.json")
    places = {role: (folder / "evaluation" / role,) for role in ROLES}
    found = {
        role: results
        for role, folders in (places | {"retain": retain_folders(folder, manifest)}).items()
        for results in [_first_results(folders)]
        if results is not None
    }
    if manifest is None and not found:
        return None
    return ReportData(
        folder=folder,
        name=manifest.name if manifest else folder.name,
        manifest=manifest,
        models={role: ModelReport(role=role, results=results) for role, results in found.items()},
    )


def _first_results(folders: Iterable[Path]) -> ModelResults | None:
    """Of several retain models the first one that has results stands for all of them."""
    for folder in folders:
        results = _record(ModelResults, folder / "results.json")
        if results is not None:
            return results
    return None


def _record(kind: type[R], path: Path) -> R | None:
    """A record, or None where it is missing or damaged."""
    try:
        return load_record(kind, path)
    except (InputError, OSError):
        return None


def _unfinished(report: ReportData, name: str) -> str:
    """Why the unlearned model has no scores; "" where it has."""
    model, run = report.models.get("unlearned"), report.manifest
    if model is not None and model.results is not None:
        return ""
    if run is not None and run.status == "failed":
        return f"{name} failed: {one_line(run.error or 'no reason is recorded', 200).rstrip('.')}"
    if run is None or run.status == "running":
        return f"{name} is not finished"
    return f"the unlearned model of {name} has no scores"


def absent(reason: str) -> Score:
    """A score without a value."""
    return Score(n=0, reason=reason)


def cell_of(score: Score) -> Cell:
    """A score as a table shows it."""
    digits = 1 if score.unit in ("tokens", "percent") or score.unit.endswith("x 100") else 3
    return Cell(score=score, text=number(score.value, digits), digits=digits)


def columns_of(scenario: Scenario) -> list[str]:
    """Headings of the unlearned models in a table of requests: one per time, or one for all."""
    if scenario.is_continual:
        return [f"After {stage.label}" for stage in scenario.stages]
    return ["Unlearned model"]


def cells_of(scenario: Scenario, row: RequestRow) -> list[tuple[int, Score | None]]:
    """The values of a request under these headings, with the time at which each was measured."""
    if scenario.is_continual:
        return list(enumerate(row.after, 1))
    return [(row.stage.position, row.own)]


def matrices(scenario: Scenario) -> list[Matrix]:
    """Every measure that was made of the requests' own rows, the main ones first."""
    probes = {FORGET, *(stage.stage.name for stage in scenario.stages)}
    keys = [
        f"{FORGET}/{name}"
        for stage in scenario.finished
        for key, score in _scores(stage).items()
        for probe, name in [split_key(key)]
        if probe in probes and score.value is not None
    ]
    names = [split_key(key)[1] for key in ordered(keys)]
    chosen = [*(name for name in MAIN_MEASURES if name in names), *names]
    return [_matrix(scenario, name) for name in dict.fromkeys(chosen)]


def _scores(stage: StageReport) -> dict[str, Score]:
    model = stage.model("unlearned")
    return model.results.scores if model is not None and model.results is not None else {}


def _matrix(scenario: Scenario, name: str) -> Matrix:
    rows = tuple(_row(scenario, stage, name) for stage in scenario.stages)
    matrix = Matrix(name=name, better="none", unit="", rows=rows)
    known = [score for score in matrix.scores if score.value is not None]
    return Matrix(
        name=name,
        better=next((s.better for s in known if s.better != "none"), "none"),
        unit=next((s.unit for s in known if s.unit), ""),
        rows=rows,
    )


def _row(scenario: Scenario, request: StageReport, name: str) -> RequestRow:
    own = f"{FORGET}/{name}"
    return RequestRow(
        stage=request,
        before=request.score("target", own),
        retain=_retain(scenario, request, name),
        after=tuple(_after(scenario, request, t, name) for t in range(1, len(scenario.stages) + 1)),
    )


def _after(scenario: Scenario, request: StageReport, t: int, name: str) -> Score | None:
    """The value of a request's rows after request `t`; None where none is due."""
    if t < request.position or (t > request.position and not scenario.is_continual):
        return None
    later = f"{request.stage.name}/{name}"
    if t > request.position:
        return scenario.stages[t - 1].score("unlearned", later)
    score = request.score("unlearned", f"{FORGET}/{name}")
    if score.value is None and scenario.is_continual and t < len(scenario.stages):
        # The next request starts from this very model, and asks it for the same rows. Benchmarks
        # whose forget set is another one than the request (MUSE) have the value only there.
        same = scenario.stages[t].score("target", later)
        return same if same.value is not None else score
    return score


def _retain(scenario: Scenario, request: StageReport, name: str) -> Score:
    score = request.score("retain", f"{FORGET}/{name}")
    if score.value is None:
        for stage in scenario.stages[request.position :]:
            later = stage.score("retain", f"{request.stage.name}/{name}")
            if later.value is not None:
                return later
    return score


def over_time(scenario: Scenario) -> Table:
    """Everything that is not about a request's own rows: models in time by measures.

    The model before the first request, those after each, and the retain model. Forget quality is
    about the rows of the request at hand. Of requests that all start from the target model, that
    one stands once.
    """
    models = []
    for stage in scenario.finished:
        models.append((stage, "unlearned", f"After {stage.label}"))
    if models:
        first = models[0][0]
        models.insert(0, (first, "target", f"Before {first.label}"))
        models.append((first, "retain", "Retain model"))
    asked = {stage.stage.name for stage in scenario.stages}
    return _models(
        f"Models of {one_line(scenario.record.name, TITLE_LIMIT)}",
        models,
        leave_out={*asked, FORGET},
    )


def arms_table(scenario: Scenario, roles: Sequence[str] | None = None) -> Table:
    """The models of every arm by all measures.

    Args:
        scenario: The arms.
        roles: Models to show, in their order; None: all.
    """
    models = [
        (stage, role, f"{role_label(role)}, {stage.label}")
        for stage in scenario.stages
        if stage.report is not None
        for role in (stage.report.models if roles is None else roles)
    ]
    return _models(f"Arms of {one_line(scenario.record.name, TITLE_LIMIT)}", models)


def _models(
    caption: str,
    models: Iterable[tuple[StageReport, str, str]],
    leave_out: Iterable[str] = (),
) -> Table:
    """Models of several runs by measures: (run, role, label) each; those not there are skipped.

    Args:
        caption: What the table shows.
        models: The models.
        leave_out: Probes without a column.
    """
    picked = []
    columns: dict[str, Column] = {}
    for stage, role, label in models:
        if stage.report is None or stage.model(role) is None:
            continue
        table = table_of(stage.report)
        picked += [(row, label) for row in table.rows if row.role == role]
        for column in table.columns:
            if split_key(column.key)[0] not in leave_out:
                columns.setdefault(column.key, column)
    keys = ordered(columns)
    unmeasured = Cell(score=absent("not measured on this model"), text=DASH)
    return Table(
        caption=caption,
        columns=tuple(columns[key] for key in keys),
        rows=tuple(
            TableRow(
                label=label,
                run=row.run,
                role=row.role,
                method=row.method,
                model=row.model,
                cells={key: row.cells.get(key, unmeasured) for key in keys},
            )
            for row, label in picked
        ),
    )


def changing_sets(scenario: Scenario) -> tuple[str, ...]:
    """Probes whose rows are not the same with every request, so that values are over other rows."""
    asked = {FORGET, *(stage.stage.name for stage in scenario.stages)}
    seen: dict[str, set[str]] = {}
    for stage in scenario.finished:
        model = stage.model("unlearned")
        data = model.results.settings.get("data") if model and model.results else None
        for probe, about in data.items() if isinstance(data, dict) else ():
            if isinstance(about, dict) and probe not in asked:
                seen.setdefault(probe, set()).add(str(about.get("fingerprint")))
    return tuple(probe for probe, found in seen.items() if len(found) > 1)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
