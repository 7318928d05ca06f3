"""Shards written by several processes, each of which is sent one part at a time.

Processes, because drawing, cropping and tars hold the interpreter lock; one part at a time, so that memory stays
bounded; pipes, because their end tells a process that the other side is gone, however it died.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ali_dist.data.preparation.shard_task import FinishedShard, ShardTask
from ali_dist.data.sources.base import ShardSamples
from ali_dist.errors import InputError, StorageError

_COUNT_EVERY = 32  # samples between two messages of progress
Parts = Iterator[tuple[int, ShardSamples]]
Done = tuple[int, FinishedShard]


def write_in_processes(parts: Parts, task: ShardTask, jobs: int, count: Callable[[int], None]) -> Iterator[Done]:
    """Write parts as shards, in this process or in several; yields the number of each that is done, in any order.

    Args:
        parts: number of a shard and its samples.
        task: how shards are written.
        jobs: processes at work; with 1, this one.
        count: called with the number of samples just read.

    Raises:
        InputError: a sample cannot be used, or a process was killed.
    """
    if jobs == 1:
        for number, part in parts:
            yield number, task.write(number, part, count)
        return
    workers = _start_workers(task, jobs)
    try:
        yield from _hand_out_shards(parts, list(workers), count)
    finally:
        for pipe, process in workers.items():
            pipe.close()
            process.terminate()  # idle, or of no more use: what it has not finished is not there
        for process in workers.values():
            process.join()


def _start_workers(task: ShardTask, jobs: int) -> dict[Connection, BaseProcess]:
    """Processes by our end of their pipe. Spawned: a fork would copy locks that threads hold, and every pipe."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    for _ in range(jobs):
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_worker, args=(theirs, task), daemon=True)
        process.start()
        theirs.close()
        workers[ours] = process
    return workers


def _hand_out_shards(parts: Parts, idle: list[Connection], count: Callable[[int], None]) -> Iterator[Done]:
    busy: dict[Connection, int] = {}
    while True:
        while idle and (item := next(parts, None)) is not None:
            pipe = idle.pop()
            with _explain_lost_worker():
                pipe.send(item)
            busy[pipe] = item[0]
        if not busy:
            return
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            with _explain_lost_worker():
                message = ready.recv()
            if isinstance(message, int):
                count(message)
            elif isinstance(message, FinishedShard):
                idle.append(ready)
                yield busy.pop(ready), message
            else:
                raise message


@contextmanager
def _explain_lost_worker() -> Iterator[None]:
    """The end of a pipe as an error that says what may have happened at the other end."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise InputError(
            "A process that writes shards was killed (out of memory?): run the same command with a smaller --jobs or "
            "--shard-mb to go on."
        ) from error


def _run_worker(pipe: Connection, task: ShardTask) -> None:
    """Write every part that arrives, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C goes to the whole group; the command ends its processes
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, part = pipe.recv()
            try:
                done = task.write(number, part, _BatchedCounter(pipe).count)
            except (InputError, StorageError) as error:
                pipe.send(error)
            else:
                pipe.send(len(part) % _COUNT_EVERY)
                pipe.send(done)


class _BatchedCounter:
    """Sends progress now and then: a message for each sample would cost more than some samples."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._waiting = 0

    def count(self, samples: int) -> None:
        """Note samples that were read."""
        self._waiting += samples
        if self._waiting >= _COUNT_EVERY:
            self._pipe.send(self._waiting)
            self._waiting = 0
