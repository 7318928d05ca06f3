"""Mean and spread of the samples of a split, counted shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 256  # samples that are counted at once, which bounds the memory of their wider copies


class Statistics:
    """Counts samples: the mean of every pixel, and the mean and standard deviation of every channel.

    uint8 samples are summed in whole numbers, so the order in which they are counted and merged does not matter.

    Args:
        shape: Shape of a sample; axis 0 is the channel.
        dtype: Type of a sample: `uint8` samples count in [0, 1], `float32` ones in raw units.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._sum_type: Any = np.int64 if dtype == "uint8" else np.float64
        self._scale = 1 / 255 if dtype == "uint8" else 1.0
        self._count = 0
        self._sum: NDArray[Any] = np.zeros(shape, dtype=self._sum_type)
        self._squares: NDArray[Any] = np.zeros(shape[0], dtype=self._sum_type)

    def add_samples(self, x: NDArray[Any]) -> None:
        """Count samples [n, *shape]."""
        for start in range(0, len(x), _CHUNK):
            wide = x[start : start + _CHUNK].astype(self._sum_type)
            self._sum += wide.sum(axis=0)
            self._squares += np.square(wide).reshape(*wide.shape[:2], -1).sum(axis=(0, 2))
        self._count += len(x)

    def merge(self, other: Statistics) -> None:
        """Add what another object has counted."""
        self._count += other._count
        self._sum += other._sum
        self._squares += other._squares

    def index_fields(self) -> dict[str, Any]:
        """The fields `mean` and `std` (of each channel, axis 0) and `pixel_mean` of an index, to 7 decimals."""
        pixels = self._sum[0].size
        mean = self._sum.reshape(len(self._sum), -1).sum(axis=1) / (self._count * pixels)
        square = self._squares / (self._count * pixels)
        std = np.sqrt(np.maximum(0.0, square - mean**2))
        return {
            "mean": self._round_values(mean),
            "std": self._round_values(std),
            "pixel_mean": self._round_values(self._sum / self._count),
        }

    def to_record(self) -> dict[str, Any]:
        """What was counted, as JSON-able and exact numbers."""
        return {"count": self._count, "sum": self._sum.ravel().tolist(), "squares": self._squares.tolist()}

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Add what a record of `to_record` says, of samples with the same shape.

        Raises:
            ValueError, TypeError, KeyError: It is not such a record.
        """
        total = np.array(record["sum"], dtype=self._sum_type).reshape(self._sum.shape)
        squares = np.array(record["squares"], dtype=self._sum_type).reshape(self._squares.shape)
        self._count += int(record["count"])
        self._sum += total
        self._squares += squares

    def _round_values(self, values: NDArray[Any]) -> tuple[float, ...]:
        return tuple(np.round(values.ravel() * self._scale, 7).tolist())
