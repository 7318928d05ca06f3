"""Whole splits in memory, as evaluation needs them."""

from __future__ import annotations

import math

from ali_dist.data.shards.index import Index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.model.data_space import DataSpace
from ali_dist.storage.base import Store

_MEGABYTES_PER_VALUE = 4e-6  # of a float32


def megabytes_in_memory(index: Index, space: DataSpace) -> float:
    """Megabytes that a whole split takes at the size the model works at."""
    return _MEGABYTES_PER_VALUE * index.num_samples * math.prod(space.model_shape)


def load_labelled_arrays(store: Store, index: Index, space: DataSpace, limit: int | None = None) -> LabelledArrays:
    """Read a whole split and bring it to the size the model works at.

    Args:
        store: The split's own folder.
        index: The split's index.
        space: The ranges that the model works in.
        limit: Keep this many samples, the first ones; None: keep all.

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    x, y = load_arrays(store, index)
    return LabelledArrays(space.unit_from_stored(x[:limit]), None if y is None else y[:limit], index.spec.label_names)
