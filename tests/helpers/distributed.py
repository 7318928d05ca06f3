"""Run a function in several processes that form one gloo group, and get what each of them returned.

    def total(rank: int, start: int) -> float:
        t = torch.tensor(float(start + rank))
        dist.all_reduce(t)
        return t.item()

    assert run_distributed(total, 3, 10) == [33.0, 33.0, 33.0]

The function must lie at the top level of a module, because each rank is a fresh interpreter that imports it.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

# Once one rank has failed, its peers get this long (in seconds) to say how they fared: often "connection reset".
GRACE_SECONDS = 3.0


class DistributedError(AssertionError):
    """A rank raised, died or never came back; the message holds what is known of every rank."""


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """`[fn(rank, *args) for rank in range(world_size)]`, each in a process of its own, in one gloo group.

    The group meets over the loopback interface by way of a file, so no port can be taken. Each rank computes with one
    thread. When this returns or raises, no process is left.

    Args:
        fn: top-level function, called as `fn(rank, *args)`; what it returns is pickled by value, tensors too.
        world_size: number of ranks.
        args: the same for every rank; must be picklable.
        timeout: seconds for everything, start of the interpreters included.

    Returns:
        What each rank returned, in rank order.

    Raises:
        DistributedError: a rank raised, died or hung; the message has each rank's traceback or state, first failure
            first.
    """
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="ali-group-") as folder:
        store = str(Path(folder) / "store")
        processes: list[SpawnProcess] = []
        pipes: list[Connection] = []
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main, args=(sender, fn, rank, world_size, store, timeout, args), daemon=True
                )
                process.start()
                sender.close()  # the rank's copy is the only one left, so its death ends the pipe
                processes.append(process)
                pipes.append(receiver)
            return _collect(processes, pipes, timeout)
        finally:
            for process in processes:
                process.kill()  # by pid; a no-op for those that have ended
                process.join()
            for pipe in pipes:
                pipe.close()


def _collect(processes: Sequence[SpawnProcess], pipes: Sequence[Connection], timeout: float) -> list[Any]:
    """Every rank's result, or DistributedError as soon as the outcome cannot be right any more."""
    results: dict[int, Any] = {}
    failures: dict[int, tuple[float, str]] = {}  # when (on the clock that all processes share) and how
    silent = set(range(len(pipes)))
    deadline = time.monotonic() + timeout
    while silent:
        ready = wait([pipes[rank] for rank in silent], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for rank in [rank for rank in silent if pipes[rank] in ready]:
            silent.remove(rank)
            try:
                when, ok, value = pickle.loads(pipes[rank].recv_bytes())
            except EOFError:
                processes[rank].join(GRACE_SECONDS)
                when, ok, value = time.monotonic(), False, f"died, exit code {processes[rank].exitcode}"
            if ok:
                results[rank] = value
            else:
                failures[rank] = when, value
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if len(results) == len(pipes):
        return [results[rank] for rank in range(len(pipes))]
    told = [f"rank {rank} {text}" for rank, (_, text) in sorted(failures.items(), key=lambda failure: failure[1])]
    told += [f"rank {rank} returned" for rank in sorted(results)]
    told += [f"rank {rank} was still running and was killed" for rank in sorted(silent)]
    raise DistributedError("\n".join(told if failures else [f"after {timeout:g} s:", *told]))


def _rank_main(
    sender: Connection,
    fn: Callable[..., Any],
    rank: int,
    world_size: int,
    store: str,
    timeout: float,
    args: tuple[Any, ...],
) -> None:
    """One rank, from joining the group to sending its result or its traceback."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=Path(store).as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        # Plain pickle copies tensors; torch's own would share memory that ends with this process.
        message = pickle.dumps((time.monotonic(), True, fn(rank, *args)))
    except BaseException:
        message = pickle.dumps((time.monotonic(), False, "raised\n" + traceback.format_exc()))
    sender.send_bytes(message)
    if dist.is_initialized():
        dist.destroy_process_group()
