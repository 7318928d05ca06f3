"""Splits in memory, as evaluation needs them: whole where they fit, else a sample that is the same every time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ali_dist.data.shards.index import Index
from ali_dist.data.shards.reader import load_arrays, load_labels, load_samples
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import make_generator
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.monitor import EvaluationMonitor
from ali_dist.model.data_space import DataSpace
from ali_dist.storage.base import Store

MOST_SAMPLES = 20_000
"""Samples of a split that does not fit into memory, at most."""
SHARE = 0.1
"""Share of a training split that stands in for a split to choose by, where the data have none."""

_MEGABYTES_PER_VALUE = 4e-6  # of a float32
_ROWS_AT_ONCE = 1000

Ids = NDArray[np.int64]


def megabytes_in_memory(index: Index, space: DataSpace) -> float:
    """Megabytes that a whole split takes at the size the model works at."""
    return _megabytes_per_sample(space) * index.num_samples


def samples_that_fit(index: Index, space: DataSpace, memory_mb: float) -> int:
    """Count the samples of a split that are evaluated: all if they fit, else at most `MOST_SAMPLES` and what fits.

    Raises:
        InputError: Not even two samples fit.
    """
    if megabytes_in_memory(index, space) <= memory_mb:
        return index.num_samples
    count = min(MOST_SAMPLES, int(memory_mb / _megabytes_per_sample(space)))
    if count < 2:
        raise InputError(
            f"data.memory_mb (or --memory-mb) is {memory_mb:g}, but two samples of evaluation take "
            f"{2 * _megabytes_per_sample(space):,.1f} MB: allow at least that much."
        )
    return count


def choose_samples(total: int, count: int, purpose: str = "evaluation sample") -> Ids:
    """Choose `count` of `total` sample ids at random, always the same ones, in ascending order."""
    order = torch.randperm(total, generator=make_generator(0, purpose))
    return np.sort(order[:count].numpy())


def hold_out_share(total: int) -> tuple[Ids, Ids]:
    """Part the sample ids of a training split, always in the same way.

    Returns:
        The share that stands in for a split to choose by (a tenth, at least 2), and the rest; both ascend.
    """
    count = min(total, max(2, round(total * SHARE)))
    share = choose_samples(total, count, "share to choose by")
    return share, np.setdiff1d(np.arange(total), share)


def load_labelled_arrays(
    store: Store, index: Index, space: DataSpace, monitor: EvaluationMonitor | None = None
) -> LabelledArrays:
    """Read a whole split and bring it to the size the model works at.

    Args:
        store: The split's own folder.
        index: The split's index.
        space: The ranges that the model works in.
        monitor: Is told of the reading.

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    name = _split_name(store)
    advance = None if monitor is None else monitor.start(_reading(name), index.num_samples)
    stored, y = load_arrays(store, index, advance)
    x = torch.empty(len(stored), *space.model_shape)
    for start in range(0, len(stored), _ROWS_AT_ONCE):  # what comes between stored and unit range exists in parts
        x[start : start + _ROWS_AT_ONCE] = space.unit_from_stored(stored[start : start + _ROWS_AT_ONCE])
    return LabelledArrays(x, y, index.spec.label_names, name, None, _identity(index, space, "all"))


def load_evaluation_arrays(
    store: Store,
    index: Index,
    space: DataSpace,
    memory_mb: float,
    *,
    among: Ids | None = None,
    monitor: EvaluationMonitor | None = None,
) -> LabelledArrays:
    """Read what evaluation uses of a split: all of it where it fits into memory, else a sample.

    Args:
        store: The split's own folder.
        index: The split's index.
        space: The ranges that the model works in.
        memory_mb: Megabytes that its samples may take, as float32 at the size the model works at.
        among: Ids that alone are used, ascending; None: all.
        monitor: Is told of the reading.

    Returns:
        The arrays, with the size of the whole split (of `among`) where they are a sample of it.

    Raises:
        InputError: The index does not match its shards, a sample is damaged, or the memory holds no two samples.
    """
    count = samples_that_fit(index, space, memory_mb)
    total = index.num_samples if among is None else len(among)
    if count >= total and among is None:
        return load_labelled_arrays(store, index, space, monitor)
    chosen = choose_samples(total, min(count, total)) if count < total else np.arange(total)
    ids = chosen if among is None else among[chosen]
    parts = f"{total}" if among is None else f"{total} of {index.num_samples}"
    arrays = load_rows(store, index, space, ids, monitor=monitor)
    return LabelledArrays(
        arrays.x,
        arrays.y,
        arrays.names,
        arrays.split,
        total if len(ids) < total else None,
        _identity(index, space, f"{len(ids)} of {parts} {ids[0]} {ids[-1]}"),
        ids,
    )


def load_rows(
    store: Store,
    index: Index,
    space: DataSpace,
    ids: Sequence[int] | Ids,
    *,
    monitor: EvaluationMonitor | None = None,
) -> LabelledArrays:
    """Read some samples by their ids, in any order, and nothing else; see `load_labelled_arrays`."""
    wanted = np.asarray(ids, dtype=np.int64)
    order = np.argsort(wanted, kind="stable")
    x = torch.empty(len(wanted), *space.model_shape)
    name = _split_name(store)
    advance = None if monitor is None else monitor.start(_reading(name), len(wanted))
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        x[torch.from_numpy(rows)] = space.unit_from_stored(torch.from_numpy(load_samples(store, index, wanted[rows])))
        if advance is not None:
            advance(len(rows))
    labels = load_labels(store, index)
    y = None if labels is None else torch.from_numpy(labels[wanted])
    return LabelledArrays(x, y, index.spec.label_names, name, None)


def describe_samples(samples: Mapping[str, Mapping[str, str | int]]) -> str:
    """One sentence on how many samples an evaluation uses: `count_samples` of `holdout` and, where used, of `train`."""
    measured = f"Measured on {_describe_count(samples['holdout'])}"
    if "train" not in samples:
        return f"{measured}."
    return (
        f"{measured}; the classifier, the Fréchet reference, the probes' labels and the mean image are from "
        f"{_describe_count(samples['train'])}."
    )


def count_samples(arrays: LabelledArrays) -> dict[str, str | int]:
    """What of a split is used, for files: its name, the samples used, and all there are."""
    return {"split": arrays.split, "samples": len(arrays.x), "of": arrays.total or len(arrays.x)}


def _reading(split_name: str) -> str:
    """What a progress bar is called while a split is read."""
    return f"Reading {split_name or 'samples'}"


def _describe_count(count: Mapping[str, str | int]) -> str:
    of = f" of {count['of']:,}" if count["of"] != count["samples"] else ""
    return f"{count['samples']:,}{of} samples of {count['split'] or 'the split'}"


def _megabytes_per_sample(space: DataSpace) -> float:
    return _MEGABYTES_PER_VALUE * math.prod(space.model_shape)


def _split_name(store: Store) -> str:
    return store.url.rstrip("/").rpartition("/")[2]


def _identity(index: Index, space: DataSpace, rows: str) -> str:
    shape = "x".join(map(str, space.model_shape))
    return f"{index.fingerprint} at {shape} from {'x'.join(map(str, space.stored_shape))}: {rows}"
