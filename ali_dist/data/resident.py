"""Batches from a data set that is read once and kept decoded in host memory or on the GPU."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from ali_dist.data.batch import DataBatch
from ali_dist.data.order import DataOrder, Ids, find_substitutes
from ali_dist.data.shards.reader import ShardReader, read_all


class ResidentSource:
    """Batches gathered from memory. Every rank holds the whole split (N times the decoded bytes of a sample).

    Args:
        reader: of the split.
        order: of its samples.
        lanes: the rank's lanes.
        start_step: global step of the first batch.
        device: where batches are wanted.
        place: `device` keeps the samples there, `ram` in host memory.
        substitute: replace bad samples instead of stopping at them.

    Raises:
        InputError: a sample is bad and `substitute` is off; the index does not match its shards.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: DataOrder,
        lanes: range,
        *,
        start_step: int,
        device: torch.device,
        place: Literal["device", "ram"],
        substitute: bool,
    ) -> None:
        self.residency: str = place
        self.wait_seconds = 0.0
        self.substituted: list[str] = []
        x, y, self._bad = read_all(reader)
        if self._bad and not substitute:
            raise reader.stop_for(self._bad[min(self._bad)])
        self._reader, self._order, self._lanes, self._device = reader, order, lanes, device
        self._shape = x.shape[1:]
        home = device if place == "device" else torch.device("cpu")
        # Gathering rows of a flat view is several times as fast as x[ids] on [N, C, H, W].
        self._x: Tensor | None = torch.from_numpy(x).reshape(len(x), -1).to(home)
        self._y = None if y is None else torch.from_numpy(y).to(home)
        self._step = start_step
        self._epoch = -1
        self._ids: Ids = np.empty((0, 0), dtype=np.int64)
        self._rows = torch.empty(0, 0, dtype=torch.int64)
        self._cases: dict[int, list[str]] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DataBatch:
        if self._x is None:
            raise RuntimeError("this source of batches is closed")
        begin = time.perf_counter()
        epoch, step = divmod(self._step, self._order.steps_per_epoch)
        if epoch != self._epoch:
            self._plan(epoch)
        b = self._order.lane_batch_size
        part = slice(step * b, (step + 1) * b)
        rows = self._rows[:, part].reshape(-1)
        x = self._gather(self._x, rows).view(-1, *self._shape)
        y = None if self._y is None else self._gather(self._y, rows)
        self.substituted += self._cases.get(step, [])
        self._step += 1
        self.wait_seconds += time.perf_counter() - begin
        return DataBatch(x, y, self._ids[:, part].reshape(-1))

    def _gather(self, source: Tensor, rows: Tensor) -> Tensor:
        """Rows of `source` on the wanted device; from host memory by way of pinned memory, without waiting."""
        if source.device == self._device or self._device.type == "cpu":
            return source.index_select(0, rows)
        out = torch.empty((len(rows), *source.shape[1:]), dtype=source.dtype, pin_memory=True)
        return torch.index_select(source, 0, rows, out=out).to(self._device, non_blocking=True)

    def _plan(self, epoch: int) -> None:
        """Fix which sample is at every position [lanes, lane_samples] of this epoch."""
        self._cases = {}
        self._ids = np.stack([self._lane_ids(epoch, lane) for lane in self._lanes])
        assert self._x is not None
        self._rows = torch.from_numpy(self._ids).to(self._x.device)
        self._epoch = epoch

    def _lane_ids(self, epoch: int, lane: int) -> Ids:
        if not self._bad:
            return self._order.lane_ids(epoch, lane)
        bad = np.array(sorted(self._bad))
        parts = []
        for window in self._order.windows(epoch, lane):
            ids = self._order.window_ids(window)
            good = ~np.isin(ids, bad)
            source = find_substitutes(good)
            for place in np.flatnonzero(~good).tolist():
                step = (window.start + place) // self._order.lane_batch_size
                stand_in = self._order.locate(int(ids[source[place]]))
                case = self._reader.replacement(epoch, step, self._bad[int(ids[place])], stand_in)
                self._cases.setdefault(step, []).append(case)
            parts.append(ids[source])
        return np.concatenate(parts)

    def close(self) -> None:
        """Let go of the samples."""
        self._x = self._y = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
