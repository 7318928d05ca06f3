"""Features of a whole split in a file: written once, part by part, and read in rows; never all of them in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class StoredFeatures:
    """Features float32 [N, F] in a file that belongs to this object's folder.

    The file is mapped for the length of one access alone: pages of a mapping that stays would count as memory of the
    process until all of the file does.

    Args:
        path: Where the file is made; an older one is replaced.
        rows: N.
        size: F.
    """

    def __init__(self, path: Path, rows: int, size: int) -> None:
        self._path = path
        self._rows = rows
        self._size = size
        self._map("w+")  # makes the file, at its full length

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """N and F."""
        return self._rows, self._size

    def first(self, rows: int) -> StoredFeatures:
        """The first rows alone, in the same file."""
        part = copy.copy(self)
        part._rows = rows
        return part

    def write(self, start: int, features: NDArray[np.float32]) -> None:
        """Write rows from `start` on."""
        mapped = self._map("r+")
        mapped[start : start + len(features)] = features
        mapped.flush()

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.float32]:
        """A copy of some rows."""
        return np.array(self._map("r")[rows])

    def _map(self, mode: str) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
        return np.memmap(self._path, dtype=np.float32, mode=mode, shape=(self._rows, self._size))  # type: ignore[call-overload]
