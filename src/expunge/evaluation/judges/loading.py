"""What loading a judge can run into, as a message."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from expunge.core.errors import InputError
from expunge.models.quiet import no_progress_bars


@contextlib.contextmanager
def explain_failure(name: str) -> Iterator[None]:
    """Turn whatever a library says against a judge's files into an `InputError`; no bars meanwhile.

    Args:
        name: The judge.
    """
    from safetensors import SafetensorError

    kinds = (OSError, ValueError, ImportError, RuntimeError, LookupError, TypeError)
    try:
        with no_progress_bars():
            yield
    except InputError:
        raise
    except (*kinds, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            text = "needs Python code of its own, which is never run for a judge; name another"
        else:
            text = f"cannot be loaded: {str(error).strip() or type(error).__name__}"
        raise InputError(f"{name}: {text}") from error
