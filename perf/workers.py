"""One process per side, told over a pipe when to do a step: memory is per process, and while one
works the other waits."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

from sides import Ready, Step
from works import Spec


class WorkerError(RuntimeError):
    """A worker failed; has its traceback."""


class Worker:
    """A side in a process of its own.

    Args:
        spec: What it does.
    """

    def __init__(self, spec: Spec) -> None:
        self._process, self._pipe = _start(_work, spec)
        self.facts: Ready = self._receive()

    def step(self) -> Step:
        """Let it do its next step."""
        self._pipe.send(True)
        found: Step = self._receive()
        return found

    def close(self) -> None:
        """End it."""
        _end(self._process, self._pipe)

    def _receive(self) -> Any:
        return _answer(self._pipe)


class CeilingWorker:
    """The machine's limit, measured in a process like those of the sides.

    Args:
        spec: For its number of threads and its precision.
        facts: Of a side: shapes and sizes.
    """

    def __init__(self, spec: Spec, facts: Ready) -> None:
        self._process, self._pipe = _start(_measure, (spec, facts))

    def measure(self) -> Any:
        """A `Ceiling`."""
        self._pipe.send(True)
        return _answer(self._pipe)

    def close(self) -> None:
        """End it."""
        _end(self._process, self._pipe)


class _PipeGate:
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def ready(self, facts: Ready) -> None:
        self.pipe.send(facts)

    def go(self) -> bool:
        return bool(self.pipe.recv())

    def report(self, step: Step) -> None:
        self.pipe.send(step)


def _work(pipe: Connection, spec: Spec) -> None:
    from sides import prepare, run

    with _Errors(pipe):
        run(spec, prepare(spec), _PipeGate(pipe))


def _measure(pipe: Connection, given: tuple[Spec, Ready]) -> None:
    import torch
    from ceiling import Products, measure_ceiling

    spec, facts = given
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    middle = sorted(facts.tokens)[len(facts.tokens) // 2]
    products = Products(shape=facts.shape, tokens=middle.real, answers=middle.answers)
    dtype = torch.float32 if spec.precision == "fp32" else torch.bfloat16
    with _Errors(pipe):
        while pipe.recv():
            pipe.send(measure_ceiling(dtype, products))


class _Errors:
    """Sends what was raised to the other end; a closed pipe is the end of the work."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            return False
        if not isinstance(error, EOFError | BrokenPipeError | KeyboardInterrupt):
            self.pipe.send("".join(traceback.format_exception(error)))
        return True


def _start(target: Any, given: Any) -> tuple[Any, Connection]:
    # Not forked: a fork would share the libraries' pages and threads with its parent.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, given), daemon=True)
    process.start()
    there.close()
    return process, here


def _answer(pipe: Connection) -> Any:
    try:
        found = pipe.recv()
    except EOFError:
        raise WorkerError("a worker died without a word; was there enough memory?") from None
    if isinstance(found, str):
        raise WorkerError(found)
    return found


def _end(process: Any, pipe: Connection) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself
        pipe.send(False)
    pipe.close()
    process.join(timeout=30)
    if process.is_alive():
        process.terminate()
        process.join()
