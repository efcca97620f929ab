"""`torch.compile` of the decoder layers: what it costs, what a step gains, when it pays.

    python perf/compile.py                                  # SmolLM2-135M, GradDiff-like steps
    python perf/compile.py --tiny                           # a model from a config, for a look
    python perf/compile.py --precision bf16 --tokens 200,633,410

One process holds the model plain and compiled. Both do the same forward and backward pass in turn
over rows of changing length; losses have to agree. The compile time is that of the first passes
over what a plain pass takes.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import MODEL, Pair, alternate, machine_facts, ratios, save_result, spread

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest distance of two losses, relative to their size."""


def batches(lengths: Sequence[int], vocabulary: int) -> list[dict[str, Any]]:
    """One row of random tokens for every length; all are labels."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (1, length), generator=generator) for length in lengths]
    return [{"input_ids": row, "labels": row, "use_cache": False} for row in rows]


def step(model: nn.Module, batch: dict[str, Any]) -> float:
    """Forward and backward; returns the loss."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach())


def compare(plain: nn.Module, given: argparse.Namespace) -> dict[str, Any]:
    """Compile a copy, check that it computes the same, and let both take turns.

    Raises:
        SystemExit: The losses differ.
    """
    from expunge.training.compiling import bucket_length, compile_regions, num_graphs

    compiled = copy.deepcopy(plain)
    compile_regions(compiled, dynamic=not given.bucket, backend=given.backend)
    lengths = [bucket_length(n, given.bucket or 1) for n in given.tokens]
    rows = batches(lengths, plain.config.vocab_size)  # type: ignore[union-attr,arg-type]
    graphs = [num_graphs()]
    first, after = [], []
    for batch in rows:
        wanted = step(plain, batch)
        started = time.perf_counter()
        found = step(compiled, batch)
        first.append(time.perf_counter() - started)
        graphs.append(num_graphs())
        started = time.perf_counter()
        step(compiled, batch)
        after.append(time.perf_counter() - started)
        if abs(found - wanted) > TOLERANCE[given.precision] * abs(wanted):
            raise SystemExit(f"losses differ: {wanted} plain, {found} compiled")
    compile_seconds = sum(first) - sum(after)
    turns = [0, 0]

    def turn(model: nn.Module, side: int) -> None:
        step(model, rows[turns[side] % len(rows)])
        turns[side] += 1

    pairs = alternate(
        lambda: turn(plain, 0), lambda: turn(compiled, 1), repeats=given.repeats * len(rows)
    )
    return {
        "tokens": lengths,
        "graphs": [n - graphs[0] for n in graphs[1:]],
        "compile_seconds": compile_seconds,
        "speedup": ratios(pairs),
        "plain_seconds": spread([pair.naive for pair in pairs]),
        "compiled_seconds": spread([pair.ours for pair in pairs]),
        "break_even_steps": break_even(pairs, compile_seconds),
    }


def break_even(pairs: Sequence[Pair], compile_seconds: float) -> int | None:
    """Steps after which compiling has paid; None if a compiled step is not faster."""
    gain = spread([pair.naive - pair.ours for pair in pairs]).median
    return None if gain <= 0 else int(compile_seconds / gain) + 1


def build(given: argparse.Namespace) -> nn.Module:
    """The model, ready to train."""
    from expunge.models.loading import load_model

    if not given.tiny:
        dtype: Any = {"fp32": "float32", "bf16": "bfloat16"}[given.precision]
        return load_model(given.model, dtype=dtype).train()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    if given.precision == "bf16":
        model = model.bfloat16()
    tiny: nn.Module = model.train()
    return tiny


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tiny", action="store_true", help="a six-layer model from a config")
    parser.add_argument("--precision", choices=list(TOLERANCE), default="fp32")
    parser.add_argument("--tokens", type=_numbers, default=[633, 540, 702, 588, 661])
    parser.add_argument("--bucket", type=int, default=0, help="round lengths up; 0: any length")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--repeats", type=int, default=3, help="pairs for every length")
    parser.add_argument("--output", type=Path, help="default: perf/results/compile-PRECISION.json")
    given = parser.parse_args()
    facts = machine_facts()
    found = compare(build(given), given)
    ratio, steps = found["speedup"], found["break_even_steps"]
    print(
        f"{ratio.median:.2f}x ({ratio.min:.2f} to {ratio.max:.2f}, n={ratio.n}) faster compiled; "
        f"compiling took {found['compile_seconds']:.1f} s, {found['graphs'][-1]} graphs for "
        f"{len(set(found['tokens']))} lengths"
    )
    print("it never pays" if steps is None else f"it pays after {steps} steps")
    name = f"compile-{given.precision}"
    settings = {"precision": given.precision, "model": "tiny" if given.tiny else given.model}
    print(f"written to {save_result(name, {**settings, **found}, path=given.output, facts=facts)}")
    return 0


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
