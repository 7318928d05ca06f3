"""The data that a trained model is used on: found, checked against what it was trained on, and read in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ali_dist.config import StorageConfig
from ali_dist.data.index import find_split, load_index
from ali_dist.data.order import Run
from ali_dist.data.reader import Bad, ShardReader
from ali_dist.data.storage import Store
from ali_dist.errors import InputError
from ali_dist.model.condition import condition_vectors
from ali_dist.training.inputs import Part, open_url
from ali_dist.training.saved import Saved, merged


@dataclass(frozen=True, slots=True)
class Samples:
    """Some samples of a split.

    Attributes:
        x: As stored, [N, *shape].
        y: Labels, int64 [N] or float32 [N, A]; None where the data have none.
    """

    x: Tensor
    y: Tensor | None


def open_given(saved: Saved, url: str | None, splits: Sequence[str], storage: StorageConfig) -> Part:
    """The first of `splits` that the data at `url` (default: the run's own) have.

    Raises:
        InputError: There is none of them, or the model was not made for such samples.
    """
    root = open_url(url or saved.config.data.url, merged(saved.config, storage))
    part = _first_part(root, splits, "" if url else " (the data of the run; --data names others)")
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


def _first_part(root: Store, splits: Sequence[str], hint: str) -> Part:
    refusals = []
    for split in splits:
        try:
            store = find_split(root, split)
            return Part(store, load_index(store))
        except InputError as error:
            refusals.append(error)
    raise InputError(f"{str(refusals[0]).rstrip('.')}{hint}.") from refusals[0]


def conditions(saved: Saved, part: Part, y: Tensor | None) -> Tensor | None:
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
        has = f"other {kind} ({_some(getattr(index, kind))})"
    elif kind == "classes" and len(y) and int(y.max()) >= size:
        has = f"a class {int(y.max())}"
    else:
        return condition_vectors(y, size)
    raise InputError(
        f"Run {saved.name!r} is conditional on {len(names)} {kind} ({_some(names)}), but the data in {part.store.url} "
        f"have {has}: give data with the same {kind}."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def read_run(reader: ShardReader, run: Run) -> Samples:
    """The samples of `run`, in order.

    Raises:
        InputError: One is damaged.
    """
    count = run.last - run.first
    x = np.empty((count, *reader.index.shape), dtype=reader.index.dtype)
    _refuse(reader, reader.read(run, x, np.arange(count)))
    y = reader.labels((run,))
    return Samples(torch.from_numpy(x), None if y is None else torch.tensor(y))


def draw_labels(part: Part, count: int, generator: torch.Generator) -> Tensor | None:
    """Labels of `count` samples drawn from the whole split with replacement; None without labels. Reads no sample."""
    reader = ShardReader(part.store, part.index)
    chosen = torch.randint(part.index.num_samples, (count,), generator=generator)
    labels = [reader.labels((_place(part, sample),)) for sample in chosen.tolist()]
    found = [label for label in labels if label is not None]
    return torch.from_numpy(np.concatenate(found)) if found else None


def draw_samples(part: Part, count: int, generator: torch.Generator) -> Samples:
    """`count` different samples drawn from the whole split (all, in random order, where it has fewer).

    Reads no more than it needs.

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    reader = ShardReader(part.store, part.index)
    chosen = torch.randperm(part.index.num_samples, generator=generator)[:count]
    found = [read_run(reader, _place(part, sample)) for sample in chosen.tolist()]
    labels = [part.y for part in found if part.y is not None]
    return Samples(torch.cat([part.x for part in found]), torch.cat(labels) if labels else None)


def _place(part: Part, sample: int) -> Run:
    """One sample, by its number in the whole split."""
    number = 0
    while sample >= part.index.shards[number].samples:
        sample -= part.index.shards[number].samples
        number += 1
    return Run(number, sample, sample + 1)


def runs_of_shard(part: Part, shard: int, most_bytes: int) -> Iterator[Run]:
    """A shard cut into runs of samples that take up to `most_bytes` each, stored and decoded (one sample at least)."""
    info = part.index.shards[shard]
    each = max(info.bytes // max(1, info.samples), part.index.decoded_bytes)
    step = max(1, most_bytes // each)
    for first in range(0, info.samples, step):
        yield Run(shard, first, min(first + step, info.samples))


def _refuse(reader: ShardReader, bad: Bad) -> None:
    if bad:
        raise InputError(f"Damaged data in {reader.store.url}: {bad[min(bad)]}; restore the shard.")
