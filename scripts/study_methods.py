"""Published methods side by side on a slice of TOFU, with several seeds and retain models.

    python scripts/study_methods.py [OUTPUT] [--seeds 3] [--part 0/1] [--score]
        [--table FILE.md] [--figure FILE.svg]

Target model, retain model and proxies are those of `expunge demo`: SmolLM2-135M-Instruct taught
forget01 (40 questions) and 40 questions to keep. Further retain models differ in their seed alone;
how far they are from each other is the null band of forget quality.

Every method has the same budget: two learning rates at seed 0, ten optimizer steps each. The rate
with the highest harmonic mean of kept utility (probability per token of retain answers, as a share
of the target's, at most 1) and closeness to the retain model (1 - D) is used for all seeds; the run
of the search counts as that of seed 0. EGU, EGUP and UIPE have no search of their own: they run at
the rate of the loss they go around. Seeds change the order of rows, the pairing and the adapters'
start.

Finished runs are kept in OUTPUT as stored tables, and --score computes every figure from those
alone. `--part 0/2` and `--part 1/2` share the work between two processes.
"""

import argparse
import html
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import expunge
from expunge.benchmarks import Evidence, benchmarks
from expunge.core.files import atomic_write_text
from expunge.core.results import ModelResults
from expunge.data import RowSet, make_template
from expunge.data.proxies import load_proxies
from expunge.evaluation import EvaluationStore, Probe, run_probes
from expunge.evaluation.judges import JudgePanel, Judges, annotate
from expunge.evaluation.standard import forget_efficacy
from expunge.metrics.aggregate import forget_quality, harmonic_mean
from expunge.metrics.likelihood import probability, truth_ratio
from expunge.models.loading import load_model, load_tokenizer
from expunge.models.peft import LoraSettings
from expunge.postprocess import extrapolate
from expunge.run.pipelines import Context, finetuned, starting_models, written_proxies
from expunge.run.recipes import find_recipe
from expunge.run.ui import SilentUi

BASES = ("GA", "NPO", "GA+GD", "NPO+GD")
METHODS = (
    *BASES,
    "GA+KL",
    "IDK+AP",
    "ME+GD",
    "DPO",
    "SimNPO",
    *(f"EGUP({base})" for base in BASES),
    *(f"EGU({base})" for base in BASES),
)
UIPE_BASES = ("GA", "GA+GD", "GA+KL", "NPO")
ALPHAS = (0.5, 1.0)
RATES = (3e-4, 1e-3)
SEARCH_SEED = 0
ROWS = {"retain": 12, "real_authors": 12, "world_facts": 12}
MAX_NEW_TOKENS = 48
TOFU = benchmarks.get("tofu")
RATIO_COLUMNS = ("answer_logps", "paraphrase_logps", "perturbed_logps")


def slug(method: str) -> str:
    """A method as a file name."""
    return method.replace("+", "_").replace("(", "-").replace(")", "")


class Study:
    """The slice, its models, and the runs.

    Args:
        output: Folder of the results.
        seeds: How many seeds, and how many retain models.
    """

    def __init__(self, output: Path, seeds: int) -> None:
        self.output, self.seeds = output, seeds
        self.context = self._context(0)
        self.target = starting_models(self.context)["target"]
        self.tokenizer = load_tokenizer(self.target)
        self.proxies = load_proxies(written_proxies(self.context), self.context.forget)

    def _context(self, seed: int) -> Context:
        overrides = (f"output_dir={self.output}", f"data.proxies={self.output}/proxies.jsonl")
        config = expunge.load_config(find_recipe("demo"), *overrides, f"seed={seed}")
        return Context(config, SilentUi())

    def reference(self, name: str) -> str:
        """Folder of the target model or of a retain model, such as retain_1."""
        if name == "target":
            return self.target
        return str(finetuned(self._context(int(name.removeprefix("retain_"))), "retain"))

    def measure(self, name: str, model: Any, **facts: Any) -> None:
        """Store the tables of a model, and what made it."""
        folder = self.output / "runs" / name
        self.probe(model, TOFU.build_probes(*self.rows, rows=ROWS), folder)
        atomic_write_text(folder / "facts.json", json.dumps(facts, indent=1) + "\n")

    def probe(self, model: Any, probes: list[Probe], folder: Path) -> None:
        """Run probes into a folder."""
        settings = TOFU.settings(None, max_new_tokens=MAX_NEW_TOKENS)
        store = EvaluationStore(folder)
        template = make_template(self.tokenizer)
        run_probes(model, self.tokenizer, template, probes, settings, store=store)

    @property
    def rows(self) -> tuple[RowSet, RowSet]:
        """Forget and retain set."""
        assert self.context.retain is not None
        return self.context.forget, self.context.retain

    def done(self, name: str) -> bool:
        """Whether a model's tables are stored."""
        return (self.output / "runs" / name / "facts.json").is_file()

    def unlearned(self, method: str, rate: float, seed: int) -> Any:
        """An unlearned model and how long it took, in seconds."""
        started = time.monotonic()
        found = expunge.unlearn(
            load_model(self.target, dtype="bfloat16", attn_implementation="eager"),
            *self.rows,
            tokenizer=self.tokenizer,
            method=method,
            proxies=self.proxies if method.startswith("EGUP") else None,
            lora=LoraSettings(r=32, alpha=64, dropout=0.0),
            max_length=256,
            effective_batch_size=8,
            micro_batch_size=4,
            num_train_epochs=2,
            learning_rate=rate,
            warmup_steps=2,
            mixed_precision="bf16",
            save_steps=-1,
            seed=seed,
        )
        return found.model, time.monotonic() - started

    def search(self, method: str, rate: float) -> None:
        """One run of the search; its model is kept until the rate is chosen."""
        name = f"{slug(method)}_{rate:g}"
        folder, models = self.output / "search" / name, self.output / "models" / name
        if (folder / "facts.json").is_file():
            return
        model, seconds = self.unlearned(method, rate, SEARCH_SEED)
        forget, retain, *_ = TOFU.build_probes(*self.rows, rows=ROWS)
        probes = [replace(forget, generate=False), replace(retain, generate=False, variants=False)]
        self.probe(model, probes, folder)
        model.save_pretrained(models)
        self.tokenizer.save_pretrained(models)
        atomic_write_text(folder / "facts.json", json.dumps({"seconds": seconds}) + "\n")
        _say(name, seconds)

    def chosen(self, method: str) -> float:
        """The learning rate that the search found for a loss, also if another process does it."""
        base = method.removeprefix("EGUP(").removeprefix("EGU(").removesuffix(")")
        files = [self.output / "search" / f"{slug(base)}_{rate:g}" / "facts.json" for rate in RATES]
        while not all(file.is_file() for file in files):
            time.sleep(5)
        return max(RATES, key=lambda rate: self.search_score(base, rate))

    def search_score(self, method: str, rate: float) -> float:
        """Harmonic mean of kept utility and closeness to the retain model, 0 to 1."""
        found = EvaluationStore(self.output / "search" / f"{slug(method)}_{rate:g}").load()
        target, retain = (
            EvaluationStore(self.output / "runs" / name).load() for name in ("target", "retain_0")
        )
        kept, whole = (
            float(probability(tables["retain"]["answer_logps"]).mean())
            for tables in (found, target)
        )
        ratios = [
            truth_ratio(*(tables["forget"][name] for name in RATIO_COLUMNS))
            for tables in (found, retain)
        ]
        distance = forget_quality(*ratios).statistic
        return harmonic_mean([min(1.0, kept / whole), 1.0 - (distance or 0.0)])

    def final(self, method: str, seed: int) -> None:
        """The run of a seed at the chosen rate, and its extrapolations for a base of UIPE."""
        rate = self.chosen(method)
        name = f"{slug(method)}_{seed}"
        alphas = ALPHAS if method in UIPE_BASES else ()
        wanted = {f"UIPE-{slug(method)}_{alpha:g}_{seed}": alpha for alpha in alphas}
        if self.done(name) and all(self.done(other) for other in wanted):
            return
        if seed == SEARCH_SEED and "EGU" not in method:
            saved = self.output / "models" / f"{slug(method)}_{rate:g}"
            model, seconds = load_model(str(saved), dtype="bfloat16"), None
        else:
            model, seconds = self.unlearned(method, rate, seed)
        facts = {"rate": rate, "seed": seed}
        if not self.done(name):
            self.measure(name, model, method=method, seconds=seconds, **facts)
            _say(name, seconds or 0.0)
        if wanted:
            start = load_model(self.target, dtype="bfloat16").state_dict()
            end = {key: value.clone() for key, value in model.state_dict().items()}
        for other, alpha in wanted.items():
            if not self.done(other):
                model.load_state_dict(extrapolate(start, end, alpha=alpha))
                label = f"UIPE({method}, alpha={alpha:g})"
                self.measure(other, model, method=label, seconds=None, **facts)
                _say(other, 0.0)


def _say(name: str, seconds: float) -> None:
    print(f"{name}  {seconds:.0f} s", flush=True)  # noqa: T201


def run_all(study: Study, part: int, parts: int) -> None:
    """Reference models, the search, then every seed at the chosen rates; done work is skipped."""
    references = ["target", *(f"retain_{seed}" for seed in range(study.seeds))]
    for i, name in enumerate(references):
        if i % parts == part and not study.done(name):
            model = load_model(study.reference(name), dtype="bfloat16")
            study.measure(name, model, method=name, seed=0)
    losses = [method for method in METHODS if "EGU" not in method]
    for i, (method, rate) in enumerate((m, rate) for m in losses for rate in RATES):
        if i % parts == part:
            study.search(method, rate)
    wrapped = [method for method in METHODS if "EGU" in method]
    jobs = [(method, seed) for seed in range(study.seeds) for method in (*losses, *wrapped)]
    for i, (method, seed) in enumerate(jobs):
        if i % parts == part:
            study.final(method, seed)


# Figures from stored tables ----------------------------------------------------------------------


SHOWN = {
    "forget_quality_distance": "D, lower",
    "forget_quality": "p, higher",
    "model_utility": "model utility, higher",
    "forget_efficacy_four": "forget efficacy of four, higher",
    "forget/rouge_l_recall": "forget ROUGE-L",
    "forget/probability": "forget prob.",
    "retain/rouge_l_recall": "retain ROUGE-L, higher",
    "retain/probability": "retain prob., higher",
}
# Entailment needs a classifier that comes from a hub; the other four values of forget efficacy.
FOUR = ("rouge_l_recall", "probability", "truth_ratio_closer_look", "cosine_similarity")


def score_all(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures of every run by method, each with value and interval; no model is loaded."""
    folders = sorted(path.parent for path in (output / "runs").glob("*/facts.json"))
    tables = {folder.name: EvaluationStore(folder).load() for folder in folders}
    retains = [tables[name] for name in sorted(tables) if name.startswith("retain_")]
    panel = JudgePanel(Judges(encoder="builtin:all-minilm-l6-v2", nli=None))
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        facts = json.loads((folder / "facts.json").read_text())
        found = tables[folder.name]
        judged = annotate(found["forget"], ["generation_similarity"], panel)
        forget = replace(found["forget"], columns={**found["forget"].columns, **judged.columns})
        others = [other for other in retains if other is not found]
        evidence = Evidence(tables={**found, "forget": forget}, retains=others)
        results = TOFU.score_tables(evidence)
        label = "retain model" if facts["method"].startswith("retain_") else facts["method"]
        rows.setdefault(label, []).append({**facts, "figures": _figures(results, evidence)})
    return rows


def _figures(results: ModelResults, evidence: Evidence) -> dict[str, dict[str, Any]]:
    figures = {
        key: {"value": s.value, "low": s.low, "high": s.high, "n": s.n}
        for key, s in results.scores.items()
        if s.value is not None
    }
    test = results.forget_quality
    assert test is not None
    figures["forget_quality_distance"] = {
        "value": test.statistic, "low": test.low, "high": test.high, "n": test.n,
        "verdict": test.verdict, "band": test.null_band and test.null_band.highest,
    }  # fmt: skip
    four = replace(forget_efficacy(), over=tuple(f"forget/{name}" for name in FOUR))
    measures = {measure.key: measure for measure in TOFU.measures}
    score = four.score(measures, evidence)
    figures["forget_efficacy_four"] = {
        "value": score.value, "low": score.low, "high": score.high, "n": score.n
    }  # fmt: skip
    return figures


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and range over seeds as Markdown, one line per method."""
    lines = ["| method | rate | seeds | " + " | ".join(SHOWN.values()) + " |"]
    lines.append("|" + " --- |" * (len(SHOWN) + 3))
    for label in sorted(rows, key=_order):
        runs = rows[label]
        rates = {f"{run['rate']:g}" for run in runs if run.get("rate")}
        cells = [_cell([_value(run, key) for run in runs], key) for key in SHOWN]
        lines.append(f"| {label} | {' '.join(sorted(rates))} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _order(label: str) -> tuple[int, str]:
    first = ("target", "retain model")
    return (first.index(label), "") if label in first else (2 + label.count("("), label)


def _value(run: dict[str, Any], key: str) -> float | None:
    return run["figures"].get(key, {}).get("value")


def _cell(values: list[float | None], key: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = ".2g" if key == "forget_quality" else ".3f"
    mean = statistics.fmean(known)
    spread = f" ({min(known):{digits}} to {max(known):{digits}})" if len(known) > 1 else ""
    return f"{mean:{digits}}{spread}"


def figure(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Utility kept against distance from the retain model, as SVG; the upper left is good."""
    width, height, left, bottom = 760, 480, 60, 50
    points = []
    for label in sorted(rows, key=_order):
        known = [
            (x, y)
            for run in rows[label]
            if (x := _value(run, "forget_quality_distance")) is not None
            and (y := _value(run, "model_utility")) is not None
        ]
        if known:
            points.append((label, *(statistics.fmean(axis) for axis in zip(*known, strict=True))))
    top = 1.1 * max(y for _, _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (width - left - 170), height - bottom - y / top * (height - bottom - 20)

    colours = {"EGUP": "#b5482a", "EGU(": "#d99a2b", "UIPE": "#3b7a57", "target": "#000000"}
    parts = []
    for label, x, y in points:
        colour = next((c for key, c in colours.items() if label.startswith(key)), "#31629c")
        across, down = place(x, y)
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{across + 7:.1f}" y="{down + 4:.1f}">{html.escape(label)}</text>')
    for i in range(6):
        across, down = place(i / 5, 0)
        parts.append(f'<text x="{across - 8:.1f}" y="{down + 18:.1f}">{i / 5:.1f}</text>')
        across, down = place(0, i / 5 * top)
        parts.append(f'<text x="{across - 40:.1f}" y="{down + 4:.1f}">{i / 5 * top:.2f}</text>')
    (x0, y0), (x1, _), (_, y1) = place(0, 0), place(1, 0), place(0, top)
    parts.append(f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="#888"/>')
    parts.append(f'<text x="{x0}" y="{height - 8}">distance D from the retain model</text>')
    parts.append(f'<text x="{x0 + 8}" y="{y1 + 4}">model utility</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    return head + 'font-family="sans-serif" font-size="11">' + "".join(parts) + "</svg>\n"


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="share of the work: NUMBER/OF")
    parser.add_argument("--score", action="store_true", help="only what is stored")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if not options.score:
        part, parts = (int(number) for number in options.part.split("/"))
        run_all(Study(options.output, options.seeds), part, parts)
    rows = score_all(options.output)
    atomic_write_text(options.output / "figures.json", json.dumps(rows, indent=1) + "\n")
    text = table(rows)
    print(text)  # noqa: T201
    if options.table is not None:
        atomic_write_text(options.table, text)
    if options.figure is not None:
        atomic_write_text(options.figure, figure(rows))


if __name__ == "__main__":
    main()
