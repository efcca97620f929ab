"""Expunge: remove chosen training data from a language model and show what was removed.

The names below are imported on first use, so `import expunge` stays light and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.core.errors import ExpungeError, InputError, RunError
    from expunge.data import load_rows
    from expunge.methods import parse as parse_method
    from expunge.run.api import evaluate, finetune, unlearn
    from expunge.run.config import RunConfig
    from expunge.run.resolve import load_config
    from expunge.training.budget import Budget

__all__ = [
    "Budget",
    "ExpungeError",
    "InputError",
    "RunConfig",
    "RunError",
    "__version__",
    "evaluate",
    "finetune",
    "load_config",
    "load_rows",
    "parse_method",
    "unlearn",
]

_HOME = {
    "Budget": ("expunge.training.budget", "Budget"),
    "ExpungeError": ("expunge.core.errors", "ExpungeError"),
    "InputError": ("expunge.core.errors", "InputError"),
    "RunConfig": ("expunge.run.config", "RunConfig"),
    "RunError": ("expunge.core.errors", "RunError"),
    "evaluate": ("expunge.run.api", "evaluate"),
    "finetune": ("expunge.run.api", "finetune"),
    "load_config": ("expunge.run.resolve", "load_config"),
    "load_rows": ("expunge.data", "load_rows"),
    "parse_method": ("expunge.methods", "parse"),
    "unlearn": ("expunge.run.api", "unlearn"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("expunge")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "0+unknown"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
