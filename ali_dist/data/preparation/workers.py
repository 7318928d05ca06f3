"""Write shards in several processes, each of which is sent the samples of one shard at a time.

Processes, because drawing, cropping and tars hold the interpreter lock; one shard at a time, so that memory stays
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

_ADVANCE_EVERY = 32  # samples between two messages of progress
NumberedSamples = Iterator[tuple[int, ShardSamples]]
NumberedShard = tuple[int, FinishedShard]


def write_in_processes(
    shards: NumberedSamples, task: ShardTask, jobs: int, advance: Callable[[int], None]
) -> Iterator[NumberedShard]:
    """Write shards, in this process or in several.

    Args:
        shards: The number and the samples of each shard.
        task: How shards are written.
        jobs: Processes at work; with 1, only this one.
        advance: Called with the number of samples just read.

    Yields:
        The number of each shard and what it holds, in the order in which they are finished.

    Raises:
        InputError: A sample cannot be used, or a process was killed.
    """
    if jobs == 1:
        for number, samples in shards:
            yield number, task.write_samples(number, samples, advance)
        return
    workers = _start_workers(task, jobs)
    try:
        yield from _hand_out_shards(shards, list(workers), advance)
    finally:
        for pipe, process in workers.items():
            pipe.close()
            process.terminate()  # it is idle, or of no more use: a shard that it has not finished has no record
        for process in workers.values():
            process.join()


def _start_workers(task: ShardTask, jobs: int) -> dict[Connection, BaseProcess]:
    """Start processes and return them by our end of their pipe.

    They are spawned: a fork would copy locks that threads hold, and the pipes of the others.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    for _ in range(jobs):
        our_end, their_end = context.Pipe()
        process = context.Process(target=_run_worker, args=(their_end, task), daemon=True)
        process.start()
        their_end.close()
        workers[our_end] = process
    return workers


def _hand_out_shards(
    shards: NumberedSamples, idle: list[Connection], advance: Callable[[int], None]
) -> Iterator[NumberedShard]:
    busy: dict[Connection, int] = {}
    while True:
        while idle and (numbered := next(shards, None)) is not None:
            pipe = idle.pop()
            with _explain_lost_worker():
                pipe.send(numbered)
            busy[pipe] = numbered[0]
        if not busy:
            return
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            with _explain_lost_worker():
                message = ready.recv()
            if isinstance(message, int):
                advance(message)
            elif isinstance(message, FinishedShard):
                idle.append(ready)
                yield busy.pop(ready), message
            else:
                raise message


@contextmanager
def _explain_lost_worker() -> Iterator[None]:
    """Turn the end of a pipe into an error that says what may have happened at the other end."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise InputError(
            "A process that writes shards was killed (out of memory?): run the same command with a smaller --jobs or "
            "--shard-mb to go on."
        ) from error


def _run_worker(pipe: Connection, task: ShardTask) -> None:
    """Write the shards of all samples that arrive, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the command ends its processes
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, samples = pipe.recv()
            try:
                finished = task.write_samples(number, samples, _BatchedCounter(pipe).count_samples)
            except (InputError, StorageError) as error:
                pipe.send(error)
            else:
                pipe.send(len(samples) % _ADVANCE_EVERY)
                pipe.send(finished)


class _BatchedCounter:
    """Sends progress now and then: a message for each sample would cost more than some samples do."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._unsent = 0

    def count_samples(self, samples: int) -> None:
        """Count samples that were read."""
        self._unsent += samples
        if self._unsent >= _ADVANCE_EVERY:
            self._pipe.send(self._unsent)
            self._unsent = 0
