"""Batches from shards that are read while training runs, by threads of the rank's own process.

Reading threads fetch and decode whole windows in the order in which batches will need them; one more thread cuts the
windows into batches. There are no other processes, so there is nothing to fork, and the number of threads changes
nothing.

Memory holds at most (lanes of the rank + 2 * READERS) windows and prefetch + 2 batches: the window that each lane is
in, READERS windows that are read ahead, and the encoded bytes of those that are being decoded.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.data.batch import DataBatch
from ali_dist.data.buffers import BufferPool
from ali_dist.data.order import DataOrder, Ids, Window, find_substitutes
from ali_dist.data.shards.reader import READERS, BadSamples, ShardReader, join_labels_of_runs
from ali_dist.errors import StorageError

_LOG = logging.getLogger(__name__)
_PAUSE_SECONDS = 5.0  # before a window is asked for again, after all repetitions of a request have failed
_JOIN_SECONDS = 2.0  # how long close() waits for threads that are in the middle of a read; they end by themselves later
_POLL_SECONDS = 0.2
_CLOSED = "this source of batches is closed"


class _LoadedWindow(NamedTuple):
    """The samples of a window in order of use.

    Attributes:
        window: The window.
        x: Samples [n, *shape].
        y: Labels [n] or [n, A], or None.
        ids: Sample ids [n].
        substitutions: A sentence for each position in the window at which a bad sample was replaced.
    """

    window: Window
    x: NDArray[Any]
    y: NDArray[Any] | None
    ids: Ids
    substitutions: dict[int, str]


class _ReadyBatch(NamedTuple):
    """A batch in host memory, with a sentence for each sample in it that was replaced."""

    x: Tensor
    y: Tensor | None
    ids: Ids
    substitutions: list[str]


class StreamSource:
    """Batches that are read ahead from storage.

    After an error in a thread, the batches before it still come out; then every `next` raises it.

    Args:
        reader: Reader of the split.
        order: Order of its samples.
        lanes: The rank's lanes.
        start_step: Global step of the first batch; windows that lie before it are not read.
        device: The device on which batches are needed.
        prefetch: Number of batches that are kept ready.
        substitute: Whether bad samples are replaced instead of ending the run.
        outage_seconds: How long a window is asked for again while the storage fails.
    """

    residency = "stream"

    def __init__(
        self,
        reader: ShardReader,
        order: DataOrder,
        lanes: range,
        *,
        start_step: int,
        device: torch.device,
        prefetch: int,
        substitute: bool,
        outage_seconds: float = 0.0,
    ) -> None:
        self.wait_seconds = 0.0
        self.substituted: list[str] = []
        self._reader = reader
        self._order = order
        self._lanes = lanes
        self._device = device
        self._substitute = substitute
        self._outage_seconds = outage_seconds
        self._windows = self._plan_windows(start_step)
        self._window_buffers = BufferPool(len(lanes) + READERS + 1)
        self._batch_buffers = BufferPool(prefetch + 2)  # in the queue, with the consumer, and being filled
        self._closed = threading.Event()
        self._task_lock = threading.Lock()  # so that no task follows the last ones, which close() adds
        self._error: BaseException | None = None
        self._tasks: queue.SimpleQueue[tuple[Window, Future[_LoadedWindow]] | None] = queue.SimpleQueue()
        self._pending: deque[Future[_LoadedWindow]] = deque()
        self._ready: queue.Queue[_ReadyBatch | BaseException] = queue.Queue(maxsize=prefetch)
        self._next: _ReadyBatch | BaseException | None = None  # taken from the queue, and not yet asked for
        self._threads = [threading.Thread(target=self._read_windows, daemon=True) for _ in range(READERS)]
        self._threads.append(threading.Thread(target=self._fill_queue, args=(start_step,), daemon=True))
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DataBatch:
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise RuntimeError(_CLOSED)
        began = time.perf_counter()
        ready = self._next if self._next is not None else self._ready.get()
        self._next = None
        if isinstance(ready, BaseException):
            self._error = ready
            raise ready
        x = ready.x.to(self._device, non_blocking=True)
        y = None if ready.y is None else ready.y.to(self._device, non_blocking=True)
        self.substituted += ready.substitutions
        self.wait_seconds += time.perf_counter() - began
        return DataBatch(x, y, ready.ids)

    def wait_for_next(self, should_stop: Callable[[], bool]) -> bool:
        """See `BatchSource`."""
        if self._error is not None or self._closed.is_set():
            return True
        began = time.perf_counter()
        while self._next is None:
            try:
                self._next = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if should_stop():
                    return False
        self.wait_seconds += time.perf_counter() - began
        return True

    def close(self) -> None:
        """Stop the threads; those in the middle of a read get a moment, and are then left to end by themselves."""
        with self._task_lock:
            self._closed.set()
            for _ in range(READERS):
                self._tasks.put(None)
        with suppress(queue.Empty):
            while True:  # make room for the batch that the filling thread may be waiting to put into the queue
                self._ready.get_nowait()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- The filling thread: windows to batches ------------------------------------------------------------------

    def _fill_queue(self, start_step: int) -> None:
        try:
            for ready in self._make_batches(start_step):
                self._ready.put(ready)
                if self._closed.is_set():
                    return
        except BaseException as error:  # the consumer raises it
            self._ready.put(error)

    def _make_batches(self, step: int) -> Iterator[_ReadyBatch]:
        """Cut the windows of all lanes into batches, from a global step on."""
        b = self._order.lane_batch_size
        current: dict[int, _LoadedWindow] = {}
        while True:
            epoch, epoch_step = divmod(step, self._order.steps_per_epoch)
            parts: list[tuple[_LoadedWindow, slice]] = []
            for lane in self._lanes:
                position = epoch_step * b
                stop = position + b
                while position < stop:
                    loaded = current.get(lane)
                    if loaded is None or loaded.window.epoch != epoch or position >= loaded.window.stop:
                        current.pop(lane, None)
                        current[lane] = loaded = self._next_window()
                    window = loaded.window
                    assert (window.epoch, window.lane) == (epoch, lane)
                    assert window.start <= position < window.stop
                    end = min(stop, window.stop)
                    parts.append((loaded, slice(position - window.start, end - window.start)))
                    position = end
            yield self._join_parts(parts)
            step += 1

    def _join_parts(self, parts: list[tuple[_LoadedWindow, slice]]) -> _ReadyBatch:
        """Join the parts of all lanes to a batch, in memory that a GPU can copy from without waiting."""
        index = self._reader.index
        ids = np.concatenate([loaded.ids[part] for loaded, part in parts])
        for_gpu = self._device.type == "cuda"
        shape = (len(ids), *index.shape)
        if for_gpu:
            x = torch.empty(shape, dtype=getattr(torch, index.dtype), pin_memory=True)
        else:
            x = torch.from_numpy(self._batch_buffers.take(shape, index.dtype))
        np.concatenate([loaded.x[part] for loaded, part in parts], out=x.numpy())
        labels = [loaded.y[part] for loaded, part in parts if loaded.y is not None]
        y = torch.from_numpy(np.concatenate(labels)) if labels else None
        y = y.pin_memory() if for_gpu and y is not None else y
        substitutions = [
            loaded.substitutions[position]
            for loaded, part in parts
            for position in range(part.start, part.stop)
            if position in loaded.substitutions
        ]
        return _ReadyBatch(x, y, ids, substitutions)

    def _next_window(self) -> _LoadedWindow:
        """Wait for the window that batches need next, while READERS more are being read."""
        with self._task_lock:
            if self._closed.is_set():
                raise RuntimeError(_CLOSED)
            while len(self._pending) <= READERS:
                future: Future[_LoadedWindow] = Future()
                self._pending.append(future)
                self._tasks.put((next(self._windows), future))
        return self._pending.popleft().result()

    def _plan_windows(self, start_step: int) -> Iterator[Window]:
        """Give windows in the order in which batches need them: by step, then by lane."""
        b = self._order.lane_batch_size
        epoch, epoch_step = divmod(start_step, self._order.steps_per_epoch)
        while True:
            begin = epoch_step * b
            windows = [
                window for lane in self._lanes for window in self._order.windows(epoch, lane) if window.stop > begin
            ]
            yield from sorted(windows, key=lambda window: (max(window.start, begin) // b, window.lane, window.number))
            epoch += 1
            epoch_step = 0

    # ---- The reading threads: storage to windows -----------------------------------------------------------------

    def _read_windows(self) -> None:
        while (task := self._tasks.get()) is not None:
            window, future = task
            try:
                future.set_result(self._load_through_outage(window))
            except BaseException as error:  # the filling thread hands it on to the consumer
                future.set_exception(error)

    def _load_through_outage(self, window: Window) -> _LoadedWindow:
        """Load a window; where the storage itself fails, until it works again or the time that is given is over.

        Raises:
            StorageError: It is over, or this source has been closed.
        """
        give_up_at = math.inf
        while True:
            try:
                return self._load_window(window)
            except StorageError as error:
                now = time.monotonic()
                give_up_at = min(give_up_at, now + self._outage_seconds)
                if now >= give_up_at:
                    raise
                _LOG.warning("outage_seconds_left=%.0f error=%r", give_up_at - now, str(error))
                if self._closed.wait(min(_PAUSE_SECONDS, give_up_at - now)):
                    raise

    def _load_window(self, window: Window) -> _LoadedWindow:
        index = self._reader.index
        length = window.stop - window.start
        permutation = self._order.window_permutation(window)
        rows = np.empty(length, dtype=np.int64)  # for each sample as stored, its position in the order of use
        rows[permutation] = np.arange(length)
        x = self._window_buffers.take((length, *index.shape), index.dtype)
        bad: BadSamples = {}
        labels: list[NDArray[Any] | None] = []
        num_read = 0
        for run in window.runs:
            if self._closed.is_set():
                raise RuntimeError(_CLOSED)
            count = run.stop - run.start
            bad |= self._reader.read_run(run, x, rows[num_read : num_read + count])
            labels.append(self._reader.read_labels_of_run(run))  # while the run's sidecar is in memory
            num_read += count
        y = join_labels_of_runs(labels)
        y = None if y is None else y[permutation]
        loaded = _LoadedWindow(window, x, y, self._order.stored_ids(window)[permutation], {})
        return self._substitute_bad(loaded, bad) if bad else loaded

    def _substitute_bad(self, loaded: _LoadedWindow, bad: BadSamples) -> _LoadedWindow:
        """Replace every bad sample of a window by the next good one, with a sentence on each.

        Raises:
            InputError: Bad samples are not to be replaced, or the window has no good one.
        """
        if not self._substitute:
            raise self._reader.damaged_sample_error(bad[min(bad)])
        is_good = np.ones(len(loaded.ids), dtype=bool)
        is_good[list(bad)] = False
        substitutes = find_substitutes(is_good)
        window = loaded.window
        sentences = {
            row: self._reader.describe_substitution(
                window.epoch,
                (window.start + row) // self._order.lane_batch_size,
                bad[row],
                self._order.locate_sample(int(loaded.ids[substitutes[row]])),
            )
            for row in sorted(bad)
        }
        y = None if loaded.y is None else loaded.y[substitutes]
        return _LoadedWindow(window, loaded.x[substitutes], y, loaded.ids[substitutes], sentences)
