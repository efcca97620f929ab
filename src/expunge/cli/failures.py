"""From exceptions to one message on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from expunge.core.errors import ExpungeError
from expunge.run.environment import process_rank

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + the number of the signal."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn what a user can cause into a message and an exit code; bugs keep their traceback.

    With EXPUNGE_DEBUG=1 the traceback is shown as well.
    """
    try:
        yield
    except ExpungeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command resumes where there is a checkpoint", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as in `expunge list | head`: nothing to say.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise typer.Exit(1) from None
    except OSError as error:
        _fail(explain_os_error(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(
            "out of memory. Lower training.micro_batch_size or evaluation.batch_tokens (neither "
            "changes results), or use lora={} or training.gradient_checkpointing=true",
            1,
        )


class Verbs(TyperGroup):
    """The group of all verbs, with errors reported."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with reported():
            return super().invoke(ctx)


def explain_os_error(error: OSError) -> str:
    """What the system refused, and on which file."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on an accelerator or in the machine."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def _fail(message: str, code: int) -> None:
    rank = process_rank()
    if os.environ.get("EXPUNGE_DEBUG") == "1":
        traceback.print_exc()
    if rank == 0:
        typer.echo(f"Error: {message}", err=True)
    else:
        # The main process has most likely said the same; enough to see if it has not.
        typer.echo(f"Error in process {rank}: {message.splitlines()[0]}", err=True)
    raise typer.Exit(code) from None
