"""Builds a scenario's folder from tables that are really stored and really scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fabricated_run import RunBuilder

from expunge.benchmarks import benchmarks
from expunge.core.scenario import SCENARIO, ScenarioRecord, Stage
from expunge.evaluation import EvaluationStore, ProbeTable

NUM_ROWS = 12
BACK = 0.55
"""Probability of request 1 after the last request: it comes back."""

# Probability per token of the rows of a request: before it, then after each request from its own.
LEVELS: Mapping[int, Sequence[float]] = {
    1: (0.80, 0.10, 0.101, BACK),
    2: (0.70, 0.20, 0.05),
    3: (0.75, 0.15),
}
RETAIN_LEVEL = 0.12
KEPT = (0.90, 0.85, 0.80, 0.40)
"""Probability of the retain set: before the first request, then after each."""


def table(probe: str, rows_of: str, level: float, model: str, num: int = NUM_ROWS) -> ProbeTable:
    """Answers of one model, about as likely as `level`; rows differ, the same rows a little."""
    rng = np.random.default_rng([ord(letter) for letter in rows_of])
    noise = np.random.default_rng([ord(letter) for letter in rows_of + model])
    logps = np.log(level) + 0.2 * rng.normal(size=num) + 0.05 * noise.normal(size=num)
    answers = [f"fact {i} of {rows_of} is known" for i in range(num)]
    return ProbeTable(
        probe=probe,
        columns={
            "index": list(range(num)),
            "question": [f"what is fact {i} of {rows_of}?" for i in range(num)],
            "answer": answers,
            "prompt_tokens": [9] * num,
            "answer_logps": [[min(value, -0.01)] * 3 for value in logps],
            "perturbed_logps": [[[np.log(0.3)] * 3, [np.log(0.2)] * 2]] * num,
            "answer_greedy": [[level > 0.5] * 3] * num,
            "generation": [text if level > 0.5 else "fact unknown" for text in answers],
            "generation_ids": [[1, 2, 3]] * num,
            "generation_tokens": [3] * num,
            "finished": [True] * num,
        },
        info={"key": f"{probe} {model}", "model": model, "data": {"fingerprint": rows_of}},
    )


@dataclass
class ScenarioBuilder:
    """Writes requests that follow each other; every part can be left out or replaced."""

    folder: Path
    name: str = "continual"
    title: str = "tofu:full"
    hostile: Sequence[str] = ()
    finished: int = 3
    start: str = "previous"
    stored: bool = True
    levels: Mapping[int, Sequence[float]] = field(default_factory=lambda: LEVELS)
    names: Sequence[str] = ("request_01", "request_02", "request_03")

    def build(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        ScenarioRecord(
            name=self.name,
            kind="requests",
            start=self.start,
            stages=[
                Stage(name=name, title=f"{self.title}[{i}]", folder=name, num_rows=NUM_ROWS)
                for i, name in enumerate(self.names)
            ],
        ).save(self.folder / SCENARIO)
        for position in range(1, self.finished + 1):
            self.stage(position)
        return self.folder

    def stage(self, position: int) -> Path:
        name = self.names[position - 1]
        run = RunBuilder(
            folder=self.folder / name,
            name=f"{self.name}-{name}",
            roles=(),
            num_steps=0,
            proxies=False,
            hostile=self.hostile,
        ).build()
        (run / "report.html").write_text("a page", encoding="utf-8")
        for role in ("target", "unlearned", "retain"):
            self.evaluation(run, position, role)
        return run

    def evaluation(self, run: Path, position: int, role: str) -> None:
        """The model of a role, asked for its own rows and, with a past, for those of earlier ones.

        The target model of a request is the one after the request before.
        """
        after = {"target": position - 1, "unlearned": position}.get(role)
        model = "retain" if after is None else f"after {after}"
        kept = KEPT[0] if after is None else KEPT[after]
        tables = [table(p, p, kept, model) for p in ("retain", "real_authors", "world_facts")]
        asked = range(1, position + 1) if self.start == "previous" else [position]
        for request in asked:
            level = RETAIN_LEVEL if after is None else self.levels[request][after - request + 1]
            probe = "forget" if request == position else self.names[request - 1]
            tables.append(table(probe, self.names[request - 1], level, model))
        benchmark = benchmarks.get("tofu").with_further(self.names[: position - 1])
        found = {each.probe: each for each in tables}
        folder = run / "evaluation" / role
        if self.stored:
            for each in tables:
                EvaluationStore(folder).save(each)
        benchmark.score_tables(found, role=role, model=model).save(folder / "results.json")


@dataclass
class ArmsBuilder:
    """Writes arms side by side, each of them scored with a benchmark of facts."""

    folder: Path
    levels: Mapping[str, float] = field(default_factory=lambda: {"theta_1": 0.6, "theta_2": 0.1})
    title: str = "learned targets, unlearned targets"
    finished: int = 2

    def build(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        ScenarioRecord(
            name="related",
            kind="arms",
            stages=[
                Stage(name=name, title=self.title, folder=name, num_rows=NUM_ROWS)
                for name in self.levels
            ],
        ).save(self.folder / SCENARIO)
        for name, level in list(self.levels.items())[: self.finished]:
            run = RunBuilder(
                folder=self.folder / name,
                name=f"related-{name}",
                roles=(),
                num_steps=0,
                proxies=False,
            ).build()
            for role, known in (("target", 0.9), ("unlearned", level)):
                tables = [table(p, p, known, f"{role} {name}") for p in ("target", "related")]
                benchmark = benchmarks.get("related_knowledge")
                folder = run / "evaluation" / role
                for each in tables:
                    EvaluationStore(folder).save(each)
                found = {each.probe: each for each in tables}
                benchmark.score_tables(found, role=role).save(folder / "results.json")
        return self.folder
