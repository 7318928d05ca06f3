"""Memory for windows and batches that is used again: fresh memory costs more than what is written into it.

The kernel hands out fresh pages zeroed, one fault for each 4 KB, so that gathering a batch of 32x32 pictures into fresh
memory takes about ten times as long as into memory that has been used before.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Arrays that are handed out again once nobody refers to them; safe to use from several threads.

    Whoever holds an array, a view of it, or a tensor made of it by `torch.from_numpy`, has it for as long as they like:
    the pool counts references, and hands out fresh memory instead.

    Args:
        most: Most arrays that the pool remembers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._memory: list[NDArray[np.uint8]] = []

    def take(self, shape: Sequence[int], dtype: np.dtype[Any] | type | str) -> NDArray[Any]:
        """An array of this shape and type, with arbitrary content."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            idle = [k for k in range(len(self._memory)) if _count_references(self._memory, k) == _UNUSED]
            fitting = [k for k in idle if self._memory[k].nbytes >= size]
            if fitting:
                memory = self._memory[fitting[0]]
            else:
                memory = np.empty(size, dtype=np.uint8)
                if len(self._memory) < self._most:
                    self._memory.append(memory)
                elif idle:
                    self._memory[idle[0]] = memory
            return memory[:size].view(dtype).reshape(shape)


def _count_references(arrays: list[NDArray[np.uint8]], k: int) -> int:
    return sys.getrefcount(arrays[k])


_UNUSED = _count_references([np.empty(0, dtype=np.uint8)], 0)  # the count of an array that is in the list alone
