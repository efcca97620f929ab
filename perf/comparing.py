"""Pairs of steps, trajectories and peaks to one line of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from common import GIB, Pair, Spread, alternate, ratios, spread
from flops import GIGA
from sides import Ready, Step
from workers import CeilingWorker, Worker
from works import LEARNING_RATE, SHARE_TARGETS, WORKS, Precision, Side, Spec, Work

TOLERANCE = 1e-5
"""Largest relative difference of a term in float32, over the first steps."""

CHECK_STEPS = 3
"""Steps of the trajectory; they warm up what is timed afterwards."""

BOTH: tuple[Side, Side] = ("naive", "ours")


class Refused(RuntimeError):
    """The two sides do not do the same: a ratio would say nothing."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for a whole run.

    Attributes:
        rows: Rows per stream and step.
        repeats: Timed pairs.
        model: Model folder or name.
        attention: Attention of each side's model, as `transformers` calls it.
        doubled: The comparator computes unused losses too, as open-unlearning does.
        options: Further training arguments of Expunge.
        learning_rate: Of both sides.
        threads: Of both sides.
    """

    rows: int
    repeats: int
    model: str
    attention: Mapping[Side, str]
    doubled: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = LEARNING_RATE
    threads: int | None = None

    def spec(self, side: Side, work: Work, precision: Precision, steps: int) -> Spec:
        """What a worker is told."""
        return Spec(
            side=side,
            work=work,
            precision=precision,
            rows=self.rows * work.rows_factor,
            steps=steps,
            model=self.model,
            attention=self.attention[side],
            doubled=self.doubled,
            options=self.options if side == "ours" else {},
            learning_rate=self.learning_rate,
            threads=self.threads,
        )


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """How well the terms of both sides agree.

    Attributes:
        loss: The loss that was compared.
        precision: Its types.
        steps: First steps that were compared.
        difference: Largest relative difference of a term; smaller is better.
        naive: Forget and retain term of each step.
        ours: The same.
    """

    loss: str
    precision: str
    steps: int
    difference: float
    naive: list[tuple[float, float]]
    ours: list[tuple[float, float]]


class Comparison:
    """Runs works; remembers which trajectories agree.

    Args:
        settings: What holds for all.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.agreed: dict[str, Trajectory] = {}

    def measure(self, work: Work, precision: Precision) -> dict[str, Any]:
        """One line of the result.

        Raises:
            Refused: The float32 trajectories of the work's loss do not agree.
            WorkerError: A side failed.
        """
        line = self._paired if work.paired else self._memory
        return line(work, precision)

    def agreement(self, twin: Work) -> Trajectory:
        """The float32 trajectory of a loss, checked once per run."""
        if twin.name not in self.agreed:
            steps = self._alone(twin, "fp32", CHECK_STEPS)
            self._agree(twin, steps["naive"].steps, steps["ours"].steps)
        return self.agreed[twin.name]

    def _agree(self, twin: Work, naive: Sequence[Step], ours: Sequence[Step]) -> None:
        found = trajectory(twin.loss, "fp32", naive[:CHECK_STEPS], ours[:CHECK_STEPS])
        if not found.difference <= TOLERANCE:  # not a number is no agreement either
            raise Refused(
                f"{twin.name}: the losses of both sides differ by {found.difference:.2g}, allowed "
                f"is {TOLERANCE:g}; naive {found.naive}, ours {found.ours}"
            )
        self.agreed[twin.name] = found

    def _paired(self, work: Work, precision: Precision) -> dict[str, Any]:
        own_check = precision == "fp32" and work.name == work.twin
        if not own_check:
            self.agreement(WORKS[work.twin])
        steps = CHECK_STEPS + self.settings.repeats
        specs = {side: self.settings.spec(side, work, precision, steps) for side in BOTH}
        workers: dict[Side, Worker] = {}
        ceiling: CeilingWorker | None = None
        try:
            for side in BOTH:
                workers[side] = Worker(specs[side])
            facts = {side: workers[side].facts for side in BOTH}
            done: dict[Side, list[Step]] = {side: [] for side in BOTH}
            for _ in range(CHECK_STEPS):
                for side in BOTH:
                    done[side].append(workers[side].step())
            if own_check:
                self._agree(work, done["naive"], done["ours"])
            ceiling = CeilingWorker(specs["ours"], facts["ours"])
            measured = []

            def timed(side: Side) -> float:
                done[side].append(workers[side].step())
                if side == "ours":
                    measured.append(ceiling.measure())
                return done[side][-1].seconds

            pairs = alternate(
                lambda: timed("naive"),
                lambda: timed("ours"),
                repeats=self.settings.repeats,
                warmup=0,
            )
        finally:
            for worker in (*workers.values(), *([ceiling] if ceiling else [])):
                worker.close()
        own = trajectory(work.loss, precision, done["naive"], done["ours"])
        return {
            **self._head(work, precision),
            # The values of another method or of an adapter are its own.
            "own_difference": own.difference if work.name == work.twin else None,
            "target": work.target.get(precision),
            **speed(pairs),
            "prepare_seconds": {side: facts[side].prepare_seconds for side in BOTH},
            **useful(work, precision, pairs, facts["ours"], measured),
            "memory": memory(facts, {side: done[side][-1].peak_bytes for side in BOTH}),
        }

    def _memory(self, work: Work, precision: Precision) -> dict[str, Any]:
        self.agreement(WORKS[work.twin])
        runs = self._alone(work, precision, CHECK_STEPS)
        return {
            **self._head(work, precision),
            "memory_target": work.memory_target.get(precision),
            "memory": memory(
                {side: run.facts for side, run in runs.items()},
                {side: run.steps[-1].peak_bytes for side, run in runs.items()},
            ),
        }

    def _head(self, work: Work, precision: Precision) -> dict[str, Any]:
        return {
            "work": work.name,
            "title": work.title,
            "precision": precision,
            "rows": self.settings.rows * work.rows_factor,
            "method": work.method,
            "trajectory": asdict(self.agreed[work.twin]),
        }

    def _alone(self, work: Work, precision: Precision, steps: int) -> dict[Side, _Run]:
        """Both sides one after the other, so that they never hold memory together."""
        found: dict[Side, _Run] = {}
        for side in BOTH:
            worker = Worker(self.settings.spec(side, work, precision, steps))
            try:
                found[side] = _Run(facts=worker.facts, steps=[worker.step() for _ in range(steps)])
            finally:
                worker.close()
        return found


@dataclass(frozen=True, kw_only=True)
class _Run:
    facts: Ready
    steps: list[Step]


def trajectory(
    loss: str, precision: Precision, naive: Sequence[Step], ours: Sequence[Step]
) -> Trajectory:
    """Compare the terms of both sides, step by step and term by term.

    A term is compared with itself and not with the loss, which is a difference for GA+GD and may be
    close to 0.
    """
    left = [(step.forget, step.retain) for step in naive]
    right = [(step.forget, step.retain) for step in ours]
    found = [
        _relative(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    # max() would drop what is not a number, depending on its place.
    worst = max(found) if all(value == value for value in found) else float("nan")
    return Trajectory(
        loss=loss,
        precision=precision,
        steps=len(left),
        difference=worst,
        naive=left,
        ours=right,
    )


def _relative(left: float, right: float) -> float:
    return abs(left - right) / max(abs(left), abs(right), 1e-12)


def speed(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Ratios over the pairs; that of the sums counts steps that are dearer than others, too."""
    return {
        "ratio": asdict(ratios(pairs)),
        "ratio_of_totals": sum(pair.naive for pair in pairs) / sum(pair.ours for pair in pairs),
        "seconds": {
            "naive": asdict(spread([pair.naive for pair in pairs])),
            "ours": asdict(spread([pair.ours for pair in pairs])),
        },
        "pairs": [pair._asdict() for pair in pairs],
    }


def useful(
    work: Work,
    precision: Precision,
    pairs: Sequence[Pair],
    facts: Ready,
    ceilings: Sequence[Any],
) -> dict[str, Any]:
    """Useful operations and the share of the ceiling measured right after each pair.

    The best ceiling of the run is the stricter yardstick: a busy machine lowers both a step and the
    ceiling next to it.
    """
    tokens = facts.tokens[-len(pairs) :]
    best = max(one.square for one in ceilings)

    def share(side: Side) -> Spread:
        return spread(
            [
                size.flops / getattr(pair, side) / (one.square * GIGA)
                for size, pair, one in zip(tokens, pairs, ceilings, strict=True)
            ]
        )

    def share_of_best(side: Side) -> float:
        speeds = [
            size.flops / getattr(pair, side) for size, pair in zip(tokens, pairs, strict=True)
        ]
        return spread(speeds).median / (best * GIGA)

    return {
        "tokens": {
            name: spread([getattr(one, name) for one in tokens]).median
            for name in ("real", "padded", "answers")
        },
        "useful_gflop": spread([one.flops for one in tokens]).median / GIGA,
        "ceiling_gflops": {
            "square": asdict(spread([one.square for one in ceilings])),
            "model": asdict(spread([one.model for one in ceilings])),
        },
        "share": {side: asdict(share(side)) for side in BOTH},
        "share_of_best": {side: share_of_best(side) for side in BOTH},
        "share_target": SHARE_TARGETS.get((work.name, precision)),
    }


def memory(facts: Mapping[Side, Ready], peaks: Mapping[Side, int]) -> dict[str, Any]:
    """Peak resident size per process in GiB, and what is above weights, gradients and moments.

    `share_above` is ours over the comparator's, lower is better; the libraries are in both, and the
    second share leaves them out.
    """
    sides = {
        side: {
            "peak_gib": peaks[side] / GIB,
            "held_gib": facts[side].held_bytes / GIB,
            "libraries_gib": facts[side].base_bytes / GIB,
            "above_gib": (peaks[side] - facts[side].held_bytes) / GIB,
        }
        for side in BOTH
    }
    above = {side: values["above_gib"] for side, values in sides.items()}
    bare = {side: values["above_gib"] - values["libraries_gib"] for side, values in sides.items()}
    return {
        **sides,
        "whole_life": not all(facts[side].resettable for side in BOTH),
        "share_peak": sides["ours"]["peak_gib"] / sides["naive"]["peak_gib"],
        "share_above": above["ours"] / above["naive"],
        "share_above_without_libraries": bare["ours"] / bare["naive"],
    }
