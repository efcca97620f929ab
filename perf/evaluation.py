"""Compare Expunge's TOFU evaluation with the textbook one on the same rows, in turn, in one run.

    python perf/evaluation.py --vs naive --precision both
    python perf/evaluation.py --vs naive --rows 4 --model FOLDER --repeats 3

Forget01, the first rows of the retain set, real authors and world facts, and as many unseen rows
for the attacks; all metrics but GradNorm. Per-sample values have to agree in float32 before a ratio
counts. The machine should have nothing else to do. The result is written to perf/results/.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import (
    GIB,
    MODEL,
    machine_facts,
    peak_bytes,
    reset_peak,
    resident_bytes,
    save_result,
    spread,
    template_of,
)
from naive_evaluation import BATCH_SIZE, NaiveEvaluation

if TYPE_CHECKING:
    from expunge.data import Template
    from expunge.evaluation import Probe, ProbeTable

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")
HOLDOUT = "tofu:full[3800:3900]"
"""Rows like the forget set's; the attacks need some, and time does not depend on which."""

TOLERANCE = 1e-4
"""Most that a value may differ by, relative to one plus its size."""
LOOSE = {"min_k_plus_plus_score": 1e-2}
"""The textbook's variance is a difference of two large numbers where the model is sure."""


@dataclass(kw_only=True)
class Side:
    """One evaluation by one side.

    Attributes:
        seconds: Time of every stage.
        peak_gib: Most memory above what was held before.
        values: Values per row by probe and metric.
        texts: Generated answers by probe.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_gib: float = 0.0
    values: dict[str, list[float]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of the whole evaluation."""
        return sum(self.seconds.values())

    def of(self, word: str) -> float:
        """Seconds of the stages whose name has a word in it."""
        return sum(seconds for stage, seconds in self.seconds.items() if word in stage)


def run_naive(model: Any, template: Template, probes: Sequence[Probe], new_tokens: int) -> Side:
    """The textbook evaluation."""
    side = Side()
    naive = NaiveEvaluation(model, template, probes, max_new_tokens=new_tokens)
    with _memory(side):
        for stage, work in naive.stages():
            started = time.perf_counter()
            found = work()
            side.seconds[stage] = time.perf_counter() - started
            for _, probe, metric, values in found:
                kind = side.texts if metric == "generation" else side.values
                kind[probe if metric == "generation" else f"{probe}/{metric}"] = list(values)  # type: ignore[assignment]
    return side


def run_ours(
    model: Any,
    template: Template,
    probes: Sequence[Probe],
    new_tokens: int,
    batch_tokens: int | None = None,
) -> Side:
    """Tables of all probes, then all scores from them."""
    from expunge.benchmarks import benchmarks
    from expunge.evaluation import EvaluationSettings, run_probes

    side = Side()
    marks: dict[str, float] = {}

    def progress(done: int, total: int, label: str) -> None:
        marks.setdefault(label, time.perf_counter())

    options = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    settings = EvaluationSettings(max_new_tokens=new_tokens, **options)  # type: ignore[arg-type]
    with _memory(side):
        started = time.perf_counter()
        tables = run_probes(
            model,
            template.tokenizer,
            template,
            probes,
            settings,
            model_id="measured",
            on_progress=progress,
        )
        ran = time.perf_counter()
        benchmarks.get("tofu").score_tables(tables, preset="tofu_ou")
        ended = time.perf_counter()
    order = [started, *sorted(marks.values()), ran, ended]
    names = ["tokenising", *sorted(marks, key=marks.__getitem__), "metrics"]
    side.seconds = {
        name: stop - start for name, start, stop in zip(names, order, order[1:], strict=False)
    }
    side.values, side.texts = _sample_values(tables)
    return side


def _sample_values(
    tables: Mapping[str, ProbeTable],
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    from expunge.metrics import likelihood, memorization, overlap, privacy

    values: dict[str, Any] = {}
    for name, table in tables.items():
        logps, answers = table["answer_logps"], table["answer"]
        if "generation" in table:
            values[f"{name}/probability"] = likelihood.probability(logps)
            values[f"{name}/rouge_l_recall"] = overlap.rouge_l_recall(answers, table["generation"])
        if "perturbed_logps" in table:
            values[f"{name}/truth_ratio"] = likelihood.truth_ratio(
                logps,
                table.columns.get("paraphrase_logps"),
                table["perturbed_logps"],
                epsilon=1e-10,
            )
        if name in ("forget", "holdout"):
            values[f"{name}/loss_score"] = privacy.loss_score(logps)
            values[f"{name}/zlib_score"] = privacy.zlib_score(logps, answers)
            values[f"{name}/min_k_score"] = privacy.min_k_score(logps)
            values[f"{name}/min_k_plus_plus_score"] = privacy.min_k_plus_plus_score(
                logps, table["answer_logp_mean"], table["answer_logp_var"]
            )
        if name == "forget":
            greedy = table["answer_greedy"]
            values["forget/exact_memorization"] = memorization.exact_memorization(greedy)
            values["forget/extraction_strength"] = memorization.extraction_strength(
                greedy, floor=True
            )
    texts = {name: list(t["generation"]) for name, t in tables.items() if "generation" in t}
    return {key: [float(value) for value in found] for key, found in values.items()}, texts


class _memory:
    """Notes the peak above what is held at the start."""

    def __init__(self, side: Side) -> None:
        self.side = side

    def __enter__(self) -> None:
        reset_peak()
        self.before = resident_bytes()

    def __exit__(self, *_: object) -> None:
        self.side.peak_gib = round((peak_bytes() - self.before) / GIB, 3)


# Agreement ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the values of both sides are apart.

    Attributes:
        largest: Largest difference by probe and metric, relative to one plus the value.
        texts: Share of generated answers that are the same; None without any.
        problems: What is too far apart.
    """

    largest: dict[str, float]
    texts: float | None
    problems: list[str]


def compare(naive: Side, ours: Side) -> Agreement:
    """Compare values per row. ROUGE counts where the texts are the same.

    Two likeliest tokens may be as likely as each other up to rounding, so texts may part; how many
    do is told and not judged.
    """
    largest: dict[str, float] = {}
    problems = []
    for key in sorted(naive.values.keys() | ours.values.keys()):
        if key not in naive.values or key not in ours.values:
            problems.append(f"{key}: one side alone has it")
            continue
        probe, metric = key.split("/")
        first, second = naive.values[key], ours.values[key]
        if len(first) != len(second):
            problems.append(f"{key}: {len(first)} and {len(second)} rows")
            continue
        skipped = metric == "rouge_l_recall"
        pairs = [
            (one, other)
            for row, (one, other) in enumerate(zip(first, second, strict=True))
            if not skipped or naive.texts[probe][row].strip() == ours.texts[probe][row].strip()
        ]
        far = max((_apart(*pair) for pair in pairs), default=0.0)
        largest[key] = far
        if not far <= LOOSE.get(metric, TOLERANCE):
            problems.append(f"{key}: values differ by up to {far:.2g}")
    same = [
        one.strip() == other.strip()
        for probe, texts in naive.texts.items()
        for one, other in zip(texts, ours.texts[probe], strict=True)
    ]
    return Agreement(
        largest=largest, texts=sum(same) / len(same) if same else None, problems=problems
    )


def _apart(one: float, other: float) -> float:
    if math.isnan(one) or math.isnan(other) or math.isinf(one) or math.isinf(other):
        same = one == other or (math.isnan(one) and math.isnan(other))
        return 0.0 if same else math.inf
    return abs(one - other) / (1 + abs(one))


# The measurement ----------------------------------------------------------------------------------


def measure(
    precision: str,
    *,
    model: str,
    rows: int,
    new_tokens: int,
    repeats: int,
    batch_tokens: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Both sides in turn; what was measured."""
    from expunge.models.loading import load_model

    template = template_of(model)
    probes = tofu_probes(rows)
    loaded = load_model(model, dtype=DTYPES[precision])  # type: ignore[arg-type]
    _warm_up(loaded)
    pairs = []
    for _ in range(repeats):
        naive = run_naive(loaded, template, probes, new_tokens)
        ours = run_ours(loaded, template, probes, new_tokens, batch_tokens)
        pairs.append((naive, ours))
        say(f"naive {naive.total:.1f} s, ours {ours.total:.1f} s")
    agreement = compare(*pairs[0])
    naive, ours = pairs[-1]
    return {
        "precision": precision,
        "rows": {probe.name: len(probe.rows) for probe in probes},
        "agreement": asdict(agreement),
        "counts": precision != "fp32" or not agreement.problems,
        "ratio": spread([n.total / o.total for n, o in pairs]),
        "ratio_scoring": spread([_scoring(n) / o.of("scoring") for n, o in pairs]),
        "ratio_generating": spread([n.of("generating") / o.of("generating") for n, o in pairs]),
        "seconds": {
            "naive": [{**n.seconds, "total": n.total} for n, _ in pairs],
            "ours": [{**o.seconds, "total": o.total} for _, o in pairs],
        },
        "peak_gib_above_model": {"naive": naive.peak_gib, "ours": ours.peak_gib},
    }


def tofu_probes(rows: int) -> list[Probe]:
    """The probes of the TOFU benchmark with the holdout set of the attacks."""
    from expunge.benchmarks import benchmarks
    from expunge.data import load_rows

    return benchmarks.get("tofu").build_probes(
        load_rows("tofu:forget01", name="forget"),
        rows=dict.fromkeys(SETS, rows),
        options={"holdout": HOLDOUT},
    )


def _scoring(naive: Side) -> float:
    return naive.total - naive.of("generating")


def _warm_up(model: Any) -> None:
    import torch

    with torch.no_grad():
        for _ in range(2):
            model(torch.ones(1, 64, dtype=torch.long))


def report(found: Mapping[str, Any]) -> list[str]:
    """The result for a person."""
    agreement = found["agreement"]
    lines = [f"\n{found['precision']}, rows {found['rows']}"]
    for name in ("ratio", "ratio_scoring", "ratio_generating"):
        value = found[name]
        lines.append(
            f"  {name:18} {value.min:.2f} / {value.median:.2f} / {value.max:.2f} "
            f"(min, median, max of {value.n})"
        )
    for side in ("naive", "ours"):
        last = found["seconds"][side][-1]
        peak = found["peak_gib_above_model"][side]
        lines.append(f"  {side}: {last['total']:.1f} s, peak {peak:.2f} GiB above the model")
        lines += [
            f"    {name:32} {value:8.1f} s" for name, value in last.items() if name != "total"
        ]
    worst = max(agreement["largest"].values(), default=0.0)
    lines.append(f"  values agree to {worst:.1e}; texts the same: {agreement['texts']:.1%}")
    if found["precision"] == "fp32":
        lines += [f"  NOT THE SAME: {problem}" for problem in agreement["problems"]]
    if not found["counts"]:
        lines.append("  The ratio does not count.")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if float32 values do not agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vs", choices=("naive",), default="naive")
    parser.add_argument("--rows", type=int, default=40, help="rows of every set")
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    parser.add_argument("--model", default=MODEL, help="folder, hub name or builtin model")
    parser.add_argument("--label", help="what the model is called in the result, such as tuned")
    parser.add_argument("--repeats", type=int, default=1, help="pairs")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, help="of our passes; their default if left out")
    parser.add_argument("--output", type=Path, help="file for the result")
    given = parser.parse_args(arguments)
    facts = machine_facts()
    wanted = ("fp32", "bf16") if given.precision == "both" else (given.precision,)
    works = []
    for precision in wanted:
        found = measure(
            precision,
            model=given.model,
            rows=given.rows,
            new_tokens=given.max_new_tokens,
            repeats=given.repeats,
            batch_tokens=given.batch_tokens,
        )
        print("\n".join(report(found)), flush=True)
        works.append(found)
    label = given.label or ("base" if given.model == MODEL else "other")
    name = f"evaluation-{label}"
    path = save_result(
        name,
        {
            "kind": "evaluation",
            "vs": given.vs,
            "model": given.model if given.model.startswith("builtin:") else label,
            "naive_batch_size": BATCH_SIZE,
            "max_new_tokens": given.max_new_tokens,
            "works": works,
        },
        path=given.output,
        facts=facts,
    )
    print(f"\nWritten: {path}")
    return int(not all(found["counts"] for found in works))


if __name__ == "__main__":
    sys.exit(main())
