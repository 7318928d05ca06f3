"""Memory that is used again is never used by two at a time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from ali_dist.data.buffers import BufferPool


def test_memory_comes_back_once_nobody_holds_it_in_any_form() -> None:
    pool = BufferPool(1)
    first = pool.take((4, 3), np.uint8)
    where = first.ctypes.data
    assert pool.take((4, 3), np.uint8).ctypes.data != where
    holders: list[Any] = [lambda a: a[1:], torch.from_numpy, lambda a: torch.from_numpy(a).view(-1)[2:], memoryview]
    for hold in holders:
        held = hold(first)
        del first
        assert pool.take((4, 3), np.uint8).ctypes.data != where
        del held
        first = pool.take((2, 3), np.uint8)
        assert first.ctypes.data == where


def test_larger_arrays_take_the_place_of_idle_ones_and_other_types_share_memory() -> None:
    pool = BufferPool(1)
    pool.take((2,), np.uint8)
    where = pool.take((6,), np.float32).ctypes.data
    assert pool.take((2, 3), "float32").ctypes.data == where
    assert pool.take((0, 3), np.uint8).shape == (0, 3)


def test_threads_never_share_memory() -> None:
    pool = BufferPool(4)
    mixed = []

    def write_and_look(number: int) -> None:
        for _ in range(300):
            own = pool.take((64,), np.uint8)
            own[:] = number
            if set(own.tolist()) != {number}:
                mixed.append(number)

    threads = [threading.Thread(target=write_and_look, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not mixed
