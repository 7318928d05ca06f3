"""What a source gives: splits, any samples of which can be read by themselves, here or in another process."""

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
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.errors import InputError
from ali_dist.names import name_to_bytes, printable_name

BUILT_IN_SPLITS = ("train", "test")
"""The splits of every source that can be written without any files."""
_CHUNK = 4096  # rows that are hashed at a time
_MAX_LISTED_CLASSES = 12
SampleNumbers = NDArray[np.int64]
StartTracking = Callable[[str, int | None], Callable[[int], None]]


def track_nothing(name: str, total: int | None) -> Callable[[int], None]:
    """Show nothing. Any `StartTracking` begins to show progress on `total` samples of `name` (None: unknown number).

    Returns:
        A function to be called with the number of samples just done.
    """
    return lambda samples: None


class ShardSamples(Protocol):
    """The samples of one shard, as they travel to the process that writes it: by name, or as arrays."""

    def __len__(self) -> int: ...

    def describe_sample(self, number: int) -> str:
        """What a message calls a sample, by its number from 0 to len - 1."""

    def read_sample(self, number: int) -> PreparedSample:
        """Read a sample with its label, and with its origin where it has a name.

        Raises:
            ValueError: It cannot be read; the message says why.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSplit:
    """One split of a source, not yet read.

    Attributes:
        name: Name of the split, and of the folder it is written to.
        num_samples: Number of samples.
        shape: Shape of a sample, (C, H, W) or (D,).
        dtype: Type of a sample's numbers.
        select_samples: Gives the samples of some numbers below `num_samples`, in that order.
        settings: Everything that decides what is written, JSON-able; equal settings promise equal shards.
        classes: Names of the class numbers, or empty.
        class_numbers: The class of each sample, where they are known before anything is read.
        attributes: Names of the entries of attribute vectors, or empty.
        extra: Facts that are kept in the index; JSON-able.
        is_shuffled: Whether neighbors are unrelated already. Other splits are written in an order that never changes.
    """

    name: str
    num_samples: int
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"] = "uint8"
    select_samples: Callable[[SampleNumbers], ShardSamples]
    settings: dict[str, Any]
    classes: tuple[str, ...] = ()
    class_numbers: NDArray[np.integer[Any]] | None = None
    attributes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    is_shuffled: bool = False


def keep_classes(split: SourceSplit, chosen: Sequence[str]) -> SourceSplit:
    """Keep the samples of some classes only; names and numbers of the classes stay as they are.

    Args:
        split: A split of a source that has classes.
        chosen: Names of the classes to keep.

    Raises:
        InputError: The split has no classes, no class of such a name, or no sample of one.
    """
    if not split.classes:
        kind = "attributes and no classes" if split.attributes else "no classes"
        raise InputError(f"--only chooses classes, but the samples of {split.name} have {kind}: leave it out.")
    if split.class_numbers is None:
        raise InputError(f"--only chooses classes, but this source knows none before it is read, in {split.name}.")
    for name in chosen:
        if name not in split.classes:
            hint = did_you_mean(name, split.classes).removesuffix("?")
            raise InputError(
                f"--only names the class {name!r}, which does not exist{hint}; {_list_some_classes(split.classes)}."
            )
    kept_numbers = sorted(split.classes.index(name) for name in set(chosen))
    has_samples = np.isin(kept_numbers, split.class_numbers)
    if not has_samples.all():
        missing = split.classes[kept_numbers[int(has_samples.argmin())]]
        raise InputError(f"--only names the class {missing!r}, of which {split.name} has no sample: leave it out.")
    rows = np.flatnonzero(np.isin(split.class_numbers, kept_numbers))
    names = [split.classes[number] for number in kept_numbers]
    return dataclasses.replace(
        split,
        num_samples=len(rows),
        select_samples=functools.partial(_select_rows, split.select_samples, rows),
        settings={**split.settings, "only": names},
        class_numbers=split.class_numbers[rows],
    )


def _select_rows(
    select_samples: Callable[[SampleNumbers], ShardSamples], rows: SampleNumbers, numbers: SampleNumbers
) -> ShardSamples:
    return select_samples(rows[numbers])


def _list_some_classes(names: Sequence[str]) -> str:
    """The first of the class names, of which there may be a thousand."""
    listed = ", ".join(map(printable_name, names[:_MAX_LISTED_CLASSES]))
    return f"classes: {listed}{', ...' * (len(names) > _MAX_LISTED_CLASSES)}"


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """Samples that are in memory: x [n, *shape], their labels, and their names where they have any."""

    x: NDArray[Any]
    labels: Sequence[Label | None]
    description: str
    origins: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def describe_sample(self, number: int) -> str:
        return self.origins[number] if self.origins else f"{self.description} {number}"

    def read_sample(self, number: int) -> PreparedSample:
        return PreparedSample(self.x[number], self.labels[number], self.origins[number] if self.origins else "")


def samples_from_arrays(
    x: NDArray[Any], labels: NDArray[np.integer[Any]], description: str, origins: Sequence[str] = ()
) -> Callable[[SampleNumbers], ShardSamples]:
    """A split's `select_samples` for samples [N, *shape] and class numbers [N] in memory, known by `origins` [N]."""

    def select_samples(numbers: SampleNumbers) -> ShardSamples:
        names = tuple(origins[number] for number in numbers.tolist()) if origins else ()
        return ArraySamples(x[numbers], labels[numbers].tolist(), description, names)

    return select_samples


def fingerprint_content(*content: bytes | str | NDArray[Any]) -> str:
    """16 hex digits that change with the content of a source."""
    digest = hashlib.sha256()
    for piece in content:
        if isinstance(piece, np.ndarray):
            digest.update(f"{piece.dtype.str}{piece.shape}".encode())
            for start in range(
                0, len(piece), _CHUNK
            ):  # in pieces, so that an array in another order is not copied as a whole
                digest.update(np.ascontiguousarray(piece[start : start + _CHUNK]).data)
        else:
            digest.update(name_to_bytes(piece) if isinstance(piece, str) else piece)
    return digest.hexdigest()[:16]
