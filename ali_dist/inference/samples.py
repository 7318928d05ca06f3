"""The data that a trained model is used on: found, checked against what it was trained on, and read in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ali_dist.config import StorageConfig
from ali_dist.data.order import SampleRun
from ali_dist.data.shards.index import find_split, load_index
from ali_dist.data.shards.reader import BadSamples, ShardReader
from ali_dist.errors import InputError
from ali_dist.inference.load import LoadedRun, storage_for_data
from ali_dist.model.data_space import condition_vectors
from ali_dist.runs.datasets import DataSplit, open_url
from ali_dist.storage.base import Store


@dataclass(frozen=True, slots=True)
class DataSamples:
    """Some samples of a split.

    Attributes:
        x: As stored, [N, *shape].
        y: Labels, int64 [N] or float32 [N, A]; None where the data have none.
    """

    x: Tensor
    y: Tensor | None


def open_samples_for(saved: LoadedRun, url: str | None, splits: Sequence[str], storage: StorageConfig) -> DataSplit:
    """The first of `splits` that the data at `url` (default: the run's own) have.

    Raises:
        InputError: There is none of them, or the model was not made for such samples.
    """
    root = open_url(url or saved.config.data.url, storage_for_data(saved.config, storage))
    part = _first_split(root, splits, "" if url else " (the data of the run; --data names others)")
    shape, own = part.index.shape, saved.facts.shape
    fits = shape[0] == own[0] if len(own) == 3 else shape == own
    if len(shape) != len(own) or not fits:
        raise InputError(
            f"The data in {part.store.url} have samples of shape {list(shape)}, but run {saved.name!r} was trained on "
            f"{list(own)}: give data of the same kind{' and number of channels' if len(own) == 3 else ''}."
        )
    if part.index.dtype != saved.facts.dtype:
        raise InputError(
            f"The data in {part.store.url} are {part.index.dtype}, but run {saved.name!r} was trained on "
            f"{saved.facts.dtype}, in other units: prepare them in the same way."
        )
    return part


def _first_split(root: Store, splits: Sequence[str], hint: str) -> DataSplit:
    refusals = []
    for split in splits:
        try:
            store = find_split(root, split)
            return DataSplit(store, load_index(store))
        except InputError as error:
            refusals.append(error)
    raise InputError(f"{str(refusals[0]).rstrip('.')}{hint}.") from refusals[0]


def conditions_for_samples(saved: LoadedRun, part: DataSplit, y: Tensor | None) -> Tensor | None:
    """What a conditional model is given for samples with labels `y`: float32 [N, A]; None for another model.

    Raises:
        InputError: The labels are missing, of another kind, or of other classes or attributes.
    """
    kind = saved.config.model.condition
    if kind == "none":
        return None
    names, index, size = getattr(saved.facts, kind), part.index, saved.model.condition_size
    if y is None or y.is_floating_point() != (kind == "attributes"):
        has = "no labels" if y is None else "labels of another kind"
    elif getattr(index, kind) != names:
        has = f"other {kind} ({_list_some(getattr(index, kind))})"
    elif kind == "classes" and len(y) and int(y.max()) >= size:
        has = f"a class {int(y.max())}"
    else:
        return condition_vectors(y, size)
    raise InputError(
        f"Run {saved.name!r} is conditional on {len(names)} {kind} ({_list_some(names)}), but the "
        f"data in {part.store.url} have {has}: give data with the same {kind}."
    )


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def read_samples(reader: ShardReader, run: SampleRun) -> DataSamples:
    """The samples of `run`, in order.

    Raises:
        InputError: One is damaged.
    """
    count = run.stop - run.start
    x = np.empty((count, *reader.index.shape), dtype=reader.index.dtype)
    _refuse_damage(reader, reader.read_run(run, x, np.arange(count)))
    y = reader.read_labels((run,))
    return DataSamples(torch.from_numpy(x), None if y is None else torch.tensor(y))


def draw_labels(part: DataSplit, count: int, generator: torch.Generator) -> Tensor | None:
    """Labels of `count` samples drawn from the whole split with replacement; None without labels. Reads no sample."""
    reader = ShardReader(part.store, part.index)
    chosen = torch.randint(part.index.num_samples, (count,), generator=generator)
    labels = [reader.read_labels((_locate_sample(part, sample),)) for sample in chosen.tolist()]
    found = [label for label in labels if label is not None]
    return torch.from_numpy(np.concatenate(found)) if found else None


def draw_samples(part: DataSplit, count: int, generator: torch.Generator) -> DataSamples:
    """`count` different samples drawn from the whole split (all, in random order, where it has fewer).

    Reads no more than it needs.

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    reader = ShardReader(part.store, part.index)
    chosen = torch.randperm(part.index.num_samples, generator=generator)[:count]
    found = [read_samples(reader, _locate_sample(part, sample)) for sample in chosen.tolist()]
    labels = [part.y for part in found if part.y is not None]
    return DataSamples(torch.cat([part.x for part in found]), torch.cat(labels) if labels else None)


def _locate_sample(part: DataSplit, sample: int) -> SampleRun:
    """One sample, by its number in the whole split."""
    number = 0
    while sample >= part.index.shards[number].samples:
        sample -= part.index.shards[number].samples
        number += 1
    return SampleRun(number, sample, sample + 1)


def runs_of_shard(part: DataSplit, shard: int, most_bytes: int) -> Iterator[SampleRun]:
    """A shard cut into runs of samples that take up to `most_bytes` each, stored and decoded (one sample at least)."""
    info = part.index.shards[shard]
    each = max(info.bytes // max(1, info.samples), part.index.decoded_bytes)
    step = max(1, most_bytes // each)
    for first in range(0, info.samples, step):
        yield SampleRun(shard, first, min(first + step, info.samples))


def _refuse_damage(reader: ShardReader, bad: BadSamples) -> None:
    if bad:
        raise InputError(f"Damaged data in {reader.store.url}: {bad[min(bad)]}; restore the shard.")
