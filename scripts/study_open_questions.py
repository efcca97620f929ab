"""Four open questions of the papers, each against the fixed form, on a slice of TOFU.

    python scripts/study_open_questions.py [OUTPUT] [--seeds 3] [--start 0] [--study TITLE]
        [--table FILE.md]

1. Token-level against sample-level entanglement: EGU(NPO+GD, level=token).
2. A self-adaptive proxy weight against fixed ones: EGUP(GA+GD, mu_rule=dual).
3. Automatic against fixed extrapolation: UIPE(NPO+GD, alpha=auto) within a utility budget.
4. Stopping at the proxy boundary or at the budget against a fixed number of epochs.

Target model, retain model and proxies are those of `expunge demo`, made first if they are not in
the cache; one of its two forget authors (20 rows) is to be forgotten. Seeds change the order of
rows, the pairing, the adapters' start and the rows set aside; the target model is the same for all.
Every finished run is kept in OUTPUT and not repeated.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import expunge
from expunge.core.files import atomic_write_text
from expunge.core.fingerprint import fingerprint
from expunge.data.proxies import load_proxies
from expunge.models.loading import load_model, load_tokenizer
from expunge.models.peft import LoraSettings
from expunge.run.pipelines import Context, starting_models, written_proxies
from expunge.run.recipes import find_recipe
from expunge.run.ui import SilentUi
from expunge.training.budget import Budget

SHORT = {"num_train_epochs": 2}
LONG = {"num_train_epochs": 3, "learning_rate": 1e-3}
STUDIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "Stop rule": {
        "all 15 steps": ("GA+GD", LONG),
        "stop at proxies": ("GA+GD", {**LONG, "stop_at": ("proxy",), "stop_every": 3}),
        "stop at budget 0.90": (
            "GA+GD",
            {**LONG, "stop_at": ("budget",), "stop_every": 3, "budget": 0.90},
        ),
    },
    "Automatic alpha": {
        "alpha 0": ("NPO+GD", SHORT),
        "alpha 0.5": ("UIPE(NPO+GD, alpha=0.5)", SHORT),
        "alpha auto, budget 0.90": ("UIPE(NPO+GD, alpha=auto)", {**SHORT, "budget": 0.90}),
    },
    "Self-adaptive proxy weight": {
        "mu 0.001": ("EGUP(GA+GD, mu=0.001)", LONG),
        "dual, gap to 0": ("EGUP(GA+GD, mu_rule=dual, mu_rate=0.2, lambda_c=0.001)", LONG),
        "mu 0.001, boundary of the start model": (
            "EGUP(GA+GD, mu=0.001, proxy_loss=initial)",
            LONG,
        ),
        "dual, boundary of the start model": (
            "EGUP(GA+GD, mu_rule=dual, mu_rate=0.2, lambda_c=0.001, proxy_loss=initial)",
            LONG,
        ),
    },
    "Token-level entanglement": {
        "NPO+GD": ("NPO+GD", SHORT),
        "EGU, samples": ("EGU(NPO+GD)", SHORT),
        "EGU, tokens": ("EGU(NPO+GD, level=token)", SHORT),
    },
}
SHOWN = {
    "forget/rouge_l_recall": "forget ROUGE-L",
    "forget/probability": "forget prob.",
    "retain/rouge_l_recall": "retain ROUGE-L",
    "retain/probability": "retain prob.",
    "steps": "steps",
    "alpha": "alpha",
    "mu": "mu at end",
    "proxy_gap": "proxy gap at end",
    "seconds": "seconds",
}
ROWS = {"retain": 20}
RESERVE = 16


class Study:
    """The slice, its models, and the runs.

    Args:
        output: Folder of the results.
    """

    def __init__(self, output: Path) -> None:
        config = expunge.load_config(
            find_recipe("demo"), f"output_dir={output}", f"data.proxies={output}/proxies.jsonl"
        )
        context = Context(config, SilentUi())
        models = starting_models(context)
        self.output, self.context = output, context
        self.target = models["target"]
        self.tokenizer = load_tokenizer(self.target)
        self.forget = context.forget[:20]
        self.proxies = load_proxies(written_proxies(context), context.forget)[:20]
        self.retain = models["retain"]

    def evaluate(self, model: Any) -> Any:
        """Probability and ROUGE-L of the forget answers and of half the retain answers."""
        return expunge.evaluate(
            model,
            self.forget,
            self.context.retain,
            tokenizer=self.tokenizer,
            benchmark="custom",
            rows=ROWS,
            max_new_tokens=40,
        ).results

    def run(self, method: str, options: dict[str, Any], seed: int) -> dict[str, float]:
        """Figures of one run."""
        budget = options.get("budget")
        settings = {key: value for key, value in options.items() if key != "budget"}
        started = time.monotonic()
        found = expunge.unlearn(
            load_model(self.target, dtype="bfloat16", attn_implementation="eager"),
            self.forget,
            self.context.retain,
            tokenizer=self.tokenizer,
            method=method,
            proxies=self.proxies,
            lora=LoraSettings(r=32, alpha=64, dropout=0.0),
            budget=None if budget is None else Budget(utility=budget, rows=RESERVE),
            max_length=256,
            effective_batch_size=4,
            micro_batch_size=4,
            warmup_steps=2,
            mixed_precision="bf16",
            save_steps=-1,
            seed=seed,
            **{"learning_rate": 4e-4, **settings},
        )
        figures = {"seconds": time.monotonic() - started, "steps": float(len(found.records))}
        for key in ("mu", "proxy_gap"):
            if found.records and key in found.records[-1].extra:
                figures[key] = found.records[-1].extra[key]
        if found.alpha is not None:
            figures["alpha"] = found.alpha.alpha
        return figures | self.figures(found.model)

    def figures(self, model: Any) -> dict[str, float]:
        """Scores of a model as plain numbers."""
        scores = self.evaluate(model).scores
        return {key: score.value for key, score in scores.items() if score.value is not None}


def run_all(output: Path, seeds: range, only: str) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Every study, every form, every seed; what is on disk is not repeated."""
    study = Study(output)
    results: dict[str, dict[str, list[dict[str, float]]]] = {"Where runs start and should end": {}}
    for label, path in (("target model", study.target), ("retain model", study.retain)):
        file = output / f"{label.replace(' ', '_')}.json"
        if not file.exists():
            figures = study.figures(load_model(path, dtype="bfloat16"))
            atomic_write_text(file, json.dumps(figures, indent=1) + "\n")
        found = json.loads(file.read_text())
        results["Where runs start and should end"][label] = [found]
    for seed in seeds:
        for title, forms in STUDIES.items():
            if not title.startswith(only):
                continue
            for form, (method, options) in forms.items():
                # Equal runs of two studies are one run.
                name = f"{fingerprint([method, options])[:8]}_{seed}"
                file = output / f"{name}.json"
                if not file.exists():
                    figures = study.run(method, options, seed)
                    atomic_write_text(file, json.dumps(figures, indent=1) + "\n")
                    print(form, seed, {k: round(figures[k], 3) for k in SHOWN if k in figures})  # noqa: T201
                found = json.loads(file.read_text())
                results.setdefault(title, {}).setdefault(form, []).append(found)
    return results


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Mean and range over seeds as Markdown, one table per study."""
    parts = []
    for title, forms in results.items():
        keys = [k for k in SHOWN if any(k in run for runs in forms.values() for run in runs)]
        lines = [f"## {title}", "", "| form | " + " | ".join(SHOWN[k] for k in keys) + " |"]
        lines.append("|" + " --- |" * (len(keys) + 1))
        for form, runs in forms.items():
            cells = [_cell([run[key] for run in runs if key in run]) for key in keys]
            lines.append(f"| {form} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    digits = 0 if max(values) >= 20 else 3
    mean = statistics.fmean(values)
    if max(values) == min(values):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=Path("runs/open-questions"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=0, help="first seed, to share the work")
    parser.add_argument("--study", help="only the study whose title starts like this")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    text = table(run_all(options.output, range(options.start, options.seeds), options.study or ""))
    print(text)  # noqa: T201
    if options.table is not None:
        atomic_write_text(options.table, text)


if __name__ == "__main__":
    main()
