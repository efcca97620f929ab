"""Whether stored tables are what a preset asks for: rows, lengths, form of the probes.

Scoring another preset changes options of metrics and what is left out, but no table: the answers
are those of the rows and lengths that the models were evaluated with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from expunge.benchmarks import Benchmark
from expunge.evaluation import ProbeTable
from expunge.run.config import RunConfig
from expunge.run.evaluating import Notes, Tables, run_benchmark
from expunge.run.folder import RunFolder
from expunge.run.resolve import resolve
from expunge.run.sections import EvaluationConfig

# The settings that concern generated answers only.
_OF_ANSWERS = ("max_new_tokens", "max_total_tokens")


def preset_notes(folder: RunFolder, after: RunConfig, *, explicit: bool) -> Notes:
    """What `score_run` asks of the tables in a run folder, see `preset_mismatches`.

    Args:
        folder: The run folder; its config.yaml says how the tables were made.
        after: The configuration they are scored with.
        explicit: The preset is named for this scoring.
    """
    stored = resolve(folder.path / "config.yaml").config
    section = stored.evaluation or EvaluationConfig()
    before = stored.model_copy(update={"evaluation": section})

    def notes(tables: Mapping[str, Tables], retains: Sequence[Tables]) -> list[str]:
        elsewhere = after.evaluation is not None and after.evaluation.retain_run
        further = {f"retain {i}": each for i, each in enumerate(retains, 1)} if elsewhere else {}
        return preset_mismatches({**tables, **further}, before, after, explicit=explicit)

    return notes


def preset_mismatches(
    tables: Mapping[str, Tables], before: RunConfig, after: RunConfig, *, explicit: bool
) -> list[str]:
    """Where stored tables differ from what a preset asks for, a sentence each; empty if nowhere.

    Args:
        tables: Stored tables by the name of the model, then by probe.
        before: The configuration they were made with.
        after: The configuration they are scored with.
        explicit: The preset is named for this scoring. Then limits that `before` sets itself are
            no excuse: the preset's own numbers were asked for.
    """
    old, new = before.evaluation or EvaluationConfig(), after.evaluation or EvaluationConfig()
    explicit = explicit or old.preset != new.preset
    benchmark = run_benchmark(after)
    name = new.preset or benchmark.name
    limits, wanted = _limits(before, old), _wanted_rows(benchmark, old, new, explicit)
    settings = _wanted_settings(benchmark, old, new, explicit)
    found: dict[str, list[str]] = {}
    for model, by_probe in tables.items():
        for text in (*_rows(by_probe, limits, wanted), *_lengths(by_probe, settings)):
            found.setdefault(text, []).append(model)
    forms = _forms(run_benchmark(before), old, benchmark, new)
    said = [f"{text} ({', '.join(models)})" for text, models in found.items()] + list(forms)
    return [
        f"preset {name}: {text}. Scores are of what is stored; for the preset's own numbers "
        "evaluate the models again"
        for text in said
    ]


def _limits(config: RunConfig, section: EvaluationConfig) -> Mapping[str, int | None]:
    """First rows of each probe that the tables were made of."""
    return {**run_benchmark(config).preset(section.preset).rows, **section.rows}


def _wanted_rows(
    benchmark: Benchmark, old: EvaluationConfig, new: EvaluationConfig, explicit: bool
) -> Mapping[str, int | None]:
    """First rows of each probe by the preset, and by what the user says for this scoring."""
    own = {
        name: limit
        for name, limit in new.rows.items()
        if not explicit or (name, limit) not in old.rows.items()
    }
    return {**benchmark.preset(new.preset).rows, **own}


def _rows(
    tables: Tables, limits: Mapping[str, int | None], wanted: Mapping[str, int | None]
) -> Iterator[str]:
    for probe, table in tables.items():
        n, limit, most = len(table), limits.get(probe), wanted.get(probe)
        # With fewer rows than its limit a set was read whole, and that is all there is.
        was_cut = limit is not None and n >= limit
        if was_cut if most is None else n > most or (n < most and was_cut):
            asked = "all rows" if most is None else f"the first {most} rows"
            yield f"it has {asked} of {probe}, stored are {n}"


def _wanted_settings(
    benchmark: Benchmark, old: EvaluationConfig, new: EvaluationConfig, explicit: bool
) -> Mapping[str, Any]:
    """The settings that decide a table, by the preset and by what the user says."""
    most = new.max_new_tokens
    is_own = most is not None and not (explicit and most == old.max_new_tokens)
    return benchmark.settings(new.preset, **({"max_new_tokens": most} if is_own else {})).decisive()


def _lengths(tables: Tables, wanted: Mapping[str, Any]) -> Iterator[str]:
    for name, asked in wanted.items():
        values: dict[Any, list[str]] = {}
        for probe, table in tables.items():
            settings = table.info.get("settings")
            # A file of another project does not say how its answers were made.
            if isinstance(settings, Mapping) and name in settings and _depends(table, name):
                values.setdefault(settings[name], []).append(probe)
        for value, probes in values.items():
            if value != asked:
                where = ", ".join(probes)
                yield f"it has {name} {_said(asked)}, stored with {_said(value)} are {where}"


def _depends(table: ProbeTable, name: str) -> bool:
    return name not in _OF_ANSWERS or "generation" in table


def _forms(
    before: Benchmark, old: EvaluationConfig, benchmark: Benchmark, new: EvaluationConfig
) -> Iterator[str]:
    """Options of the benchmark itself, which its probes were built with."""
    stored = {**before.preset(old.preset).options, **old.options}
    asked = {**benchmark.preset(new.preset).options, **new.options}
    for name in benchmark.options:
        if stored.get(name) != asked.get(name):
            yield (
                f"it has {name} {_said(asked.get(name))}, the stored probes were made with "
                f"{_said(stored.get(name))}"
            )


def _said(value: Any) -> str:
    return "not set" if value is None else str(value)
