"""The command line: thin verbs over `expunge.run`, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None: those of this process.

    Returns:
        Exit code: 0, 1 for a failed run, 2 for bad input, 130 when interrupted.
    """
    from expunge.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        # Generations hold any character; a terminal that lacks one must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(args=None if argv is None else list(argv), prog_name="expunge")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
