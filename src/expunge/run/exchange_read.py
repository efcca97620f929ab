"""Evaluation files of other projects as per-sample tables and plain values.

Three layouts are known: open-unlearning's `*_EVAL.json` (per metric an `agg_value` and a
`value_by_index`), its `*_SUMMARY.json` (per metric a number), and TOFU's
`eval_log_aggregated.json` (per set of questions the columns of its log). A file is data: nothing in
it is run, and texts in it are kept as texts.

A file has the mean loss A of an answer where our tables have one log-probability per token. It
becomes an answer of one token with log-probability -A, which has the same mean. Metrics that look
at single tokens would be wrong on it, so a table says in `info["imported"]` which metrics it is
good for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from expunge.core.errors import InputError, Problem
from expunge.core.fingerprint import fingerprint, fingerprint_file
from expunge.evaluation.given import GIVEN
from expunge.evaluation.tables import ProbeTable
from expunge.metrics import metrics
from expunge.metrics.published import TOFU_SETS, log_columns
from expunge.run.exchange_names import (
    AMONG_OPTIONS,
    GIVEN_OPTIONS,
    KNOWN,
    OVERLAPS,
    TEXTS,
    Family,
    Known,
    family_of,
)

Layout = Literal["open-unlearning evaluation", "open-unlearning summary", "TOFU log"]
Cells = dict[int, Any]
"""Values of one column by the index of the row."""

KNOWN_LAYOUTS: Final = (
    "open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json (metric -> agg_value, value_by_index), its "
    "..._SUMMARY.json (metric -> number), or TOFU's eval_log_aggregated.json (eval_log.json, "
    "eval_log_forget.json, ... -> columns)"
)
_LOG_PROBES: Final = {
    "Real Authors": "real_authors",
    "Real World": "world_facts",
    "Retain": "retain",
    "Forget": "forget",
}
_LOG_LOSSES: Final = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss")
_LOG_OVERLAPS: Final = {"rouge1_recall": "rouge1_recall", "rouge_l_recall": "rougeL_recall"}
# What else TOFU logs hold: made from the columns above, or counts of tokens.
_LOG_OTHERS: Final = (
    "index",
    "gt_loss",
    "num_token_gt",
    "perturb_loss",
    "num_token_perturb",
    "paraphrased_loss",
    "num_token_paraphrased",
    "truth_ratio",
    "normalized_gt_loss",
    "normalized_gt_prob",
    "generated_text",
)
# The mean over tokens is all that these look at.
_FROM_MEAN: Final = (
    "probability",
    "loss_score",
    "loss_gap",
    "absolute_loss_gap",
    "reference_score",
)
# Made here from the texts of a file, by a model that reads both.
_FROM_TEXTS: Final = (
    "generation_similarity",
    "nli_generation_first",
    "nli_reference_first",
    "clean_probability",
    "generation_base_nll",
)
_AS_ONE_TOKEN: Final = "one token with the mean loss of the whole answer"
_AS_RATIO: Final = "the file's truth ratio, with the probability of the right answer put at 1"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was found in a file.

    Attributes:
        source: Name of the file.
        fingerprint: Of its bytes.
        layout: Which of the known layouts it has.
        family: Whose questions were asked.
        tables: Per-sample tables by probe; empty for a summary.
        values: Aggregates by open-unlearning's name, as they stand in the file.
        unknown: Metrics in it that have no counterpart here.
        notes: What else a reader should know, in sentences.
    """

    source: str
    fingerprint: str
    layout: Layout
    family: Family
    tables: Mapping[str, ProbeTable]
    values: Mapping[str, float]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """File, layout and fingerprint in one phrase."""
        return f"{self.source} ({self.layout}, fingerprint {self.fingerprint})"


@dataclass(kw_only=True)
class _Found:
    """What is gathered while a file is read."""

    columns: dict[str, dict[str, Cells]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, probe: str, column: str, cells: Cells) -> None:
        """A column, unless it is empty or an earlier metric gave it."""
        if any(value is not None for value in cells.values()):
            self.columns.setdefault(probe, {}).setdefault(column, cells)


def read_evaluation(path: Path | str) -> Imported:
    """Read an evaluation file of another project.

    Args:
        path: The file; see the module for the layouts.

    Raises:
        InputError: There is no such file, it is no JSON, or its layout is not known.
    """
    path = Path(path)
    content = _json(path)
    found = _Found()
    layout: Layout
    family = family_of(content) if isinstance(content, dict) else "tofu"
    logs = content.get("logs", content) if isinstance(content, dict) else content
    if path.name in TOFU_SETS and isinstance(logs, dict) and "avg_gt_loss" in logs:
        logs = {path.name: logs}  # the log of one set, as TOFU writes it beside the collected one
    if isinstance(logs, dict) and any(_is_log(name, log) for name, log in logs.items()):
        layout = "TOFU log"
        _read_logs(logs, found)
    elif isinstance(content, dict) and any(map(_is_entry, content.values())):
        layout = "open-unlearning evaluation"
        _read_metrics(content, family, found)
    elif isinstance(content, dict) and content and all(map(_is_value, content.values())):
        layout = "open-unlearning summary"
        _read_summary(content, family, found)
    else:
        message = f"holds {_shape(content)}; known are {KNOWN_LAYOUTS}"
        raise InputError(Problem(where=str(path), message=message))
    if not found.columns and not found.values:
        message = (
            f"is an {layout} without a metric that is known or has a value. It has "
            f"{_listed(content)}; known are {', '.join(KNOWN[family])}"
        )
        raise InputError(Problem(where=str(path), message=message))
    key = fingerprint_file(path)
    tables = {
        probe: _table(probe, columns, source=path.name, file_key=key, layout=layout)
        for probe, columns in found.columns.items()
    }
    return Imported(
        source=path.name,
        fingerprint=key,
        layout=layout,
        family=family,
        tables=tables,
        values=found.values,
        unknown=tuple(found.unknown),
        notes=tuple(found.notes),
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        message = "there is no such file"
    except IsADirectoryError:
        message = "is a folder; give the JSON file itself"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        message = "is not UTF-8 text, so no JSON"
    except RecursionError:
        message = "is nested too deeply"
    except ValueError as error:
        message = f"is no JSON: {error}"
    raise InputError(Problem(where=str(path), message=message))


def _shape(content: Any) -> str:
    """What a JSON value is, for a message."""
    if isinstance(content, dict):
        return f"an object with {_listed(content)}" if content else "an empty object"
    if isinstance(content, list):
        return f"a list of {len(content)}"
    return f"only {json.dumps(content)[:60]}"


def _listed(content: Mapping[str, Any], most: int = 8) -> str:
    names = [f"{name[:60]!r}" for name in list(content)[:most]]
    more = f" and {len(content) - most} more" if len(content) > most else ""
    return f"the keys {', '.join(names)}{more}"


def _is_log(name: str, log: Any) -> bool:
    return name in TOFU_SETS and isinstance(log, dict)


def _is_entry(value: Any) -> bool:
    keys = ("agg_value", "value_by_index")
    return isinstance(value, dict) and any(key in value for key in keys)


def _is_value(value: Any) -> bool:
    return value is None or _number(value) is not None


# open-unlearning --------------------------------------------------------------------------------


def _read_summary(content: Mapping[str, Any], family: Family, found: _Found) -> None:
    for name, value in content.items():
        if name in KNOWN[family]:
            _keep_value(name, value, found)
        else:
            found.unknown.append(name)


def _read_metrics(content: Mapping[str, Any], family: Family, found: _Found) -> None:
    # In the order of the table of names, so that it does not depend on the file which of two
    # metrics gives a column that both have.
    usable = {name for name in KNOWN[family] if _is_entry(content.get(name))}
    found.unknown.extend(name for name in content if name not in usable)
    for name, known in KNOWN[family].items():
        if name in usable:
            _keep_value(name, content[name].get("agg_value"), found)
            _read_samples(known, content[name], found)


def _keep_value(name: str, value: Any, found: _Found) -> None:
    number = _number(value)
    if number is not None and math.isfinite(number):
        found.values[name] = number


def _read_samples(known: Known, entry: Mapping[str, Any], found: _Found) -> None:
    samples = entry.get("value_by_index")
    if known.kind == "attack":
        for side, probe in (("forget", known.probe), ("holdout", known.against)):
            part = entry.get(side)
            if isinstance(part, dict):
                cells = _cells(part.get("value_by_index"), _picked("score"), known, found)
                found.add(probe, GIVEN + known.metric, cells)
    elif known.kind == "losses":
        cells = _cells(samples, _logps_of(known.column), known, found)
        found.add(known.probe, known.column, cells)
    elif known.kind == "rouge":
        for metric, name in OVERLAPS.items():
            # Only the value that the metric is made of has to be there.
            wanted = known if name == known.field else None
            found.add(known.probe, GIVEN + metric, _cells(samples, _picked(name), wanted, found))
        for column, name in TEXTS.items():
            found.add(known.probe, column, _cells(samples, _text(name), None, found))
    elif known.kind == "value":
        cells = _cells(samples, _picked(known.field), known, found)
        found.add(known.probe, GIVEN + known.metric, cells)
    elif known.kind == "ratio":
        found.add(known.probe, _RATIO, _cells(samples, _picked(known.field), known, found))


_RATIO: Final = "truth_ratio"  # while a file is read; a table has log-probabilities instead


def _cells(samples: Any, read: Callable[[Any], Any], known: Known | None, found: _Found) -> Cells:
    """Values by row; what is no value is None, and counted in a note where `known` is given."""
    rows = dict(_by_index(samples))
    cells = {index: read(entry) for index, entry in rows.items()}
    missing = sum(value is None for value in cells.values())
    if known is not None and missing:
        found.notes.append(f"{known.name}: {missing} of {len(cells)} samples have no value.")
    return cells


def _by_index(samples: Any) -> Iterator[tuple[int, Any]]:
    """Entries by the index of their row, by position where the keys are no numbers."""
    if isinstance(samples, list):
        yield from enumerate(samples)
    elif isinstance(samples, dict):
        # Longer ones are no row numbers, and no 32-bit integers either.
        are_numbers = all(key.isascii() and key.isdigit() and len(key) < 10 for key in samples)
        for position, (key, entry) in enumerate(samples.items()):
            yield int(key) if are_numbers else position, entry


def _picked(name: str) -> Callable[[Any], float | None]:
    def read(entry: Any) -> float | None:
        value = entry.get(name) if isinstance(entry, dict) else entry
        number = _number(value)
        return None if number is None or math.isnan(number) else number

    return read


def _text(name: str) -> Callable[[Any], str | None]:
    def read(entry: Any) -> str | None:
        value = entry.get(name) if isinstance(entry, dict) else None
        return value if isinstance(value, str) else None

    return read


def _logps_of(column: str) -> Callable[[Any], list[Any] | None]:
    """Reader of log-probabilities for a column: of one answer, or of each of several."""

    def one(loss: Any, prob: Any) -> list[float] | None:
        loss, prob = _number(loss), _number(prob)
        if loss is None and prob is not None and 0 <= prob <= 1:
            loss = -math.log(prob) if prob else math.inf
        return None if loss is None or math.isnan(loss) else [-loss]

    def read(entry: Any) -> list[Any] | None:
        if not isinstance(entry, dict):
            return None
        losses, probs = entry.get("avg_loss"), entry.get("prob")
        if column != "perturbed_logps":
            return one(losses, probs)
        losses, probs = (value if isinstance(value, list) else [value] for value in (losses, probs))
        count = max(len(losses), len(probs))
        losses, probs = ([*value, *[None] * (count - len(value))] for value in (losses, probs))
        every = [one(*pair) for pair in zip(losses, probs, strict=True)]
        return every if all(item is not None for item in every) else None

    return read


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None


# TOFU -------------------------------------------------------------------------------------------


def _read_logs(logs: Mapping[str, Any], found: _Found) -> None:
    for name, log in logs.items():
        if not _is_log(name, log):
            found.unknown.append(name)
            continue
        probe = _LOG_PROBES[TOFU_SETS[name]]
        known = {*_LOG_LOSSES, *_LOG_OVERLAPS.values(), *_LOG_OTHERS}
        found.unknown.extend(f"{name}: {key}" for key in log if key not in known)
        _read_log(name, log, probe, found)


def _read_log(name: str, log: Mapping[str, Any], probe: str, found: _Found) -> None:
    indices = log.get("index")
    by_row = {key: dict(_log_rows(log[key], indices)) for key in log if key != "index"}
    if all(key in by_row for key in _LOG_LOSSES):
        losses = {key: by_row[key] for key in _LOG_LOSSES}
        rows = [row for row in losses["avg_gt_loss"] if _complete(losses, row)]
        everything = {row for cells in losses.values() for row in cells}
        if len(rows) < len(everything):
            missing = len(everything) - len(rows)
            found.notes.append(f"{name}: {missing} of {len(everything)} rows lack a loss.")
        complete = {key: [cells[row] for row in rows] for key, cells in losses.items()}
        columns = ("answer_logps", "paraphrase_logps", "perturbed_logps")
        for column, values in zip(columns, log_columns(complete), strict=True):
            found.add(probe, column, dict(zip(rows, values, strict=True)))
    else:
        missing_keys = [key for key in _LOG_LOSSES if key not in by_row]
        found.notes.append(
            f"{name} has no {', '.join(missing_keys)}, so no likelihoods were taken."
        )
    for metric, key in _LOG_OVERLAPS.items():
        read = _picked(key)
        numbers = {row: read(value) for row, value in by_row.get(key, {}).items()}
        found.add(probe, GIVEN + metric, numbers)
    texts = by_row.get("generated_text", {})
    for position, column in enumerate(("question", "generation", "answer")):
        words = {row: _text_at(value, position) for row, value in texts.items()}
        found.add(probe, column, words)


def _log_rows(column: Any, indices: Any) -> Iterator[tuple[int, Any]]:
    """Values of a log's column by row: from a mapping, or a list with the rows beside it."""
    rows = list(_by_index(column))
    if isinstance(column, list) and isinstance(indices, list):
        numbers = [item for item in indices if isinstance(item, int) and 0 <= item < 2**31]
        if len(numbers) == len(rows) == len(set(numbers)):
            rows = [(row, value) for row, (_, value) in zip(numbers, rows, strict=True)]
    yield from rows


def _complete(losses: Mapping[str, Cells], row: int) -> bool:
    plain = [losses[key].get(row) for key in _LOG_LOSSES[:2]]
    wrong = losses[_LOG_LOSSES[2]].get(row)
    several = wrong if isinstance(wrong, list) and wrong else [None]
    return all(_number(value) is not None for value in [*plain, *several])


def _text_at(value: Any, position: int) -> str | None:
    if isinstance(value, list) and len(value) == 3 and isinstance(value[position], str):
        return str(value[position])
    return None


# Tables -----------------------------------------------------------------------------------------


def _table(
    probe: str, columns: dict[str, Cells], *, source: str, file_key: str, layout: Layout
) -> ProbeTable:
    """The table of a probe; a row that one column has and another lacks is None there."""
    indices = sorted({index for cells in columns.values() for index in cells})
    made_from = dict.fromkeys((name for name in columns if name.endswith("_logps")), _AS_ONE_TOKEN)
    ratios = columns.pop(_RATIO, None)
    if ratios is not None and not _has_ratio(probe, columns):
        # A truth ratio needs the answer only where there is no paraphrase.
        columns.setdefault("answer_logps", {})
        columns["paraphrase_logps"] = {
            i: None if ratio is None else [0.0] for i, ratio in ratios.items()
        }
        columns["perturbed_logps"] = {i: _log_ratio(ratio) for i, ratio in ratios.items()}
        made_from |= dict.fromkeys(("paraphrase_logps", "perturbed_logps"), _AS_RATIO)
    texts = [name for name in TEXTS if name in columns]
    filled: dict[str, Sequence[Any]] = {"index": indices}
    for name in dict.fromkeys(("question", "answer", *columns)):
        cells = columns.get(name, {})
        # A reader of tables expects these two to be texts in every row.
        empty = "" if name in ("question", "answer") else None
        filled[name] = [empty if (value := cells.get(i)) is None else value for i in indices]
    info = {
        "key": fingerprint([file_key, probe]),
        "imported": {
            "source": source,
            "fingerprint": file_key,
            "layout": layout,
            "rows": "matched by position" + ("" if "answer" in texts else ": no texts in the file"),
            "texts": texts,
            "columns": made_from,
            "metrics": _usable(columns, made_from, texts, has_ratio=_has_ratio(probe, columns)),
            "given": {
                name.removeprefix(GIVEN): dict(GIVEN_OPTIONS.get(name.removeprefix(GIVEN), {}))
                for name in columns
                if name.startswith(GIVEN)
            },
        },
    }
    return ProbeTable(probe=probe, columns=filled, info=info)


def _has_ratio(probe: str, columns: Mapping[str, Cells]) -> bool:
    """Whether truth ratios follow from the losses: the right answer is the paraphrase on authors.

    Real authors and world facts have none, and the answer itself takes its place.
    """
    right = "paraphrase_logps" in columns or (probe in AMONG_OPTIONS and "answer_logps" in columns)
    return right and "perturbed_logps" in columns


def _log_ratio(ratio: float | None) -> list[list[float]] | None:
    if ratio is None or ratio < 0:
        return None
    return [[math.log(ratio) if ratio else -math.inf]]


def _usable(
    columns: Mapping[str, Cells],
    made_from: Mapping[str, str],
    texts: Iterable[str],
    *,
    has_ratio: bool,
) -> list[str]:
    """Metrics that may be computed from a table's columns: these give what the model would give.

    Not those that need single tokens, or texts that the file does not have.
    """
    usable: set[str] = set()
    if columns.get("answer_logps"):
        usable |= {*_FROM_MEAN}
        if made_from.get("perturbed_logps") == _AS_ONE_TOKEN:
            usable.add("normalized_probability")
    complete = {*texts}
    if {"answer", "generation"} <= complete:
        complete |= {*_FROM_TEXTS}
    for metric in metrics:
        plain = {name.rpartition(":")[2] for name in metric.reads if name not in metric.optional}
        if plain <= complete or (has_ratio and metric.name.startswith("truth_ratio")):
            usable.add(metric.name)
    return sorted(usable)
