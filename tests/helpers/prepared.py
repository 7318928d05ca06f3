"""Samples of a prepared split with their labels and names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ali_dist.data.shards.index import Index, load_index, load_sidecar
from ali_dist.data.shards.reader import load_arrays
from ali_dist.storage.local import LocalStore


@dataclass(frozen=True)
class PreparedSplit:
    """The index, and the sample and label by origin."""

    index: Index
    x: dict[str, np.ndarray]
    y: dict[str, object]


def read_prepared(folder: Path) -> PreparedSplit:
    """Read a split whose samples all have names."""
    store = LocalStore(folder)
    index = load_index(store)
    x, y = load_arrays(store, index)
    origins: list[str] = []
    for number in range(len(index.shards)):
        origins += load_sidecar(store, index, number).origins or ()
    labels = [None] * len(x) if y is None else y.tolist()
    return PreparedSplit(index, dict(zip(origins, x.numpy(), strict=True)), dict(zip(origins, labels, strict=True)))
