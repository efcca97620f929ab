"""The result files: typed, frozen, closed to unknown keys, and carrying their own origin."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from expunge.core.errors import InputError, Problem
from expunge.core.files import atomic_write_text

SCHEMA_VERSION = 1

Better = Literal["higher", "lower", "closer_to_retain", "closer_to_zero", "closer_to_half", "none"]
"""The good direction of a value: up, down, towards the retain model's value, towards 0 or 1/2 from
either side, or not a score."""

Verdict = Literal["inside", "outside", "cannot tell"]
"""Whether a true distance is within a margin, beyond it, or not decided by so many samples."""


def _absent_if_nan(value: Any) -> Any:
    """Not-a-number is not a value: a file must never hold one."""
    return None if isinstance(value, float) and math.isnan(value) else value


Value = Annotated[float | None, BeforeValidator(_absent_if_nan)]


class Record(BaseModel):
    """A frozen, closed record that is written as JSON and read back unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def save(self, path: Path | str) -> None:
        """Write as indented JSON, atomically."""
        atomic_write_text(path, self.model_dump_json(indent=2) + "\n")


R = TypeVar("R", bound=Record)


def load_record(kind: type[R], path: Path | str) -> R:
    """Read a record of the given kind.

    Raises:
        InputError: There is no such file, or it does not hold such a record.
    """
    path = Path(path)
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(Problem(where=str(path), message="there is no such file")) from None
    except ValidationError as error:
        problems = [
            Problem(where=".".join(str(part) for part in item["loc"]), message=item["msg"])
            for item in error.errors()
        ]
        raise InputError(problems, source=f"{path} ({kind.__name__})") from None


class Score(Record):
    """One number of a report, or the reason why there is none.

    Attributes:
        value: The number; None when it could not be computed.
        n: Samples that entered it.
        unscored: Samples that should have entered it and could not be scored (left out of `n`).
        low: Lower end of the 95% bootstrap interval over samples.
        high: Upper end of it.
        better: Good direction.
        reason: Why `value` is None; None when there is a value.
        unit: What the number is: "probability", "ROUGE-L recall".
        metric_version: Version of the metric's definition; changes when its numbers change.
        two_sided: How far the value is from its ideal, whichever side it is on: 2 |AUC - 1/2| of an
            attack, |PrivLeak|. A leak shows on both sides. None where a value has one bad side.
        note: A sentence that must be read with the number; None for most.
    """

    value: Value = None
    n: int = Field(ge=0)
    unscored: int = Field(default=0, ge=0)
    low: Value = None
    high: Value = None
    better: Better = "none"
    reason: str | None = None
    unit: str = ""
    metric_version: int = 1
    two_sided: Value = None
    note: str | None = None


class NullBand(Record):
    """Distances D between retain models of different seeds: what chance alone makes.

    Attributes:
        distances: Of every pair, in the order (1, 2), (1, 3), ..., (2, 3), ...
        lowest: The smallest of them.
        median: Their median.
        highest: The largest of them.
        num_models: Number of retain models.
    """

    distances: list[float]
    lowest: float
    median: float
    highest: float
    num_models: int = Field(ge=2)


class ForgetQuality(Record):
    """Kolmogorov-Smirnov test of the forget truth ratios against the retain model's.

    With several retain models the test is that against one of them, the one at the median distance
    (of two middle ones the further); `distances` has all.

    Attributes:
        p_value: Two-sided p-value, 0..1; 1 = indistinguishable. A step function of D at given n, m.
        statistic: The distance D between the two empirical distributions, 0..1.
        n: Samples of the evaluated model.
        m: Samples of the retain model.
        log10_p: log10 of the p-value, also where the p-value itself underflows to 0.
        reason: Why there is no value; None when there is one.
        low: Lower end of the 95% interval of the true distance, over all questions that might have
            been asked. Conservative: it takes the two models' samples for independent.
        high: Upper end of it.
        upper_bound: One-sided 95% upper bound of the true distance; at most `high`.
        distances: D to every retain model, in their order.
        null_band: D between retain models; None with fewer than two.
        excess: Median D to the retain models minus the largest D between two of them; None without
            a null band.
        excess_low: Lower end of its 95% bootstrap interval over questions.
        excess_high: Upper end of it.
        margin: Tolerated distance that the verdict is about. With a null band and no margin given
            it is the largest D between retain models.
        margin_origin: Who set it: "given", "default", or "retain models".
        verdict: "inside" or "outside" the margin, or "cannot tell" at this n.
        rows_needed: Questions that would decide if the distance stays what it is; None where it is
            decided, or where no number would.
        warning: What to keep in mind below 100 questions; None from there on.
    """

    p_value: Value = None
    statistic: Value = None
    n: int = Field(default=0, ge=0)
    m: int = Field(default=0, ge=0)
    log10_p: Value = None
    reason: str | None = None
    low: Value = None
    high: Value = None
    upper_bound: Value = None
    distances: list[float] = Field(default_factory=list)
    null_band: NullBand | None = None
    excess: Value = None
    excess_low: Value = None
    excess_high: Value = None
    margin: Value = None
    margin_origin: Literal["given", "default", "retain models"] | None = None
    verdict: Verdict | None = None
    rows_needed: int | None = None
    warning: str | None = None


class ModelResults(Record):
    """Everything that was measured on one model.

    Attributes:
        schema_version: Version of this layout.
        role: "base", "target", "unlearned" or "retain" in a run; free for a model on its own.
        model: Path or name, as given.
        model_fingerprint: Content fingerprint of the weights.
        benchmark: Name of the benchmark.
        benchmark_version: Version of its definition; changes when its numbers change.
        scores: By key: "forget/rouge_l_recall", "retain/probability", "real_authors/truth_ratio",
            "model_utility", "forget_quality".
        forget_quality: The full test; None for a benchmark that has none.
        settings: Row limits, generation length, template, and what else the numbers depend on.
        created: ISO 8601 time with zone.
        versions: Of the packages that took part.
    """

    schema_version: int = SCHEMA_VERSION
    role: str
    model: str
    model_fingerprint: str
    benchmark: str
    benchmark_version: int
    scores: dict[str, Score]
    forget_quality: ForgetQuality | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    created: str
    versions: dict[str, str] = Field(default_factory=dict)


class DataSummary(Record):
    """One data set of a run: where it came from and exactly which rows it was.

    Attributes:
        name: Its part in the run: "forget", "retain".
        origin: Path, split or hub name with revision, as loaded.
        num_rows: Rows used.
        fingerprint: Content fingerprint of those rows.
    """

    name: str
    origin: str
    num_rows: int = Field(ge=0)
    fingerprint: str


class ModelSummary(Record):
    """One model of a run.

    Attributes:
        path: Path or name, as given.
        fingerprint: Content fingerprint of the weights; "" where it was not computed.
        dtype: Parameter type during the run.
        num_parameters: All parameters.
        num_trainable: Parameters that the run could change; None where nothing was trained.
    """

    path: str
    fingerprint: str = ""
    dtype: str = ""
    num_parameters: int | None = None
    num_trainable: int | None = None


class MethodSummary(Record):
    """The unlearning method of a run.

    Attributes:
        notation: Canonical notation, such as "EGUP(NPO+GD, k=1, mu=0.001)".
        terms: One readable line per term: "forget/npo: weight 1.0, beta 0.1".
        hyperparameters: All of them, with defaults filled in.
    """

    notation: str
    terms: list[str] = Field(default_factory=list)
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class RunManifest(Record):
    """What a run folder's run.json holds.

    Attributes:
        schema_version: Version of this layout.
        name: Name of the run, normally the folder's.
        command: Command line that repeats it, or a description of the Python call.
        status: Whether it is still going, done, or failed.
        error: Message of the failure.
        started: ISO 8601 time with zone.
        finished: ISO 8601 time with zone; None while running.
        seconds: Wall-clock seconds per stage, in order.
        peak_memory_bytes: Largest resident size of the process; None where unknown.
        method: The method; None for fine-tuning and for evaluation alone.
        data: By name in the run.
        models: By role.
        config: The fully resolved configuration.
        versions: Of Python and the packages that took part.
        machine: Processor, cores, memory, accelerators: a class of machine, no host name.
        seed: Seed of everything random.
        world_size: Number of processes.
        notes: Sentences a reader of the report must know, such as what was cut to save time.
        diagnostics: What methods measured on the way: the curve of an automatic alpha
            (`alpha_search`), the checks of a stop rule (`stop_checks`).
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    command: str
    status: Literal["running", "finished", "failed"]
    error: str | None = None
    started: str
    finished: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    method: MethodSummary | None = None
    data: dict[str, DataSummary] = Field(default_factory=dict)
    models: dict[str, ModelSummary] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    world_size: int = 1
    notes: list[str] = Field(default_factory=list)
    diagnostics: dict[str, Any] = Field(default_factory=dict)
