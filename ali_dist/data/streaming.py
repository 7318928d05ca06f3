"""Batches from shards that are read while training runs, by threads of the rank's own process.

Reading threads fetch and decode whole windows in the order in which batches will need them; one more thread
cuts batches out of the windows. No other processes: nothing to fork, and the number of threads changes nothing.

Memory: at most (lanes of the rank + 2 * READERS) windows and prefetch + 2 batches. That is the window each lane
is in, READERS windows read ahead, and the encoded bytes of those being decoded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.data.batch import DataBatch
from ali_dist.data.order import DataOrder, Ids, Window, find_substitutes
from ali_dist.data.shards.reader import READERS, BadSamples, ShardReader

_JOIN_SECONDS = 2.0  # what close() gives a thread that is in the middle of a read; it ends by itself after that
_CLOSED = "this source of batches is closed"


class _LoadedWindow(NamedTuple):
    """A window in order of use: x [n, *shape], y [n] or [n, A], ids [n], and sentences by position in the lane."""

    window: Window
    x: NDArray[Any]
    y: NDArray[Any] | None
    ids: Ids
    cases: dict[int, str]


class _ReadyBatch(NamedTuple):
    """A batch in host memory, and the sentences on what was replaced in it."""

    x: Tensor
    y: Tensor | None
    ids: Ids
    cases: list[str]


class StreamSource:
    """Batches read ahead from storage. After an error in a thread, `next` raises it once the batches before it are out.

    Args:
        reader: of the split.
        order: of its samples.
        lanes: the rank's lanes.
        start_step: global step of the first batch; windows that lie before it are not read.
        device: where batches are wanted.
        prefetch: batches kept ready.
        substitute: replace bad samples instead of stopping at them.
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
    ) -> None:
        self.wait_seconds = 0.0
        self.substituted: list[str] = []
        self._reader, self._order, self._lanes, self._device = reader, order, lanes, device
        self._substitute = substitute
        self._windows = self._plan(start_step)
        self._closed = threading.Event()
        self._asking = threading.Lock()  # so that no task comes after the last one that close() gives
        self._error: BaseException | None = None
        self._tasks: queue.SimpleQueue[tuple[Window, Future[_LoadedWindow]] | None] = queue.SimpleQueue()
        self._pending: deque[Future[_LoadedWindow]] = deque()
        self._ready: queue.Queue[_ReadyBatch | BaseException] = queue.Queue(maxsize=prefetch)
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(READERS)]
        self._threads.append(threading.Thread(target=self._fill, args=(start_step,), daemon=True))
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DataBatch:
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise RuntimeError(_CLOSED)
        begin = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._error = item
            raise item
        x = item.x.to(self._device, non_blocking=True)
        y = None if item.y is None else item.y.to(self._device, non_blocking=True)
        self.substituted += item.cases
        self.wait_seconds += time.perf_counter() - begin
        return DataBatch(x, y, item.ids)

    def close(self) -> None:
        """Stop the threads; one that is in the middle of a read is given a moment, then left to end by itself."""
        with self._asking:
            self._closed.set()
            for _ in range(READERS):
                self._tasks.put(None)
        with suppress(queue.Empty):
            while True:  # room for the batch that the filling thread may be waiting to hand over
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

    # ---- the filling thread: windows to batches ------------------------------------------------------------------

    def _fill(self, start_step: int) -> None:
        try:
            for ready in self._batches(start_step):
                self._ready.put(ready)
                if self._closed.is_set():
                    return
        except BaseException as error:  # the consumer raises it
            self._ready.put(error)

    def _batches(self, step: int) -> Iterator[_ReadyBatch]:
        order, b = self._order, self._order.lane_batch_size
        current: dict[int, _LoadedWindow] = {}
        while True:
            epoch, t = divmod(step, order.steps_per_epoch)
            parts: list[tuple[_LoadedWindow, slice]] = []
            for lane in self._lanes:
                position, stop = t * b, (t + 1) * b
                while position < stop:
                    loaded = current.get(lane)
                    if loaded is None or loaded.window.epoch != epoch or position >= loaded.window.stop:
                        current.pop(lane, None)
                        current[lane] = loaded = self._next_window()
                    window = loaded.window
                    assert (window.epoch, window.lane) == (epoch, lane) and window.start <= position < window.stop
                    end = min(stop, window.stop)
                    parts.append((loaded, slice(position - window.start, end - window.start)))
                    position = end
            yield self._join(parts)
            step += 1

    def _join(self, parts: list[tuple[_LoadedWindow, slice]]) -> _ReadyBatch:
        """One batch out of its lanes' parts, in memory that a GPU can copy from without waiting."""
        index = self._reader.index
        ids = np.concatenate([loaded.ids[part] for loaded, part in parts])
        cuda = self._device.type == "cuda"
        x = torch.from_numpy(np.empty((len(ids), *index.shape), dtype=index.dtype))
        x = torch.empty_like(x, pin_memory=True) if cuda else x
        np.concatenate([loaded.x[part] for loaded, part in parts], out=x.numpy())
        labels = [loaded.y[part] for loaded, part in parts if loaded.y is not None]
        y = torch.from_numpy(np.concatenate(labels)) if labels else None
        cases = [loaded.cases[n] for loaded, part in parts for n in range(part.start, part.stop) if n in loaded.cases]
        return _ReadyBatch(x, y.pin_memory() if cuda and y is not None else y, ids, cases)

    def _next_window(self) -> _LoadedWindow:
        """The window that batches need next, while READERS more are asked for."""
        with self._asking:
            if self._closed.is_set():
                raise RuntimeError(_CLOSED)
            while len(self._pending) <= READERS:
                future: Future[_LoadedWindow] = Future()
                self._pending.append(future)
                self._tasks.put((next(self._windows), future))
        return self._pending.popleft().result()

    def _plan(self, start_step: int) -> Iterator[Window]:
        """Windows in the order in which batches need them: by step, then lane."""
        b = self._order.lane_batch_size
        epoch, t = divmod(start_step, self._order.steps_per_epoch)
        while True:
            begin = t * b
            windows = [w for lane in self._lanes for w in self._order.windows(epoch, lane) if w.stop > begin]
            yield from sorted(windows, key=lambda w: (max(w.start, begin) // b, w.lane, w.number))
            epoch, t = epoch + 1, 0

    # ---- the reading threads: storage to windows -----------------------------------------------------------------

    def _read(self) -> None:
        while (task := self._tasks.get()) is not None:
            window, future = task
            try:
                future.set_result(self._load(window))
            except BaseException as error:  # the filling thread hands it on to the consumer
                future.set_exception(error)

    def _load(self, window: Window) -> _LoadedWindow:
        index, n = self._reader.index, window.stop - window.start
        stored = self._order.permutation(window)
        rows = np.empty(n, dtype=np.int64)
        rows[stored] = np.arange(n)
        x = np.empty((n, *index.shape), dtype=index.dtype)
        bad: BadSamples = {}
        done = 0
        for run in window.runs:
            if self._closed.is_set():
                raise RuntimeError(_CLOSED)
            count = run.last - run.first
            bad |= self._reader.read(run, x, rows[done : done + count])
            done += count
        y = self._reader.labels(window.runs)
        loaded = _LoadedWindow(window, x, None if y is None else y[stored], self._order.window_ids(window), {})
        return self._replace(loaded, bad) if bad else loaded

    def _replace(self, loaded: _LoadedWindow, bad: BadSamples) -> _LoadedWindow:
        """The window with every bad sample replaced by the next good one, and a sentence on each."""
        if not self._substitute:
            raise self._reader.stop_for(bad[min(bad)])
        good = np.ones(len(loaded.ids), dtype=bool)
        good[list(bad)] = False
        source = find_substitutes(good)
        window = loaded.window
        cases = {
            row: self._reader.replacement(
                window.epoch,
                (window.start + row) // self._order.lane_batch_size,
                bad[row],
                self._order.locate(int(loaded.ids[source[row]])),
            )
            for row in sorted(bad)
        }
        y = None if loaded.y is None else loaded.y[source]
        return _LoadedWindow(window, loaded.x[source], y, loaded.ids[source], cases)
