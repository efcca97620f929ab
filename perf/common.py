"""What all measurements share: the class of machine, ratios of pairs, peak memory, real rows.

Single times move by a factor of two from run to run, so nothing here is a time by itself: two sides
do the same work in turn and the ratio of every pair is one measurement.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.core.files import atomic_write_text
from expunge.run.environment import machine, peak_memory_bytes, versions

if TYPE_CHECKING:
    from expunge.data import RowSet, Streams, Template

RESULTS = Path(__file__).resolve().parent / "results"
"""Where committed results lie, one JSON file per measurement."""

GIB = 2**30

_VERSIONS = ("python", "expunge", "torch", "transformers", "accelerate", "peft", "numpy")


# Numbers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Smallest, middle and largest of `n` measurements."""

    min: float
    median: float
    max: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no measurements: nothing to take the median of")
    return Spread(min=min(values), median=statistics.median(values), max=max(values), n=len(values))


class Pair(NamedTuple):
    """The same work done by both sides right after each other; seconds."""

    naive: float
    ours: float


def alternate(
    naive: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    repeats: int,
    warmup: int = 1,
    pause: float = 0.05,
) -> list[Pair]:
    """Do both in turn, naive first, and time each: A B A B ...

    Args:
        naive: One piece of work of the comparator. A number it returns is its time in seconds,
            measured by itself; otherwise the call is timed.
        ours: The same work.
        repeats: Pairs, at least 1.
        warmup: Pairs before them that do not count.
        pause: Seconds between two pieces, in which spinning threads of the last one go to sleep.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one pair is needed")
    pairs = []
    for _ in range(warmup + repeats):
        first = _timed(naive)
        time.sleep(pause)
        second = _timed(ours)
        time.sleep(pause)
        pairs.append(Pair(naive=first, ours=second))
    return pairs[warmup:]


def ratios(pairs: Sequence[Pair]) -> Spread:
    """How many times faster ours is, over the pairs; above 1 is better."""
    return spread([pair.naive / pair.ours for pair in pairs])


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - started
    return found if isinstance(found, float) else seconds


# Origin -----------------------------------------------------------------------------------------


def machine_facts() -> dict[str, Any]:
    """The class of machine without names and paths: processor, cores, threads, memory."""
    import torch

    found = machine()
    memory = found.pop("memory_bytes")
    return {
        **found,
        "memory_gib": None if memory is None else round(memory / GIB, 1),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": _load_average(),
    }


def library_versions() -> dict[str, str]:
    """Versions of what can change a measurement."""
    found = versions()
    return {name: found[name] for name in _VERSIONS if name in found}


def save_result(
    name: str,
    result: Mapping[str, Any],
    *,
    path: Path | None = None,
    command: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a result with its origin to `perf/results/NAME.json`; returns the file.

    Args:
        name: Name of the measurement.
        result: What was measured; numbers, texts, lists and mappings, and `Spread`s.
        path: Another file.
        command: What was called; the command line of this process by default.
        facts: Class of machine where another process measured; this one's by default.
    """
    target = RESULTS / f"{name}.json" if path is None else path
    whole = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command or command_line(),
        "machine": dict(machine_facts() if facts is None else facts),
        "versions": library_versions(),
        **result,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target, json.dumps(whole, indent=2, default=_plain) + "\n")
    return target


def load_result(path: Path) -> dict[str, Any]:
    """A result as `save_result` wrote it."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def command_line(hide: Sequence[str] = ("--output",)) -> str:
    """How this process was called, with the script's path inside the repository.

    Args:
        hide: Flags that are left out with their value: paths of one machine, which change nothing.
    """
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    shown = script.relative_to(root) if script.is_relative_to(root) else Path(script.name)
    words = list(sys.argv[1:])
    for flag in hide:
        words = without_flag(words, flag)
    return " ".join(["python", shown.as_posix(), *words])


def without_flag(words: Sequence[str], flag: str) -> list[str]:
    """A command line without one flag and its value."""
    kept, skip = [], False
    for word in words:
        if not skip and word != flag and not word.startswith(f"{flag}="):
            kept.append(word)
        skip = not skip and word == flag
    return kept


def _load_average() -> float | None:
    """Processes that wanted a core over the last minute; far above 0 before a run means noise."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


# Memory -----------------------------------------------------------------------------------------


def reset_peak() -> bool:
    """Forget the peak so far, so that the next one is that of the work to come.

    Freed memory goes back to the system first, which loading a model leaves behind.

    Returns:
        False where the system cannot do that (only Linux can): the peak is then that of the whole
        life of the process.
    """
    gc.collect()
    _trim()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Largest resident size since `reset_peak` in bytes, shared libraries included."""
    found = _status("VmHWM")
    return (peak_memory_bytes() or 0) if found is None else found


def resident_bytes() -> int:
    """Resident size now in bytes; 0 where the system does not say."""
    return _status("VmRSS") or 0


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in lines.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _trim() -> None:
    """Give freed memory back, where the C library is glibc."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# Rows -------------------------------------------------------------------------------------------

MODEL = "builtin:smollm2-135m-instruct"
"""The embedded model, SmolLM2-135M-Instruct."""

NUM_RETAIN = 40
"""Retain rows, as many as the demo has. Only EGU and EGUP see the number: they embed all of them
once per epoch."""

MAX_LENGTH = 512


class TofuRows(NamedTuple):
    """The rows of a measurement; one proxy answer per forget row."""

    forget: RowSet
    retain: RowSet
    proxies: list[str]


def tofu_rows(num_retain: int = NUM_RETAIN) -> TofuRows:
    """TOFU forget01 and the first rows of retain99; proxies are TOFU's first wrong answers.

    A wrong answer of the same form as the right one is as long as a written proxy, and length is
    all that a measurement of time and memory sees of it.
    """
    from expunge.data import load_rows
    from expunge.data.tofu import load_tofu

    return TofuRows(
        load_rows("tofu:forget01", name="forget"),
        load_rows(f"tofu:retain99[0:{num_retain}]", name="retain"),
        [row["perturbed_answer"][0] for row in load_tofu("forget01_perturbed")],
    )


def template_of(model: str = MODEL) -> Template:
    """The chat template of a model with its tokenizer."""
    from expunge.data import make_template
    from expunge.models.loading import load_tokenizer

    return make_template(load_tokenizer(model), "auto")


def encoded(rows: TofuRows, template: Template) -> Streams:
    """The rows as tokens."""
    from expunge.data import Streams

    return Streams(
        rows.forget,
        rows.retain,
        template=template,
        max_length=MAX_LENGTH,
        proxy_answers=rows.proxies,
    )


def pad_id(template: Template) -> int:
    """Filling of short rows."""
    found = template.tokenizer.pad_token_id
    return found if isinstance(found, int) else 0
