"""Verdicts of other models on stored answers, kept with the tables: no pass is ever repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.benchmarks import Benchmark
from expunge.evaluation import EvaluationStore, ProbeTable
from expunge.evaluation.judges import (
    JUDGED_COLUMNS,
    FluencyModel,
    JudgePanel,
    Judges,
    annotate,
)
from expunge.evaluation.judges.settings import TITLES
from expunge.models.fingerprints import model_fingerprint
from expunge.models.loading import load_model, load_tokenizer
from expunge.run.config import RunConfig
from expunge.run.folder import RunFolder

if TYPE_CHECKING:
    from expunge.run.ui import Ui

_ANSWERS_OF_TARGET = ("real_authors", "world_facts")
"""Probes whose rows come without what the model said before unlearning."""


class Annotator:
    """Adds to stored tables what the measures of a benchmark want and no pass has made.

    A column that is there stays, unless another judge is configured and can be had.

    Args:
        config: Names the judges.
        benchmark: Says what is wanted.
        base: The base model of the run, if it has one; judges fluency where no other is named.
        ui: Where progress goes; None for silence.
    """

    def __init__(
        self, config: RunConfig, benchmark: Benchmark, base: str | None, ui: Ui | None = None
    ) -> None:
        section = config.evaluation
        assert section is not None, "only runs with an evaluation are scored"
        self.section, self.ui = section, ui
        self.wanted = benchmark.annotations(section.preset)
        limit = benchmark.settings(section.preset).gibberish_max_length
        self.panel = JudgePanel(
            Judges(
                encoder=section.encoder,
                nli=section.nli,
                gibberish=section.gibberish,
                gibberish_max_length=limit,
            )
        )
        self.reasons: dict[str, str] = {}
        self.base = section.fluency or base
        self._fluency: FluencyModel | None = None

    def complete(
        self, folder: RunFolder, role: str, tables: Mapping[str, ProbeTable]
    ) -> dict[str, ProbeTable]:
        """Tables with all wanted columns that can be had; stored as well.

        Args:
            folder: The run folder.
            role: Whose tables they are.
            tables: As stored.
        """
        store = EvaluationStore(folder.evaluation / role)
        found = dict(tables)
        for probe, columns in self.wanted.items():
            table = found.get(probe)
            judged = sorted(columns & set(JUDGED_COLUMNS))
            if table is None or "generation" not in table or not judged:
                continue
            missing = [column for column in judged if not self._is_there(table, column)]
            if missing:
                found[probe] = self._judged(store, table, missing, self._originals(folder, probe))
        return found

    def _judged(
        self,
        store: EvaluationStore,
        table: ProbeTable,
        missing: Sequence[str],
        originals: Sequence[str | None] | None,
    ) -> ProbeTable:
        if self.ui is not None:
            self.ui.progress(0, len(table), f"judging answers on {table.probe}")
        possible = [column for column in missing if self._origin(column) is not None]
        base = self._base() if "generation_base_nll" in possible else None
        made = annotate(
            table,
            possible,
            self.panel,
            originals=originals,
            prefer_originals=self.section.original == "initial_model",
            base=base,
        )
        self.reasons |= made.reasons
        if not made.columns:
            return table
        origins = {column: self._origin(column) for column in made.columns}
        return store.annotate(table.probe, made.columns, origins)

    def _is_there(self, table: ProbeTable, column: str) -> bool:
        if column not in table:
            return False
        known = table.info.get("annotations", {}).get(column)
        origin = self._origin(column)
        return origin is None or origin == known

    def _origin(self, column: str) -> dict[str, Any] | None:
        """What decides the verdicts of a column; None if they cannot be had, with the reason."""
        kind = JUDGED_COLUMNS[column]
        if kind == "base_model":
            if self.base is None:
                self.reasons[column] = (
                    "no base model to judge fluency; name one as evaluation.fluency"
                )
                return None
            return {"judge": "base model", "name": self.base, "model": model_fingerprint(self.base)}
        problem = self.panel.problem(kind)
        if problem is not None:
            self.reasons[column] = f"{TITLES[kind]} {problem}"
            return None
        more = {"original": self.section.original} if kind == "encoder" else {}
        return {**self.panel.identity(kind), **more}

    def _base(self) -> FluencyModel:
        assert self.base is not None, "asked only where there is one"
        if self._fluency is None:
            model = load_model(self.base, dtype="float32")
            self._fluency = FluencyModel(model, load_tokenizer(self.base))
        return self._fluency

    def _originals(self, folder: RunFolder, probe: str) -> Sequence[str | None] | None:
        """What the model said before unlearning, where that is what answers are compared with."""
        if self.section.original == "stored" and probe not in _ANSWERS_OF_TARGET:
            return None
        store = EvaluationStore(folder.evaluation / "target")
        table = store.load().get(probe) if (store.folder / "manifest.json").is_file() else None
        return None if table is None else table.columns.get("generation")
