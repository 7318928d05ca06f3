"""A small split, sources of its batches, and ways to compare what they give."""

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
    """(ids, x, y) of the next n batches."""
    found = []
    with source:
        for batch in islice(source, n):
            assert batch.y is not None
            found.append((batch.ids.tolist(), batch.x.numpy().copy(), batch.y.tolist()))
    return found


def drain_batches(source: BatchSource, n: int, given: list[object] | None = None) -> None:
    """Take n batches; those that came before an error are in `given`."""
    for _ in range(n):
        batch = next(source)
        if given is not None:
            given.append(batch)


def assert_same_batches(one: list[TakenBatch], other: list[TakenBatch]) -> None:
    assert len(one) == len(other)
    for (ids, x, y), (other_ids, other_x, other_y) in zip(one, other, strict=True):
        assert ids == other_ids
        assert np.array_equal(x, other_x)
        assert y == other_y
