"""Peak memory of an evaluation above the model, for growing vocabularies, lengths and rows.

    python perf/evaluation_memory.py
    python perf/evaluation_memory.py --smallest --output /tmp/x.json

Every size is a process of its own with a Llama of random weights, a tiny body and a large
vocabulary. Beside the measured peak stands the textbook's: the logits of one batch of 32 rows in
float32, twice, as log-softmax needs them. Ours has to stay below a bound in which the vocabulary is
never multiplied by the length: the head's chunk, what a batch's positions need, the cache, a
few lines of logits while layouts are tried, one line per row while answers begin, and 64 MiB that
glibc keeps of what was freed (single peaks move by that much from run to run).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import GIB, machine_facts, peak_bytes, reset_peak, resident_bytes, save_result

MIB = 2**20
BATCH_ROWS = 32
KEPT = 64 * MIB
"""Freed memory that glibc keeps at the top of its heap: twice its largest threshold for mapping."""

SLACK = 32 * MIB
"""Thread stacks, and code that is loaded on first use."""

TRIAL = 40
"""Lines of logits while it is tried whether the model takes trees."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One evaluation.

    Attributes:
        vocabulary: Entries of the vocabulary.
        length: Tokens of every answer.
        rows: Rows, each with a true answer and three wrong ones.
        new_tokens: Tokens of a generated answer.
    """

    vocabulary: int = 49_152
    length: int = 64
    rows: int = 16
    new_tokens: int = 16


BASE = Size()
AXES: dict[str, list[Size]] = {
    "vocabulary": [replace(BASE, vocabulary=size) for size in (49_152, 128_256, 256_000)],
    "length": [replace(BASE, length=size) for size in (32, 128, 512)],
    "rows": [replace(BASE, rows=size) for size in (8, 32, 128)],
}
SMALLEST: dict[str, list[Size]] = {
    "vocabulary": [
        replace(BASE, vocabulary=size, length=16, rows=4, new_tokens=2) for size in (8_192, 32_768)
    ]
}


def measure(size: Size) -> dict[str, Any]:
    """Run one evaluation in this process; bytes."""
    import torch

    from expunge.evaluation import answers
    from expunge.evaluation.answers import AnswerJob, score_answers
    from expunge.models.decoding import CACHE_FACTOR
    from expunge.models.generate import generate_texts

    model = _model(size)
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, size.vocabulary, (count,), generator=generator).tolist())

    jobs = [
        AnswerJob(tokens(24), tuple(tokens(size.length) for _ in range(4)), moments=1, greedy=1)
        for _ in range(size.rows)
    ]
    reset_peak()
    before = resident_bytes()
    for _ in score_answers(model, jobs):
        pass
    scoring = peak_bytes() - before
    reset_peak()
    before = resident_bytes()
    generate_texts(
        model,
        [job.prompt for job in jobs],
        tokenizer=_Tokenizer(),
        max_new_tokens=size.new_tokens,
        stop_ids=(),
    )
    generating = peak_bytes() - before
    config = model.config
    batch_tokens = 4096
    # One chunk of logits and the blocks of what is made of them; neither knows the length.
    chunk = 4 * (max(16 * size.vocabulary, answers.CHUNK_CPU) + 6 * answers.BLOCK_CPU)
    fixed = 4 * TRIAL * size.vocabulary + KEPT + SLACK
    position = 4 * (12 * config.hidden_size + 4 * config.intermediate_size)
    masks = 8 * batch_tokens * (24 + 4 * size.length)
    entry = 4 * 2 * config.num_hidden_layers * config.hidden_size
    cache = 2 * min(CACHE_FACTOR * batch_tokens, size.rows * (24 + size.new_tokens + 64)) * entry
    first = 4 * size.rows * size.vocabulary
    return {
        **asdict(size),
        "model_mib": round(sum(p.numel() for p in model.parameters()) * 4 / MIB, 1),
        "scoring_mib": round(scoring / MIB, 1),
        "scoring_bound_mib": round((chunk + batch_tokens * position + masks + fixed) / MIB, 1),
        "generating_mib": round(generating / MIB, 1),
        "generating_bound_mib": round(
            (2 * first + cache + batch_tokens * position + masks + fixed) / MIB, 1
        ),
        "textbook_mib": round(2 * 4 * BATCH_ROWS * (24 + size.length) * size.vocabulary / MIB, 1),
    }


def _model(size: Size) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model(torch.ones(1, 8, dtype=torch.long))  # loads what the first pass loads
    return model


class _Tokenizer:
    """Texts are not looked at."""

    pad_token_id = 0
    eos_token_id = None

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, tokens))


def in_own_process(size: Size) -> dict[str, Any]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(asdict(size))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process of {size} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def is_bounded(point: dict[str, Any]) -> bool:
    """Both stages stay below their bounds."""
    return bool(
        point["scoring_mib"] <= point["scoring_bound_mib"]
        and point["generating_mib"] <= point["generating_bound_mib"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a peak is above its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--smallest", action="store_true", help="two small sizes only")
    parser.add_argument("--output", type=Path, help="file for the result")
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(measure(Size(**json.loads(given.one)))))
        return 0
    facts = machine_facts()
    points: dict[str, list[dict[str, Any]]] = {}
    for axis, sizes in (SMALLEST if given.smallest else AXES).items():
        points[axis] = []
        for size in sizes:
            found = in_own_process(size)
            points[axis].append(found)
            print(
                f"{axis:10} V {found['vocabulary']:7} length {found['length']:4} rows "
                f"{found['rows']:4}: scoring {found['scoring_mib']:7.1f} of "
                f"{found['scoring_bound_mib']:7.1f} MiB, generating "
                f"{found['generating_mib']:7.1f} of {found['generating_bound_mib']:7.1f}, "
                f"textbook logits {found['textbook_mib'] * MIB / GIB:6.2f} GiB",
                flush=True,
            )
    bounded = all(is_bounded(point) for found in points.values() for point in found)
    path = save_result(
        "evaluation-memory",
        {"kind": "evaluation memory", "bounded": bounded, "axes": points},
        path=given.output,
        facts=facts,
    )
    print(f"{'Every peak is below its bound.' if bounded else 'A BOUND IS BROKEN.'} {path}")
    return int(not bounded)


if __name__ == "__main__":
    sys.exit(main())
