"""A small data set, sources of its batches, and a comparison of what they give."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import torch

from ali_dist.data.batch import BatchSource
from ali_dist.data.loader import open_batches
from ali_dist.data.shards.index import Index
from tests.helpers.arrays import make_labelled_arrays

N, LANES, B = 203, 4, 12
X, Y = make_labelled_arrays(N)
STEPS = N // B
CPU = torch.device("cpu")
TakenBatch = tuple[list[int], np.ndarray, list[int]]


def open_batch_source(store: Any, index: Index, **changes: Any) -> BatchSource:
    options = {
        "seed": 5,
        "lanes": LANES,
        "global_batch_size": B,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "device": CPU,
        "residency": "stream",
        "window_mb": 0.03,
    }
    return open_batches(store, index, **{**options, **changes})


def take_batches(source: BatchSource, n: int) -> list[TakenBatch]:
    """Return (ids, x, y) of the next n batches, and close the source."""
    batches = []
    with source:
        for batch in islice(source, n):
            assert batch.y is not None
            batches.append((batch.ids.tolist(), batch.x.numpy().copy(), batch.y.tolist()))
    return batches


def drain_batches(source: BatchSource, n: int, taken: list[object] | None = None) -> None:
    """Take n batches; those that come before an error are added to `taken`."""
    for _ in range(n):
        batch = next(source)
        if taken is not None:
            taken.append(batch)


def assert_same_batches(first: list[TakenBatch], second: list[TakenBatch]) -> None:
    assert len(first) == len(second)
    for (ids, x, y), (second_ids, second_x, second_y) in zip(first, second, strict=True):
        assert ids == second_ids
        assert np.array_equal(x, second_x)
        assert y == second_y
