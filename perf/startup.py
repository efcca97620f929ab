"""Start-up: import, help, check, time to the first step, and a recipe that was run before.

    python perf/startup.py                    # a two-layer model and TOFU rows, about two minutes
    python perf/startup.py --model builtin:smollm2-135m-instruct
    python perf/startup.py --repeats 5 --output /tmp/x.json

Every measurement is a fresh process with a cache of its own (`EXPUNGE_CACHE`); the model's files
are read once before. Wall-clock and processor seconds are those of the whole process, interpreter
included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine_facts, save_result, spread

HEAVY = ("torch", "transformers", "scipy", "pandas", "pyarrow", "peft", "accelerate", "sklearn")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished process.

    Attributes:
        seconds: Wall-clock time.
        processor_seconds: User and system time, children included.
        output: What it printed.
        started: When it started, as `time.time`.
    """

    seconds: float
    processor_seconds: float
    output: str
    started: float


def fresh(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run Python with these arguments to its end.

    Raises:
        RuntimeError: It failed; has what it said.
    """
    before, started, clock = os.times(), time.time(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=dict(environment)
    )
    seconds, after = time.perf_counter() - clock, os.times()
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed:\n{done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    return Run(
        seconds=seconds, processor_seconds=spent, output=done.stdout + done.stderr, started=started
    )


def several(
    command: Sequence[str], environment: Mapping[str, str], *, repeats: int
) -> dict[str, Any]:
    """Spread of wall-clock and processor seconds over fresh processes; one more warms the files."""
    fresh(command, environment)
    runs = [fresh(command, environment) for _ in range(repeats)]
    return {
        "seconds": spread([run.seconds for run in runs]),
        "processor_seconds": spread([run.processor_seconds for run in runs]),
    }


def imported(code: str, environment: Mapping[str, str]) -> list[str]:
    """Heavy libraries that a piece of code has loaded."""
    report = f"import sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    output = fresh(["-c", f"{code}\n{report}"], environment).output
    (line,) = [text for text in output.splitlines() if text.startswith("LOADED")]
    return line.split()[1:]


def write_recipe(place: Path, model: str, rows: int) -> Path:
    """A recipe with every stage: two fine-tunings, unlearning, evaluation of four models."""
    recipe = place / "run.yaml"
    recipe.write_text(
        f"""
name: startup
output_dir: {place}/run
model: {{path: "{model}"}}
data: {{forget: "tofu:forget10[0:{rows}]", retain: "tofu:retain90[0:{rows}]"}}
method: NPO+GD
training: {{max_steps: 1, effective_batch_size: 4, micro_batch_size: 4, save_steps: null}}
finetune:
  training: {{max_steps: 1, effective_batch_size: 4, micro_batch_size: 4, save_steps: null}}
evaluation: {{benchmark: custom, max_new_tokens: 8, rows: {{forget: 8, retain: 8}}}}
""",
        encoding="utf-8",
    )
    return recipe


def write_model(folder: Path) -> str:
    """A two-layer model with a small tokenizer."""
    from expunge.models.quiet import no_progress_bars
    from expunge.testing.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    with no_progress_bars():
        tiny_model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def first_step(recipe: Path, environment: Mapping[str, str], output: Path) -> dict[str, float]:
    """Seconds from the start of a process to the end of its first step, and of that step.

    Unlearning alone, straight from the model, one step: the log is written when it is done.
    """
    overrides = ["finetune=null", "evaluation=null"]
    command = ["-m", "expunge", "unlearn", str(recipe), "--output", str(output), *overrides]
    run = fresh(command, environment)
    log = output / "log.jsonl"
    (line,) = log.read_text(encoding="utf-8").splitlines()
    return {"until": log.stat().st_mtime - run.started, "step": json.loads(line)["seconds"]}


def second_run(recipe: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The same recipe twice, and once more into another folder.

    Raises:
        RuntimeError: The second run made something again, or the third more than its own model.
    """
    command = ["-m", "expunge", "unlearn", str(recipe)]
    run_folder, cache = recipe.parent / "run", Path(environment["EXPUNGE_CACHE"])
    first = fresh(command, environment)
    made, kept = products(run_folder), products(cache)
    second = fresh(command, environment)
    if products(run_folder) != made or products(cache) != kept:
        raise RuntimeError("the second run of the same recipe made something again")
    third = fresh([*command, "--output", str(recipe.parent / "other")], environment)
    if products(cache) != kept:
        raise RuntimeError("the run into another folder fine-tuned or evaluated again")
    return {
        "first_seconds": first.seconds,
        "second_seconds": second.seconds,
        "other_folder_seconds": third.seconds,
        "second_processor_seconds": second.processor_seconds,
    }


def products(folder: Path) -> dict[str, int]:
    """Weights, tables and logs of steps below a folder, with the times of their last change."""
    found = [*folder.rglob("*.safetensors"), *folder.rglob("*.parquet"), *folder.rglob("log.jsonl")]
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in found}


def measure(place: Path, model: str | None, rows: int, repeats: int) -> dict[str, Any]:
    """Everything, in a folder that is thrown away afterwards."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "EXPUNGE_CACHE": str(place / "cache"),
    }
    if model is not None and model.startswith("builtin:"):
        # Unpacking the embedded model is no part of a start.
        from expunge.models.loading import resolve_model

        model = str(resolve_model(model))
    chosen = write_model(place / "model") if model is None else model
    recipe = write_recipe(place, chosen, rows)
    steps = [first_step(recipe, environment, place / f"step{i}") for i in range(repeats + 1)][1:]
    return {
        "import": several(["-c", "import expunge"], environment, repeats=repeats),
        "help": several(["-m", "expunge", "--help"], environment, repeats=repeats),
        "check": several(["-m", "expunge", "check", str(recipe)], environment, repeats=repeats),
        "libraries": several(
            ["-c", "import torch, accelerate; from transformers import LlamaForCausalLM"],
            environment,
            repeats=repeats,
        ),
        "first_step": {
            "seconds": spread([step["until"] for step in steps]),
            "of_that_step": spread([step["step"] for step in steps]),
        },
        "second_run": second_run(recipe, environment),
        "imported": {
            "import expunge": imported("import expunge", environment),
            "--help": imported("from expunge.cli import main; main(['--help'])", environment),
        },
        "model": "two layers" if model is None else Path(model).name,
        "rows": rows,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print what was measured."""
    for name in ("import", "help", "check", "libraries", "first_step"):
        wall = found[name]["seconds"]
        extra = found[name].get("processor_seconds")
        print(
            f"{name:>12}: {wall.median:6.2f} s ({wall.min:.2f} to {wall.max:.2f}, n={wall.n})"
            + ("" if extra is None else f", {extra.median:.2f} s of processor time")
        )
    runs = found["second_run"]
    print(
        f"  whole recipe: {runs['first_seconds']:.1f} s, again {runs['second_seconds']:.1f} s, "
        f"into another folder {runs['other_folder_seconds']:.1f} s"
    )
    print(f"      imported: {json.dumps(found['imported'])}")


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or name; default: a two-layer model")
    parser.add_argument("--rows", type=int, default=400, help="TOFU rows per set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: perf/results/startup.json")
    given = parser.parse_args()
    facts = machine_facts()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), given.model, given.rows, given.repeats)
    show(found)
    print(f"written to {save_result('startup', found, path=given.output, facts=facts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
