"""The data that a trained model is used on: opened, checked against the training data, and read in parts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ali_dist.config import StorageConfig
from ali_dist.data.order import SampleRun
from ali_dist.data.preparation.advice import find_prepared_split
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import BadSamples, ShardReader, load_origins
from ali_dist.errors import InputError
from ali_dist.inference.load import LoadedRun, storage_for_data
from ali_dist.model.data_space import condition_vectors
from ali_dist.runs.datasets import DataSplit, open_url
from ali_dist.storage import is_local
from ali_dist.storage.base import Store


@dataclass(frozen=True, slots=True)
class DataSamples:
    """Some samples of a split.

    Attributes:
        x: Samples as they are stored, [N, *shape].
        y: Labels, int64 [N] or float32 [N, A]; None where the data have none.
        ids: Their ids in the split's index, [N]; empty where nobody asked for them.
        origins: What the user knows each by, [N]; None for those that have no name. Empty with `ids`.
    """

    x: Tensor
    y: Tensor | None
    ids: tuple[int, ...] = ()
    origins: tuple[str | None, ...] = ()


def open_samples_for(run: LoadedRun, url: str | None, splits: Sequence[str], storage: StorageConfig) -> DataSplit:
    """Open the first of some splits that the data have.

    Args:
        run: The run whose model the data are for.
        url: Where the data are; None: the run's own.
        splits: Names of splits, the most wanted first.
        storage: How to reach S3.

    Raises:
        InputError: The data have none of the splits, or the model was not made for such samples.
    """
    root = open_url(url or run.config.data.url, storage_for_data(run.config, storage))
    split = _open_first_split(root, splits, "" if url else _describe_own(run.config.data.url))
    shape = split.index.shape
    own_shape = run.spec.shape
    fits = shape[0] == own_shape[0] if run.spec.is_images else shape == own_shape
    if len(shape) != len(own_shape) or not fits:
        raise InputError(
            f"The data in {split.store.url} have samples of shape {list(shape)}, but run {run.name!r} was trained on "
            f"{list(own_shape)}: give data of the same kind{' and number of channels' if run.spec.is_images else ''}."
        )
    if split.index.dtype != run.spec.dtype:
        raise InputError(
            f"The data in {split.store.url} are {split.index.dtype}, but run {run.name!r} was trained on "
            f"{run.spec.dtype}, in other units: prepare them in the same way."
        )
    return split


def say_resize(run: LoadedRun, split: DataSplit) -> None:
    """Say on stderr where images of another size than the training data's are resized; theirs was said in training."""
    space = dataclasses.replace(run.space, stored_shape=split.index.shape)
    if split.index.shape != run.spec.shape and (resize := space.describe_resize()):
        sys.stderr.write(f"{resize}\n")


def _describe_own(url: str) -> str:
    """Whose data they are that were not found, and where they were looked for, if that depends on where one is."""
    is_relative = is_local(url) and not Path(url).is_absolute()
    looked_for = f", which were in {url!r} of the folder that it was trained from" if is_relative else ""
    return f" (the data of the run{looked_for}; --data names others)"


def _open_first_split(root: Store, splits: Sequence[str], hint: str) -> DataSplit:
    refusals = []
    for name in splits:
        try:
            store = find_prepared_split(root, name)
            return DataSplit(store, load_index(store))
        except InputError as error:
            refusals.append(error)
    raise InputError(f"{str(refusals[0]).rstrip('.')}{hint}.") from refusals[0]


def conditions_for_samples(run: LoadedRun, split: DataSplit, y: Tensor | None) -> Tensor | None:
    """Turn labels into what a conditional model is given.

    Args:
        run: The run of the model.
        split: Where the samples are from.
        y: Labels of N samples, or None.

    Returns:
        Conditions float32 [N, A]; None for an unconditional model.

    Raises:
        InputError: The labels are missing, of another kind, or of other classes or attributes.
    """
    kind = run.config.model.condition
    if kind == "none":
        return None
    names: tuple[str, ...] = getattr(run.spec, kind)
    data_names: tuple[str, ...] = getattr(split.index, kind)
    size = run.model.condition_size
    if y is None or y.is_floating_point() != (kind == "attributes"):
        problem = "no labels" if y is None else "labels of another kind"
    elif data_names != names:
        problem = f"other {kind} ({_list_some(data_names)})"
    elif kind == "classes" and len(y) and int(y.max()) >= size:
        problem = f"a class {int(y.max())}"
    else:
        return condition_vectors(y, size)
    raise InputError(
        f"Run {run.name!r} is conditional on {len(names)} {kind} ({_list_some(names)}), but the "
        f"data in {split.store.url} have {problem}: give data with the same {kind}."
    )


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def read_samples(reader: ShardReader, sample_run: SampleRun) -> DataSamples:
    """Read samples that are stored one after another, in order.

    Raises:
        InputError: One is damaged.
    """
    count = sample_run.stop - sample_run.start
    x = np.empty((count, *reader.index.shape), dtype=reader.index.dtype)
    _refuse_damage(reader, reader.read_run(sample_run, x, np.arange(count)))
    y = reader.read_labels((sample_run,))
    return DataSamples(torch.from_numpy(x), None if y is None else torch.tensor(y))


def draw_labels(split: DataSplit, count: int, generator: torch.Generator) -> Tensor | None:
    """Draw the labels of `count` samples, with replacement, from the whole split; reads no sample.

    Returns:
        Labels, int64 [count] or float32 [count, A]; None where the data have none.
    """
    reader = ShardReader(split.store, split.index)
    chosen = torch.randint(split.index.num_samples, (count,), generator=generator)
    labels = [reader.read_labels((_locate_sample(split, sample),)) for sample in chosen.tolist()]
    known_labels = [label for label in labels if label is not None]
    return torch.from_numpy(np.concatenate(known_labels)) if known_labels else None


def draw_samples(split: DataSplit, count: int, generator: torch.Generator) -> DataSamples:
    """Draw `count` different samples from the whole split (all of it, in random order, where it has fewer).

    Only the drawn samples are read.

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    reader = ShardReader(split.store, split.index)
    chosen = torch.randperm(split.index.num_samples, generator=generator)[:count]
    samples = [read_samples(reader, _locate_sample(split, sample)) for sample in chosen.tolist()]
    labels = [sample.y for sample in samples if sample.y is not None]
    return DataSamples(
        torch.cat([sample.x for sample in samples]),
        torch.cat(labels) if labels else None,
        tuple(chosen.tolist()),
        tuple(load_origins(split.store, split.index, chosen.numpy())),
    )


def _locate_sample(split: DataSplit, sample: int) -> SampleRun:
    """Find a sample by its number in the whole split."""
    shard = 0
    while sample >= split.index.shards[shard].samples:
        sample -= split.index.shards[shard].samples
        shard += 1
    return SampleRun(shard, sample, sample + 1)


def runs_of_shard(split: DataSplit, shard: int, most_bytes: int) -> Iterator[SampleRun]:
    """Cut a shard into runs of samples that take up to `most_bytes` each, stored or decoded (one sample at least)."""
    info = split.index.shards[shard]
    sample_bytes = max(info.bytes // max(1, info.samples), split.index.decoded_bytes)
    step = max(1, most_bytes // sample_bytes)
    for first in range(0, info.samples, step):
        yield SampleRun(shard, first, min(first + step, info.samples))


def _refuse_damage(reader: ShardReader, bad: BadSamples) -> None:
    if bad:
        raise InputError(f"Damaged data in {reader.store.url}: {bad[min(bad)]}; restore the shard.")
