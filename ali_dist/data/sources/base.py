"""What a source offers: splits, any part of which can be read by itself, here or in another process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ali_dist.config.loading import did_you_mean
from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.writer import LabelledSample
from ali_dist.errors import InputError

_CHUNK = 4096
_SHOWN = 12
SampleNumbers = NDArray[np.int64]
StartTracking = Callable[[str, int | None], Callable[[int], None]]


def track_nothing(name: str, total: int | None) -> Callable[[int], None]:
    """Begin to show progress on `total` samples of `name`, and return what counts them: here, show nothing."""
    return lambda samples: None


class ShardSamples(Protocol):
    """The samples of one shard, as they travel to the process that writes it: by name, or as arrays."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What a message calls the sample."""

    def read(self, number: int) -> LabelledSample:
        """The sample and its label; ValueError says why it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSplit:
    """One split of a source, not yet read.

    Attributes:
        name: of the split, and of the folder it is written to.
        size: number of samples.
        shape: of a sample, (C, H, W) or (D,).
        dtype: of a sample.
        part: the samples of some numbers below `size`, in that order.
        settings: everything that decides what is written, JSON-able; equal settings promise equal shards.
        classes: names of the class numbers, or empty.
        class_numbers: class of each sample, where they are known before anything is read.
        attributes: names of the entries of attribute vectors, or empty.
        extra: kept in the index; JSON-able.
        mixed: neighbours are unrelated already; others are written in an order drawn once and for all.
    """

    name: str
    size: int
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"] = "uint8"
    part: Callable[[SampleNumbers], ShardSamples]
    settings: dict[str, Any]
    classes: tuple[str, ...] = ()
    class_numbers: NDArray[np.integer[Any]] | None = None
    attributes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    mixed: bool = False


def keep_classes(split: SourceSplit, chosen: Sequence[str]) -> SourceSplit:
    """The samples of some classes; names and numbers of the classes stay as they are.

    Args:
        split: of a source that has classes.
        chosen: names of classes.

    Raises:
        InputError: it has none, or none of such a name, or no sample of one.
    """
    if split.class_numbers is None or not split.classes:
        raise InputError(f"--only chooses classes, but this source knows none before it is read, in {split.name}.")
    for name in chosen:
        if name not in split.classes:
            hint = did_you_mean(name, split.classes).removesuffix("?")
            raise InputError(
                f"--only names the class {name!r}, which there is not{hint}; {_list_some_classes(split.classes)}."
            )
    wanted = sorted(split.classes.index(name) for name in set(chosen))
    there = np.isin(wanted, split.class_numbers)
    if not there.all():
        missing = split.classes[wanted[int(there.argmin())]]
        raise InputError(f"--only names the class {missing!r}, of which {split.name} has no sample: leave it out.")
    rows = np.flatnonzero(np.isin(split.class_numbers, wanted))
    names = [split.classes[number] for number in wanted]
    return dataclasses.replace(
        split,
        size=len(rows),
        part=functools.partial(_renumber_samples, split.part, rows),
        settings={**split.settings, "only": names},
        class_numbers=split.class_numbers[rows],
    )


def _renumber_samples(
    part: Callable[[SampleNumbers], ShardSamples], rows: SampleNumbers, numbers: SampleNumbers
) -> ShardSamples:
    return part(rows[numbers])


def _list_some_classes(names: Sequence[str]) -> str:
    """The first names of what may be a thousand."""
    return f"classes: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """Samples that are in memory: x [n, *shape], and their labels."""

    x: NDArray[Any]
    labels: Sequence[Label | None]
    what: str

    def __len__(self) -> int:
        return len(self.x)

    def name(self, number: int) -> str:
        return f"{self.what} {number}"

    def read(self, number: int) -> LabelledSample:
        return self.x[number], self.labels[number]


def samples_from_arrays(
    x: NDArray[Any], labels: NDArray[np.integer[Any]], what: str
) -> Callable[[SampleNumbers], ShardSamples]:
    """A split's `part`, for samples [N, *shape] and class numbers [N] in memory."""
    return lambda numbers: ArraySamples(x[numbers], labels[numbers].tolist(), what)


def fingerprint_content(*content: bytes | str | NDArray[Any]) -> str:
    """16 hex digits that change with the content of a source."""
    digest = hashlib.sha256()
    for piece in content:
        if isinstance(piece, np.ndarray):
            digest.update(f"{piece.dtype.str}{piece.shape}".encode())
            for start in range(0, len(piece), _CHUNK):  # no copy of the whole, whatever its order in memory
                digest.update(np.ascontiguousarray(piece[start : start + _CHUNK]).data)
        else:
            digest.update(piece.encode() if isinstance(piece, str) else piece)
    return digest.hexdigest()[:16]
