"""The estimates of `expunge check` and `expunge plan` against real trainings on this CPU.

    python perf/memory_check.py                     # four sizes, all settings: several minutes
    python perf/memory_check.py --sizes 10M --settings fp32

Every size and setting trains in a process of its own, which estimates first (memory from its
resident size at that moment, time from a short GEMM probe) and then measures: its peak resident
size, and the median time of the optimizer steps after the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import GIB, machine_facts, peak_bytes, save_result

# hidden, layers, query heads, key heads, inner, vocabulary; embeddings are tied.
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "10M": (256, 8, 4, 2, 768, 8192),
    "40M": (512, 10, 8, 4, 1536, 16384),
    "120M": (768, 14, 12, 4, 2304, 32768),
    "300M": (1024, 22, 16, 8, 3072, 49152),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "mixed": ("training.precision=mixed",),
    "lora": ("training.precision=mixed", "lora={r: 8}"),
    "checkpointing": ("training.gradient_checkpointing=true",),
}
ALWAYS = (
    "method=NPO+GD",
    "training.effective_batch_size=8",
    "training.micro_batch_size=8",
    "training.max_steps=4",
    "training.save_steps=null",
    "evaluation=null",
    "data.max_length=256",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--words", type=int, default=60, help="words of an answer")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "SETTING"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, words=args.words)))
        return
    rows = [
        child(size, setting, args.words)
        for size in args.sizes.split(",")
        for setting in args.settings.split(",")
    ]
    memory = [row["memory_ratio"] for row in rows]
    result = {
        "rows": rows,
        "worst_memory_ratio": max(memory, key=lambda ratio: abs(ratio - 1)),
        "within_20_percent": all(0.8 <= ratio <= 1.2 for ratio in memory),
    }
    print(f"memory within 20% everywhere: {result['within_20_percent']}")
    save_result("memory_check", result, path=args.output, facts=machine_facts())


def child(size: str, setting: str, words: int) -> dict[str, Any]:
    """Measure in a process of its own and print one line."""
    command = [sys.executable, __file__, "--words", str(words), "--one", size, setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{size} {setting} failed:\n{done.stderr[-3000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{size:>5} {setting:<13} memory {row['estimated_gib']:.2f} estimated, "
        f"{row['measured_gib']:.2f} measured GiB, ratio {row['memory_ratio']:.2f} "
        f"(above base {row['memory_ratio_above_base']:.2f}); step {row['predicted_step']:.2f} "
        f"predicted, {row['measured_step']:.2f} s measured, ratio {row['time_ratio']:.2f}",
        flush=True,
    )
    return row


def measure(size: str, setting: str, *, words: int) -> dict[str, Any]:
    """Estimate, then train, in this process."""
    from expunge.core.errors import Problems
    from expunge.run.check_data import Findings, check_lengths, check_rows
    from expunge.run.check_memory import memory_estimate, trainings
    from expunge.run.check_run import check_method
    from expunge.run.planning.devices import this_cpu
    from expunge.run.planning.reading import model_shape
    from expunge.run.planning.speed import training_time
    from expunge.run.resolve import resolve

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, size, words)
        overrides = (
            f"model.path={folder / 'model'}",
            f"data.forget={folder / 'forget.jsonl'}",
            f"data.retain={folder / 'retain.jsonl'}",
            f"output_dir={folder / 'run'}",
            *ALWAYS,
            *SETTINGS[setting],
        )
        config = resolve(overrides=overrides).config
        found = Findings(config=config, problems=Problems())
        for part in (check_method, check_rows, check_lengths):
            part(found)
        found.problems.raise_if_any()
        estimate = memory_estimate(found)
        if isinstance(estimate, str):
            sys.exit(f"no estimate: {estimate}")
        work, settings = trainings(found)["unlearning"]
        shape = model_shape(config.model.path)
        predicted = training_time(shape, work, settings, this_cpu(), world=1, sharding="none").step
        seconds = train(config)
    peak = peak_bytes()
    base = estimate.training.base
    measured_step = statistics.median(seconds[1:])
    return {
        "size": size,
        "setting": setting,
        "parameters": shape.num_parameters,
        "estimated_gib": estimate.peak / GIB,
        "measured_gib": peak / GIB,
        "memory_ratio": estimate.peak / peak,
        "memory_ratio_above_base": (estimate.peak - base) / max(1.0, peak - base),
        "parts_gib": {name: value / GIB for name, value in estimate.training.parts().items()},
        "stage": estimate.stage,
        "moment": estimate.training.moment,
        "predicted_step": predicted,
        "measured_step": measured_step,
        "time_ratio": predicted / measured_step,
    }


def train(config: Any) -> list[float]:
    """Unlearn as the command line does; seconds of every step."""
    from expunge.run.pipelines import unlearn
    from expunge.run.ui import SilentUi

    unlearn(config, SilentUi())
    log = Path(config.output_dir) / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["seconds"] for line in lines if "seconds" in line and "terms" in line]


def write_inputs(folder: Path, size: str, words: int) -> None:
    """A random model and rows, written by another process: neither may count in this one's peak."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import memory_check;"
        "from pathlib import Path;"
        "memory_check.make_inputs(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
    )
    here = str(Path(__file__).resolve().parent)
    subprocess.run(
        [sys.executable, "-c", code, here, str(folder), size, str(words)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def make_inputs(folder: Path, size: str, words: int) -> None:
    """Write `model`, `forget.jsonl` and `retain.jsonl`."""
    import random

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from expunge.testing.tiny import tiny_tokenizer, toy_facts

    hidden, layers, heads, kv_heads, inner, vocab = SIZES[size]
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    generator = random.Random(0)
    pool = ["Oslo", "prize", "author", "winter", "born", "writes", "baker", "map"]
    facts = toy_facts(120)
    for fact in facts:
        number = generator.randint(words // 2, words)
        fact["answer"] += " " + " ".join(generator.choice(pool) for _ in range(number))
    for name, some in (("forget", facts[:32]), ("retain", facts[32:])):
        text = "".join(json.dumps(fact) + "\n" for fact in some)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
