"""Run a function in several real processes that talk over gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `fn(rank, *args)` in `world_size` processes and return what each of them returned.

    Args:
        fn: A function at module level; its result is sent back, so it should be small.
        world_size: Number of processes.
        args: Passed on to `fn`.
    """
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    port = _free_port()
    processes = [
        context.Process(target=_member, args=(fn, rank, world_size, port, results, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    collected = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    failed = [value for value in collected.values() if isinstance(value, _Failure)]
    if failed:
        raise RuntimeError(failed[0].text)
    return [collected[rank] for rank in range(world_size)]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _member(
    fn: Callable[..., Any], rank: int, world_size: int, port: int, results: Any, args: Any
) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    torch.set_num_threads(1)
    try:
        results.put((rank, fn(rank, *args)))
    except BaseException:  # noqa: BLE001 - it is raised again in the parent
        import traceback

        results.put((rank, _Failure(traceback.format_exc())))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
