"""Memory that is freed stays with the process while it trains, and goes back to the system afterwards."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest
import torch

from ali_dist.training.host_allocator import (
    _find_glibc,
    freed_memory_kept,
    return_unused_memory,
)
from ali_dist.training.memory_use import measure_memory

pytestmark = pytest.mark.skipif(_find_glibc() is None, reason="the C library is not glibc, which this is about")

_MIB = 2**20
_PAGE = resource.getpagesize()


def _cleared_bytes(work: Callable[[], None]) -> int:
    """Bytes of the pages that the kernel cleared for this process during `work`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return _PAGE * (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def _use(mib: int, times: int = 1) -> None:
    """Allocate a block, write to it, and free it, so many times.

    Each of the first times a few bytes may come to lie beside it, so that the next block needs another place.
    """
    for _ in range(times):
        torch.empty(mib * _MIB, dtype=torch.uint8).fill_(1)


def test_a_block_that_was_freed_is_used_again() -> None:
    with freed_memory_kept():
        _use(100, times=20)
        assert _cleared_bytes(lambda: _use(100)) < 10 * _MIB


def test_afterwards_memory_goes_back_to_the_system() -> None:
    with freed_memory_kept():
        _use(100)
        kept = measure_memory(torch.device("cpu"))["host_gib"]
    assert kept - measure_memory(torch.device("cpu"))["host_gib"] > 50 / 1024


def test_what_is_freed_afterwards_goes_back_too() -> None:
    with freed_memory_kept():
        pass
    before = measure_memory(torch.device("cpu"))["host_gib"]
    _use(300)
    assert measure_memory(torch.device("cpu"))["host_gib"] - before < 150 / 1024


def test_unused_memory_goes_back_while_freed_memory_is_kept() -> None:
    with freed_memory_kept():
        _use(200)
        kept = measure_memory(torch.device("cpu"))["host_gib"]
        return_unused_memory()
        assert kept - measure_memory(torch.device("cpu"))["host_gib"] > 100 / 1024
