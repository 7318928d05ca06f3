"""Mean and spread of the samples of a split, counted shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 256  # samples counted at once: bounds the memory of their wider copies


class Statistics:
    """Mean of every pixel and standard deviation of every channel of the samples it is given.

    uint8 samples are summed in whole numbers, so it does not matter in which order parts are counted and merged.

    Args:
        shape: of a sample; axis 0 is the channel.
        dtype: `uint8` samples count in [0, 1], `float32` ones in raw units.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._kind: Any = np.int64 if dtype == "uint8" else np.float64
        self._scale = 1 / 255 if dtype == "uint8" else 1.0
        self._count = 0
        self._sum: NDArray[Any] = np.zeros(shape, dtype=self._kind)
        self._squares: NDArray[Any] = np.zeros(shape[0], dtype=self._kind)

    def add(self, x: NDArray[Any]) -> None:
        """Count samples [n, *shape]."""
        for start in range(0, len(x), _CHUNK):
            wide = x[start : start + _CHUNK].astype(self._kind)
            self._sum += wide.sum(axis=0)
            self._squares += np.square(wide).reshape(*wide.shape[:2], -1).sum(axis=(0, 2))
        self._count += len(x)

    def merge(self, other: Statistics) -> None:
        """Count what another one has counted."""
        self._count += other._count
        self._sum += other._sum
        self._squares += other._squares

    def for_index(self) -> dict[str, Any]:
        """The index's `mean` and `std` (of each channel, axis 0) and `pixel_mean`, to 7 decimals."""
        pixels = self._sum[0].size
        mean = self._sum.reshape(len(self._sum), -1).sum(axis=1) / (self._count * pixels)
        square = self._squares / (self._count * pixels)
        std = np.sqrt(np.maximum(0.0, square - mean**2))
        return {
            "mean": self._rounded(mean),
            "std": self._rounded(std),
            "pixel_mean": self._rounded(self._sum / self._count),
        }

    def to_record(self) -> dict[str, Any]:
        """What was counted, JSON-able and exact."""
        return {"count": self._count, "sum": self._sum.ravel().tolist(), "squares": self._squares.tolist()}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Count what a `to_record` of the same shape says; ValueError, TypeError or KeyError if it is none."""
        total = np.array(record["sum"], dtype=self._kind).reshape(self._sum.shape)
        squares = np.array(record["squares"], dtype=self._kind).reshape(self._squares.shape)
        self._count += int(record["count"])
        self._sum += total
        self._squares += squares

    def _rounded(self, values: NDArray[Any]) -> tuple[float, ...]:
        return tuple(np.round(values.ravel() * self._scale, 7).tolist())
