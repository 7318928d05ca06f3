"""Features of a whole split in a file: written once, part by part, and read in rows; never all of them in memory."""

from __future__ import annotations

import copy
import tempfile
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray


class StoredFeatures:
    """Features float32 [N, F] in a temporary file that has no name: however the process ends, nothing stays behind.

    The file is mapped for the length of one access alone: pages of a mapping that stays would count as memory of the
    process until all of the file does. A context manager, which closes the file.

    Args:
        rows: N.
        size: F.
    """

    def __init__(self, rows: int, size: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (`__exit__` closes it)
        self._rows = rows
        self._size = size
        self._file.truncate(4 * rows * size)

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
        """Write rows from `start` on.

        Raises:
            OSError: The disk is full.
        """
        self._file.seek(4 * start * self._size)
        self._file.write(np.ascontiguousarray(features, dtype=np.float32).data)
        self._file.flush()

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.float32]:
        """A copy of some rows."""
        mapped = np.memmap(self._file, dtype=np.float32, mode="r", shape=(self._rows, self._size))
        return np.array(mapped[rows])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
