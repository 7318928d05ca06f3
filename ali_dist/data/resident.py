"""Batches from a data set that is read once and kept decoded, in host memory or on the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from ali_dist.data.batch import DataBatch
from ali_dist.data.buffers import BufferPool
from ali_dist.data.order import DataOrder, Ids, find_substitutes
from ali_dist.data.shards.reader import ShardReader, read_all

_BUFFERS = 4  # batches and labels in host memory that are used again: this one, the one before, and two of slack


class ResidentSource:
    """Batches that are gathered from memory. Every rank holds the whole split (N times the bytes of a decoded sample).

    Args:
        reader: Reader of the split.
        order: Order of its samples.
        lanes: The rank's lanes.
        start_step: Global step of the first batch.
        device: The device on which batches are needed.
        residency: `device` keeps the samples on that device, `ram` in host memory.
        substitute: Whether bad samples are replaced instead of ending the run.

    Raises:
        InputError: A sample is bad and `substitute` is off, or the index does not match its shards.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: DataOrder,
        lanes: range,
        *,
        start_step: int,
        device: torch.device,
        residency: Literal["device", "ram"],
        substitute: bool,
    ) -> None:
        self.residency: str = residency
        self.wait_seconds = 0.0
        self.substituted: list[str] = []
        self._reader = reader
        self._order = order
        self._lanes = lanes
        self._device = device
        x, y, self._bad = read_all(reader)
        if self._bad and not substitute:
            raise reader.damaged_sample_error(self._bad[min(self._bad)])
        self._shape = x.shape[1:]
        memory = device if residency == "device" else torch.device("cpu")
        # Gathering rows of a flat view is several times as fast as x[ids] on [N, C, H, W].
        self._x: Tensor | None = torch.from_numpy(x).reshape(len(x), -1).to(memory)
        self._y = None if y is None else torch.from_numpy(y).to(memory)
        self._buffers = BufferPool(_BUFFERS)
        self._step = start_step
        # The plan of the current epoch.
        self._epoch = -1
        self._ids: Ids = np.empty((0, 0), dtype=np.int64)
        self._rows = torch.empty(0, 0, dtype=torch.int64)
        self._substitutions: dict[int, list[str]] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DataBatch:
        if self._x is None:
            raise RuntimeError("this source of batches is closed")
        began = time.perf_counter()
        epoch, step = divmod(self._step, self._order.steps_per_epoch)
        if epoch != self._epoch:
            self._plan_epoch(epoch, self._x.device)
        b = self._order.lane_batch_size
        positions = slice(step * b, (step + 1) * b)
        rows = self._rows[:, positions].reshape(-1)
        x = self._gather_rows(self._x, rows).view(-1, *self._shape)
        y = None if self._y is None else self._gather_rows(self._y, rows)
        self.substituted += self._substitutions.get(step, [])
        self._step += 1
        self.wait_seconds += time.perf_counter() - began
        return DataBatch(x, y, self._ids[:, positions].reshape(-1))

    def _gather_rows(self, source: Tensor, rows: Tensor) -> Tensor:
        """Copy rows of `source` to the batch's device; from host memory through pinned memory, without waiting."""
        if self._device.type == "cpu":
            return self._gather_on_cpu(source, rows)
        if source.device == self._device:
            return source.index_select(0, rows)
        pinned = torch.empty((len(rows), *source.shape[1:]), dtype=source.dtype, pin_memory=True)
        return torch.index_select(source, 0, rows, out=pinned).to(self._device, non_blocking=True)

    def _gather_on_cpu(self, source: Tensor, rows: Tensor) -> Tensor:
        """Copy rows into memory that no other batch needs any more."""
        if source.dim() == 1:
            return source.index_select(0, rows)
        memory = self._buffers.take((len(rows), *source.shape[1:]), source.numpy().dtype)
        return torch.index_select(source, 0, rows, out=torch.from_numpy(memory))

    def _plan_epoch(self, epoch: int, memory: torch.device) -> None:
        """Decide which sample is used at every position [lanes, lane_samples] of this epoch."""
        self._substitutions = {}
        self._ids = np.stack([self._lane_ids(epoch, lane) for lane in self._lanes])
        self._rows = torch.from_numpy(self._ids).to(memory)
        self._epoch = epoch

    def _lane_ids(self, epoch: int, lane: int) -> Ids:
        """The ids [lane_samples] that a lane uses; a bad sample's is replaced, and the substitution is recorded."""
        if not self._bad:
            return self._order.lane_ids(epoch, lane)
        bad_ids = np.array(sorted(self._bad))
        used_ids = []
        for window in self._order.windows(epoch, lane):
            ids = self._order.window_ids(window)
            is_good = ~np.isin(ids, bad_ids)
            substitutes = find_substitutes(is_good)
            for position in np.flatnonzero(~is_good).tolist():
                step = (window.start + position) // self._order.lane_batch_size
                substitute = self._order.locate_sample(int(ids[substitutes[position]]))
                bad = self._bad[int(ids[position])]
                sentence = self._reader.describe_substitution(epoch, step, bad, substitute)
                self._substitutions.setdefault(step, []).append(sentence)
            used_ids.append(ids[substitutes])
        return np.concatenate(used_ids)

    def wait_for_next(self, should_stop: Callable[[], bool]) -> bool:
        """See `BatchSource`: everything is there."""
        return True

    def close(self) -> None:
        """Release the samples."""
        self._x = None
        self._y = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
