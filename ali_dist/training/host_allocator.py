"""Have the C library keep the memory that one update frees for the next.

glibc gives large blocks back to the system as soon as they are freed, and asks for them again: the kernel then clears
every page of them once more. An update of the CIFAR10 networks meets some 30,000 such pages, a tenth of its time on a
CPU (`python -m tests.bench.host_memory`). Where the C library is another one, nothing changes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_USUAL_MMAP_MAX = 2**16
_NEVER = -1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Meanwhile, memory that this process frees stays with it; then what is unused goes back to the system.

    What the process holds grows to little more than the most that it has needed at once. It holds for all its threads.
    """
    glibc = _find_glibc()
    if glibc is None:
        yield
        return
    glibc.mallopt(_MMAP_MAX, 0)  # large blocks come from the heap, too
    glibc.mallopt(_TRIM_THRESHOLD, _NEVER)  # and the heap is not cut off at its end
    try:
        yield
    finally:
        # glibc comes to these thresholds by itself once blocks as large as an update's have been freed.
        glibc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
        glibc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        glibc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        return_unused_memory()


def return_unused_memory() -> None:
    """Give the system what is kept and not in use: after work that takes more memory than an update does."""
    glibc = _find_glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


@cache
def _find_glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"):
            getattr(library, name)
    except (AttributeError, OSError, TypeError):
        return None
    return library
