"""Everything the scores of one model are made from: its tables, and those of other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.evaluation.tables import ProbeTable

Tables = Mapping[str, ProbeTable]

_LACKS = {
    "perturbed_logps": "its rows have no wrong answers (perturbed_answer)",
    "generation": "nothing was generated on it",
    "generation_tokens": "nothing was generated on it",
    "generation_ids": "nothing was generated on it",
    "generation_similarity": "no sentence encoder has compared the answers (evaluation.encoder)",
    "nli_generation_first": "no entailment classifier has read the answers (evaluation.nli)",
    "nli_reference_first": "no entailment classifier has read the answers (evaluation.nli)",
    "clean_probability": "no gibberish classifier is named (evaluation.gibberish)",
    "generation_base_nll": "no base model has read the answers (evaluation.fluency)",
    "answer_gradnorm": "gradient norms are a pass of their own (evaluation.passes)",
    "answer_lower_nll": "lower-cased texts are a pass of their own (evaluation.passes)",
}

_NO_MODEL = {
    "retain": "no retain model to compare with. Evaluate a model trained without the forget set "
    "and name its run as retain_run",
    "initial": "the model that unlearning started from was not evaluated",
    "base": "no base model was evaluated",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The tables of one model and of those it is compared with.

    Attributes:
        tables: Of the model itself, by probe.
        retains: Of every retain model (one per seed); the first one where only one can be used.
        initial: Of the model that unlearning started from.
        base: Of the model that fine-tuning started from.
        absent: Why columns could not be made, by column, such as "the encoder is not available".
    """

    tables: Tables
    retains: Sequence[Tables] = ()
    initial: Tables | None = None
    base: Tables | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def of(self, role: str) -> Tables | None:
        """The tables of a role: "retain", "initial" or "base"."""
        if role == "retain":
            return self.retains[0] if self.retains else None
        found: Tables | None = getattr(self, role)
        return found

    def table(self, probe: str) -> ProbeTable | str:
        """The table of a probe, or why there is none."""
        return self.tables.get(probe) or f"the {probe} probe was not run"

    def columns(
        self, probe: str, reads: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, Any] | str:
        """The columns of a probe that a metric reads, or why they cannot be had.

        Args:
            probe: Name of the probe.
            reads: Names of columns; "retain:answer_logps" is that of another model on the same
                rows.
            optional: Those of `reads` that may be missing.
        """
        table = self.table(probe)
        if isinstance(table, str):
            return table
        found: dict[str, Any] = {}
        for name in reads:
            column = self._column(table, name)
            if not isinstance(column, str):
                found[name] = column
            elif name not in optional:
                return column
        return found

    def _column(self, table: ProbeTable, name: str) -> Any:
        role, _, column = name.rpartition(":")
        if not role:
            return table[column] if column in table else self._lacks(table.probe, column)
        others = self.of(role)
        if others is None:
            return _NO_MODEL[role]
        other = others.get(table.probe)
        if other is None:
            return f"of the {role} model: the {table.probe} probe was not run"
        difference = not_comparable(table, other, role)
        if difference is not None:
            return difference
        if column not in other:
            return f"of the {role} model: {self._lacks(table.probe, column)}"
        return other[column]

    def _lacks(self, probe: str, column: str) -> str:
        if column in self.absent:
            return self.absent[column]
        why = _LACKS.get(column, f"its table has no column {column}")
        return f"not measurable on {probe}: {why}"


def not_comparable(table: ProbeTable, other: ProbeTable, role: str = "retain") -> str | None:
    """Why the samples of two models on a probe cannot be compared, or None if they can.

    Args:
        table: Of the evaluated model.
        other: Of the model it is compared with.
        role: What the other model is, for the message.
    """
    if not _same_rows(table, other):
        return (
            f"the {role} model was evaluated on other {table.probe} rows "
            f"({len(other)} of them, here {len(table)}); evaluate it on the same ones"
        )
    for name, what in (("template", "another template"), ("settings", "other settings")):
        ours, theirs = (_scoring_part(item.info.get(name)) for item in (table, other))
        if ours is not None and theirs is not None and ours != theirs:
            return f"the {role} model was evaluated with {what}: {theirs}, here {ours}"
    return None


def _scoring_part(value: Any) -> Any:
    """What of a template or of settings moves scored answers: not the generation limits."""
    if not isinstance(value, Mapping):
        return value
    generating = ("max_new_tokens", "max_total_tokens")
    return {key: item for key, item in value.items() if key not in generating}


def _same_rows(table: ProbeTable, other: ProbeTable) -> bool:
    if any(item.info.get("imported") for item in (table, other)):
        # Foreign files have no texts: rows are matched by position.
        return len(table) == len(other)
    ours, theirs = (item.info.get("data") for item in (table, other))
    if ours is not None and theirs is not None:
        return bool(ours["fingerprint"] == theirs["fingerprint"])
    rows: Sequence[list[tuple[Any, Any]]] = [
        list(zip(item["question"], item["answer"], strict=True)) for item in (table, other)
    ]
    return rows[0] == rows[1]
