"""Stored tables: those of one model in a folder, and a pool of all tables ever made.

A folder holds a parquet file per probe and a manifest. A table is found again by its key, the
fingerprint of everything that decides its content. Rows of a probe that is not complete lie in a
journal beside it, so a killed evaluation goes on where it was.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.core.errors import InputError, Problem
from expunge.core.files import (
    append_jsonl,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    jsonable,
    read_jsonl,
)
from expunge.evaluation.given import GIVEN
from expunge.evaluation.tables import ProbeTable

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class EvaluationStore:
    """The evaluation folder of one model.

    Args:
        folder: Where the files are; made on the first write.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"EvaluationStore({str(self.folder)!r})"

    def find(self, probe: str, key: str) -> ProbeTable | None:
        """The complete table of a probe if it is stored under this key, else None."""
        entry = self._entries().get(probe)
        if entry is None or entry.get("key") != key:
            return None
        try:
            return self._read(probe, entry)
        except (InputError, OSError):
            return None  # deleted or damaged: it will be computed again

    def load(self) -> dict[str, ProbeTable]:
        """All complete tables by probe.

        Raises:
            InputError: There are none, or a file is missing or damaged.
        """
        entries = self._entries()
        if not entries:
            raise InputError(
                Problem(
                    where=str(self.folder),
                    message="holds no stored evaluation; make one with: expunge evaluate MODEL",
                )
            )
        return {probe: self._read(probe, entry) for probe, entry in entries.items()}

    def save(self, table: ProbeTable) -> None:
        """Store a complete table and forget its journal."""
        name = f"{table.probe}.parquet"
        atomic_write_bytes(self.folder / name, _to_parquet(table))
        entry = {**table.info, "file": name, "rows": len(table), "columns": list(table.columns)}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "probes": {**self._entries(), table.probe: entry},
        }
        atomic_write_json(self.folder / MANIFEST, manifest)
        for journal in self.folder.glob(f".{table.probe}-*.partial.jsonl"):
            journal.unlink(missing_ok=True)

    def annotate(
        self, probe: str, columns: Mapping[str, Any], origins: Mapping[str, Any]
    ) -> ProbeTable:
        """Add columns that another model or another pass gave to a stored table.

        Args:
            probe: Name of the probe; its table must be stored.
            columns: New columns, see `ANNOTATIONS`; one that is there already is replaced.
            origins: Where each comes from, by column: name and fingerprint of the model that
                judged.

        Returns:
            The table with them.
        """
        table = self._read(probe, self._entries()[probe])
        known = dict(table.info.get("annotations", {}))
        completed = ProbeTable(
            probe=probe,
            columns={**table.columns, **columns},
            info={**table.info, "annotations": {**known, **origins}},
        )
        self.save(completed)
        return completed

    def resume(self, probe: str, key: str) -> list[dict[str, Any]]:
        """Records that an interrupted run left under this key, without a torn last one."""
        journal = self._journal(probe, key)
        if not journal.exists():
            return []
        records = read_jsonl(journal)
        lines = [json.dumps(jsonable(record), ensure_ascii=False) + "\n" for record in records]
        atomic_write_text(journal, "".join(lines))  # so that the next line starts a new one
        return records

    def append(self, probe: str, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Note finished rows of a probe that is not complete yet."""
        for record in records:
            append_jsonl(self._journal(probe, key), record)

    def _journal(self, probe: str, key: str) -> Path:
        return self.folder / f".{probe}-{key}.partial.jsonl"

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
            return {}
        return dict(manifest.get("probes", {}))

    def _read(self, probe: str, entry: Mapping[str, Any]) -> ProbeTable:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / str(entry["file"])
        try:
            table = pq.ParquetFile(path).read()
        except (OSError, pa.ArrowException) as error:
            raise InputError(Problem(where=str(path), message=f"cannot be read: {error}")) from None
        columns = {name: table[name].to_pylist() for name in table.column_names}
        return ProbeTable(probe=probe, columns=columns, info=dict(entry))


class TablePool:
    """Tables of any models and probes, found by key alone.

    A probe's name is no part of its key: the rows of a task that were the forget set of one
    evaluation are "task_01" in the next.

    Args:
        folder: Where the files are; made on the first write.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"TablePool({str(self.folder)!r})"

    def find(self, probe: str, key: str) -> ProbeTable | None:
        """The complete table stored under a key, under the name of the probe; else None."""
        found = self._store(key).find(_POOLED, key)
        return None if found is None else replace(found, probe=probe)

    def save(self, table: ProbeTable) -> None:
        """Store a complete table under the key in its info and forget its journal."""
        self._store(str(table.info["key"])).save(replace(table, probe=_POOLED))

    def resume(self, probe: str, key: str) -> list[dict[str, Any]]:
        """Records that an interrupted run left under this key."""
        return self._store(key).resume(_POOLED, key)

    def append(self, probe: str, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Note finished rows of a probe that is not complete yet."""
        self._store(key).append(_POOLED, key, records)

    def _store(self, key: str) -> EvaluationStore:
        return EvaluationStore(self.folder / key)


class Beside:
    """A model's own folder with a pool behind it: what either has is not computed again.

    Args:
        own: The folder of the model; gets a copy of every table.
        pool: Where tables of any model are.
    """

    def __init__(self, own: EvaluationStore, pool: TablePool) -> None:
        self.own, self.pool = own, pool

    def find(self, probe: str, key: str) -> ProbeTable | None:
        """The complete table of either; one from the pool is copied."""
        found = self.own.find(probe, key)
        if found is None and (found := self.pool.find(probe, key)) is not None:
            self.own.save(found)
        return found

    def save(self, table: ProbeTable) -> None:
        """Store a complete table in both."""
        self.pool.save(table)
        self.own.save(table)

    def resume(self, probe: str, key: str) -> list[dict[str, Any]]:
        """Records of the pool's journal."""
        return self.pool.resume(probe, key)

    def append(self, probe: str, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Note finished rows in the pool's journal."""
        self.pool.append(probe, key, records)


_POOLED = "rows"


def _to_parquet(table: ProbeTable) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    floats, integers = pa.list_(pa.float32()), pa.list_(pa.int32())
    types = {
        "index": pa.int32(),
        "prompt_tokens": pa.int32(),
        "answer_logps": floats,
        "answer_greedy": pa.list_(pa.bool_()),
        "answer_logp_mean": floats,
        "answer_logp_var": floats,
        "paraphrase_logps": floats,
        "perturbed_logps": pa.list_(floats),
        "generation_ids": integers,
        "generation_tokens": pa.int32(),
        "finished": pa.bool_(),
        "generation_similarity": pa.float64(),
        "clean_probability": pa.float64(),
        "generation_base_nll": pa.float64(),
        "answer_gradnorm": pa.float64(),
        "answer_lower_nll": pa.float64(),
    }
    types |= {name: pa.float64() for name in table.columns if name.startswith(GIVEN)}
    arrays = {
        name: pa.array(list(column), type=types.get(name, pa.string()))
        for name, column in table.columns.items()
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, compression="zstd")
    return buffer.getvalue()


def finite(values: Iterable[float | None]) -> list[float]:
    """Log-probabilities with what is no number made nan: a journal keeps those as null."""
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]
