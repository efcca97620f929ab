"""Compare Expunge with the textbook implementation on the same steps, in turn, in one run.

    python perf/run.py --vs naive --work all --precision both
    python perf/run.py --docs

Each side is a process of its own; they never work at the same time. First the float32 losses of
three steps have to agree to 1e-5, else there is no ratio. The machine should have nothing else to
do. The result is written to perf/results/ and drawn into docs/performance.md by `--docs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from common import MODEL, command_line, machine_facts, save_result
from comparing import Comparison, Refused, Settings
from make_docs import write_docs
from works import LEARNING_RATE, WORKS, Precision


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every work has its numbers, 1 if some were refused."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.vs is None and not given.docs:
        parser.error("say what to do: --vs naive, --docs or both")
    code = 0
    if given.vs is not None:
        facts = machine_facts()
        lines = _measure(given)
        name = _name(given)
        path = save_result(
            name,
            {"kind": "steps", "vs": given.vs, "settings": _described(given), "works": lines},
            path=given.output,
            facts=facts if given.threads is None else {**facts, "threads": given.threads},
            command=command_line(hide=("--output", "--model")),
        )
        print(f"\nWritten: {path}")
        code = int(any("refused" in line for line in lines))
    if given.docs:
        print(f"Drawn: {write_docs()}")
    return code


def _measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    settings = Settings(
        rows=given.rows,
        repeats=given.repeats,
        model=given.model,
        attention={"naive": given.naive_attention, "ours": given.attention},
        doubled=given.naive == "released",
        options=dict(_option(text) for text in given.set),
        learning_rate=given.learning_rate,
        threads=given.threads,
    )
    comparison = Comparison(settings)
    lines = []
    for precision in _precisions(given.precision):
        for work in WORKS.values():
            if given.work not in ("all", work.name):
                continue
            print(
                f"\n{work.title}, {precision}, {settings.rows * work.rows_factor} rows per stream"
            )
            try:
                line = comparison.measure(work, precision)
            except Refused as error:
                line = {"work": work.name, "title": work.title, "precision": precision}
                line["refused"] = str(error)
            print("\n".join(summary(line)), flush=True)
            lines.append(line)
    return lines


def summary(line: dict[str, Any]) -> list[str]:
    """What the console says about a work."""
    if "refused" in line:
        return [f"  refused: {line['refused']}"]
    found = [f"  losses agree to {line['trajectory']['difference']:.1e}"]
    if "ratio" in line:
        ratio, ours, naive = line["ratio"], line["seconds"]["ours"], line["seconds"]["naive"]
        share, target = line["share"]["ours"], line["target"]
        floor = "" if target is None else f", floor {target:g}x"
        ceiling = line["ceiling_gflops"]["square"]["median"]
        found += [
            f"  ratio {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}, "
            f"{ratio['n']} pairs; higher is better{floor})",
            f"  medians: naive {naive['median']:.2f} s, ours {ours['median']:.2f} s",
            f"  useful {line['useful_gflop']:.0f} GFLOP; ceiling {ceiling:.0f} GFLOP/s; share "
            f"{share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%}), of the best "
            f"ceiling {line['share_of_best']['ours']:.0%}",
        ]
    used = line["memory"]
    found.append(
        f"  peak: naive {used['naive']['peak_gib']:.2f} GiB, ours {used['ours']['peak_gib']:.2f} "
        f"GiB; above weights, gradients and moments {used['share_above']:.0%} of naive's (lower is "
        "better)"
    )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vs", choices=["naive"], help="what to compare with")
    parser.add_argument("--docs", action="store_true", help="draw the results into the docs")
    parser.add_argument("--work", choices=["all", *WORKS], default="all")
    parser.add_argument("--precision", choices=[*get_args(Precision), "both"], default="both")
    parser.add_argument("--rows", type=_positive, default=4, help="rows per stream and step")
    parser.add_argument("--repeats", type=_positive, default=9, help="timed pairs per work")
    parser.add_argument(
        "--naive",
        choices=["textbook", "released"],
        default="textbook",
        help="released: also compute the losses that open-unlearning computes and does not use",
    )
    parser.add_argument("--naive-attention", default="sdpa", help="attention of the comparator")
    parser.add_argument("--attention", default="eager", help="attention of Expunge's model")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="training option of Expunge"
    )
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument(
        "--threads", type=_positive, help="threads of torch; its own choice if none"
    )
    parser.add_argument("--model", default=MODEL, help="another model folder")
    parser.add_argument("--output", type=Path, help="another file than perf/results/...")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _option(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise SystemExit(f"--set {text}: write it as KEY=VALUE")
    return name, yaml.safe_load(value)


def _precisions(text: str) -> tuple[Precision, ...]:
    return ("fp32", "bf16") if text == "both" else (text,)  # type: ignore[return-value]


def _name(given: argparse.Namespace) -> str:
    parts = ["steps"]
    parts += [] if given.work == "all" else [given.work]
    parts += [] if given.precision == "both" else [given.precision]
    return "_".join(parts)


def _described(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "rows": given.rows,
        "repeats": given.repeats,
        "naive": given.naive,
        "attention": {"naive": given.naive_attention, "ours": given.attention},
        "options": dict(_option(text) for text in given.set),
        "learning_rate": given.learning_rate,
        "model": given.model if given.model == MODEL else Path(given.model).name,
    }


if __name__ == "__main__":
    sys.exit(main())
