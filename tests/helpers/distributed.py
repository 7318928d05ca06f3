"""Run a function in several processes that form one gloo group, and collect what each of them returns.

    def add_up(rank: int, start: int) -> float:
        total = torch.tensor(float(start + rank))
        dist.all_reduce(total)
        return total.item()

    assert run_distributed(add_up, 3, 10) == [33.0, 33.0, 33.0]

The function must lie at the top level of a module, because each rank is a process that imports it. It is forked from a
server that has imported PyTorch and nothing else has happened to: to import it in every rank took most of a test.
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
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_IMPORTED_ONCE = ["pytest", "torch", "ali_dist.training.loop"]
# Once one rank has failed, the others have this many seconds to report how they ended: often "connection reset".
GRACE_SECONDS = 3.0


class DistributedError(AssertionError):
    """A rank raised, died or hung; the message says what is known of every rank."""


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `fn(rank, *args)` for every rank, each in a process of its own, in one gloo group.

    The ranks meet over the loopback interface by way of a file, so that no port can be taken. Each of them computes
    with one thread and has the environment of this process. When this function returns or raises, no rank is left.

    Args:
        fn: A top-level function; what it returns is pickled by value, tensors included.
        world_size: The number of ranks.
        args: The same for every rank; they must be picklable.
        timeout: Seconds for everything, including the start of the interpreters.

    Returns:
        What each rank returned, in the order of ranks.

    Raises:
        DistributedError: A rank raised, died or hung; the message has each rank's traceback or state, with the first
            failure first.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)  # without effect once the server runs
    with tempfile.TemporaryDirectory(prefix="ali-group-") as folder:
        store = str(Path(folder) / "store")
        processes: list[ForkServerProcess] = []
        pipes: list[Connection] = []
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main,
                    args=(sender, fn, rank, world_size, store, timeout, args, dict(os.environ)),
                    daemon=True,
                )
                process.start()
                sender.close()  # the rank then has the only copy, so that its death ends the pipe
                processes.append(process)
                pipes.append(receiver)
            return _collect(processes, pipes, timeout)
        finally:
            for process in processes:
                process.kill()  # does nothing to those that have ended
                process.join()
            for pipe in pipes:
                pipe.close()


def _collect(processes: Sequence[ForkServerProcess], pipes: Sequence[Connection], timeout: float) -> list[Any]:
    """Wait for the result of every rank.

    Raises:
        DistributedError: A rank failed, or the time is over; not every other rank is waited for.
    """
    results: dict[int, Any] = {}
    failures: dict[int, tuple[float, str]] = {}  # when (on the clock that all processes share) and how
    pending = set(range(len(pipes)))
    deadline = time.monotonic() + timeout
    while pending:
        ready = wait([pipes[rank] for rank in pending], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for rank in [rank for rank in pending if pipes[rank] in ready]:
            pending.remove(rank)
            try:
                ended_at, succeeded, value = pickle.loads(pipes[rank].recv_bytes())
            except EOFError:
                processes[rank].join(GRACE_SECONDS)
                ended_at = time.monotonic()
                succeeded = False
                value = f"died, exit code {processes[rank].exitcode}"
            if succeeded:
                results[rank] = value
            else:
                failures[rank] = ended_at, value
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if len(results) == len(pipes):
        return [results[rank] for rank in range(len(pipes))]
    lines = [] if failures else [f"after {timeout:g} s:"]
    lines += [f"rank {rank} {text}" for rank, (_, text) in sorted(failures.items(), key=lambda failure: failure[1])]
    lines += [f"rank {rank} returned" for rank in sorted(results)]
    lines += [f"rank {rank} was still running and was killed" for rank in sorted(pending)]
    raise DistributedError("\n".join(lines))


def _rank_main(
    sender: Connection,
    fn: Callable[..., Any],
    rank: int,
    world_size: int,
    store: str,
    timeout: float,
    args: tuple[Any, ...],
    environment: dict[str, str],
) -> None:
    """Be one rank: join the group, call the function, and send its result or its traceback."""
    os.environ.clear()
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
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
