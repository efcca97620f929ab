"""How time and memory of a training step grow: rows, answer length, vocabulary, model, streams.

    python perf/growth.py                       # everything, about five minutes on two cores
    python perf/growth.py --axis rows --axis streams
    python perf/growth.py --smallest --output /tmp/x.json

Every point trains a Llama built from a config for a few steps with the real trainer, in a process
of its own. Time is the median of its steps. Memory is the largest resident size, and of that the
part above libraries, weights, gradients and optimiser state. The exponent is the slope of a line
through the logarithms: 1 is proportional, 0 is flat.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from common import machine_facts, save_result
from growth_points import Point, axes, measure

MEMORY_PER_LOGIT = 0.1
"""Memory is called flat where it grows by less than this share of what the logits grow by."""

TOLERANCE = 0.15


class Fit(NamedTuple):
    """Growth of one quantity along an axis.

    Attributes:
        exponent: Slope of the logarithms; None for fewer than two points above 0.
        misfit: Largest relative distance of a point from the straight line `a + b x`.
        verdict: "linear", "below linear" (a fixed part is large) or "above linear".
    """

    exponent: float | None
    misfit: float
    verdict: str


def fit(xs: Sequence[float], ys: Sequence[float]) -> Fit:
    """Exponent and verdict for values at increasing places.

    Growth is linear if the exponent is 1 within `TOLERANCE`, or if it is below that and a straight
    line with a fixed part meets all points within `TOLERANCE`: a step has work that does not depend
    on its tokens, such as that of the optimiser.
    """
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    if len(pairs) < 2:
        return Fit(None, 0.0, "not measured")
    exponent, _ = _line([math.log(x) for x, _ in pairs], [math.log(y) for _, y in pairs])
    slope, start = _line([x for x, _ in pairs], [y for _, y in pairs])
    misfit = max(abs(start + slope * x - y) / y for x, y in pairs)
    straight = misfit <= TOLERANCE and slope > 0
    if exponent > 1 + TOLERANCE:
        verdict = "above linear"
    elif exponent >= 1 - TOLERANCE:
        verdict = "linear"
    else:
        verdict = "linear with a fixed part" if straight else "below linear"
    return Fit(exponent, misfit, verdict)


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and start of the line of least squares."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return slope, mean_y - slope * mean_x


def memory_per_logit(points: Sequence[dict[str, Any]]) -> float:
    """Growth of memory above the state, as a share of that of all logits in float32."""
    logits = points[-1]["logits_gib"] - points[0]["logits_gib"]
    return float((points[-1]["above_state_gib"] - points[0]["above_state_gib"]) / logits)


def in_own_process(point: Point) -> dict[str, Any]:
    """`measure` in a fresh process.

    Raises:
        RuntimeError: It failed; has what it said.
    """
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{point} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(axis: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Exponents of an axis: of time over the axis, of time over tokens, of memory."""
    xs = [point["x"] for point in points]
    found = {
        name: fit(xs, [point[name] for point in points])._asdict()
        for name in ("seconds", "above_state_gib")
    }
    if axis in ("rows", "answer_length", "streams"):
        tokens = [point["tokens"] for point in points]
        found["seconds_by_tokens"] = fit(tokens, [point["seconds"] for point in points])._asdict()
    if axis.startswith("vocabulary"):
        share = memory_per_logit(points) if len(points) > 1 else 0.0
        found["memory_per_logit"] = {"share": share, "flat": share <= MEMORY_PER_LOGIT}
    return found


def show(axis: str, points: Sequence[dict[str, Any]], fits: dict[str, Any]) -> None:
    """Print an axis."""
    print(f"\n{axis}")
    print(f"  {'x':>12} {'tokens':>7} {'seconds':>9} {'peak GiB':>9} {'above':>8} {'logits':>8}")
    for point in points:
        print(
            f"  {point['x']:>12.6g} {point['tokens']:>7} {point['seconds']:>9.3f} "
            f"{point['peak_gib']:>9.3f} {point['above_state_gib']:>8.3f} "
            f"{point['logits_gib']:>8.3f}"
        )
    for name, found in fits.items():
        if name == "memory_per_logit":
            verdict = "flat" if found["flat"] else "NOT flat"
            print(f"  memory grows by {found['share']:.1%} of what the logits do: {verdict}")
        elif found["exponent"] is not None:
            print(f"  {name}: exponent {found['exponent']:.2f}, {found['verdict']}")


def main() -> int:
    """Measure, print, write JSON; the exit code is 0 unless memory follows the logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", action="append", choices=list(axes(1)), help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="steps of a point that count")
    parser.add_argument("--smallest", action="store_true", help="the smallest point of each axis")
    parser.add_argument("--output", type=Path, help="default: perf/results/growth.json")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print(json.dumps(measure(Point(**json.loads(given.point)))))
        return 0
    started = time.monotonic()
    facts = machine_facts()
    measured: dict[str, list[dict[str, Any]]] = {}
    slopes: dict[str, dict[str, Any]] = {}
    for axis, points in axes(given.repeats).items():
        if given.axis and axis not in given.axis:
            continue
        chosen = points[:1] if given.smallest else points
        measured[axis] = [in_own_process(point) for point in chosen]
        slopes[axis] = summary(axis, measured[axis])
        show(axis, measured[axis], slopes[axis])
    result = {"axes": measured, "slopes": slopes, "seconds": round(time.monotonic() - started)}
    path = save_result("growth", result, path=given.output, facts=facts)
    print(f"\n{result['seconds']} s; written to {path}")
    bad = [axis for axis, found in slopes.items() if not _is_flat(found)]
    if bad:
        print(f"memory follows the logits on: {', '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


def _is_flat(found: dict[str, Any]) -> bool:
    return bool(found.get("memory_per_logit", {"flat": True})["flat"])


if __name__ == "__main__":
    sys.exit(main())
