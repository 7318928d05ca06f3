"""The index of a split: what `index.json` and the shards' sidecars say, and the checks that it is true.

A split is a folder with `index.json`, its shards (plain USTAR WebDataset tars) and beside each shard
`NNNNN.tar` a sidecar `NNNNN.npz` with the place, size, crc32 and label of every sample. index.json is written
last, so a split that has one is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ali_dist.data.shards.index_checks import check_index
from ali_dist.data.shards.location import open_tars
from ali_dist.data.shards.pictures import BACKGROUND
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.errors import InputError
from ali_dist.model.data_spec import DataSpec
from ali_dist.storage.base import MissingObject, Store

FORMAT_VERSION = 1
INDEX_KEY = "index.json"
PREPARE_HINT = "write them with `python -m ali_dist.prepare SOURCE OUT`"


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar, as index.json lists it; the fields have the names that they have there.

    Attributes:
        key: Key of the tar in the split's store.
        bytes: Size of the tar.
        samples: Number of its samples.
        sha256: Hash of the tar.
        sidecar_sha256: Hash of the sidecar's content.
    """

    key: str
    bytes: int
    samples: int
    sha256: str
    sidecar_sha256: str

    @property
    def sidecar_key(self) -> str:
        """The key of the sidecar beside the tar."""
        return self.key.removesuffix(".tar") + ".npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What a split holds.

    Attributes:
        encoding: How a sample's payload is stored. Only tars that somebody else wrote have `npy`, and `image`: images
            of several formats, or of another one.
        dtype: Type of a decoded sample; `uint8` stands for [0, 1] in steps of 1/255, `float32` is in raw units.
        shape: Shape of a decoded sample, (C, H, W) or (D,).
        classes: Names of the integer labels, or empty.
        attributes: Names of the entries of attribute vectors, or empty.
        mean: Mean of each channel (axis 0 of `shape`), in [0, 1] for uint8.
        std: Standard deviation of each channel, in the same units.
        pixel_mean: Mean of each entry of a sample, flattened [prod(shape)], in the same units.
        extra: Facts about the source, JSON-able. `tars` is where the tars are if not beside index.json.
        shards: The tars, in the order in which sample ids count through them.
    """

    encoding: Literal["raw", "png", "jpg", "npy", "image"]
    dtype: Literal["uint8", "float32"]
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_mean: tuple[float, ...]
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def num_samples(self) -> int:
        """The number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def decoded_bytes(self) -> int:
        """The size of one decoded sample in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def spec(self) -> DataSpec:
        """What a model has to know of the data."""
        return DataSpec(tuple(self.shape), self.dtype, self.classes, self.attributes, self.extra.get("mixture"))

    @property
    def background(self) -> str:
        """The color that transparent images of tars are put on."""
        return str(self.extra.get("background", BACKGROUND))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that decides the samples or their order."""
        content = [
            self.format_version,
            self.encoding,
            self.dtype,
            self.shape,
            self.classes,
            self.attributes,
            [dataclasses.astuple(shard) for shard in self.shards],
            *([] if self.background == BACKGROUND else [self.background]),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of index.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = INDEX_KEY) -> Index:
        """Parse and check index.json.

        Args:
            text: The content of the file.
            where: What messages call the file.

        Raises:
            InputError: It is not an index, or one of another format version; the message names `where`.
        """
        try:
            content = json.loads(text)
            version = content["format_version"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{where} is not an index ({_error_line(error)}): {PREPARE_HINT}.") from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"{where} has format version {version!r}, but this program reads version {FORMAT_VERSION}: "
                f"prepare the data again, or use the version of the program that wrote it."
            )
        try:
            index = _from_content(cls, content)
            check_index(index)
            return index
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise InputError(f"{where} is not a complete index ({_error_line(error)}): {PREPARE_HINT}.") from error


def _from_content(cls: type[Index], content: Mapping[str, Any]) -> Index:
    values = {f.name: content[f.name] for f in dataclasses.fields(cls)}
    for name in ("shape", "mean", "std", "pixel_mean", "classes", "attributes"):
        values[name] = tuple(values[name])
    values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
    return cls(**values)


def _error_line(error: Exception) -> str:
    """The message of an exception, on one line."""
    text = " ".join(str(error).split())
    return f"no {text}" if isinstance(error, KeyError) else text


def load_index(store: Store) -> Index:
    """Read the index of a split.

    Raises:
        InputError: There is no index, or it is not valid; the message names the url and the command that writes one.
    """
    try:
        data = store.get(INDEX_KEY)
    except MissingObject as error:
        raise InputError(f"There is no {INDEX_KEY} in {store.url}: {PREPARE_HINT}.") from error
    return Index.from_json(data, f"{store.url}/{INDEX_KEY}")


def load_sidecar(store: Store, index: Index, shard_number: int) -> Sidecar:
    """Read the sidecar of one shard and check that it is the one the index was written with.

    Raises:
        InputError: The sidecar is missing, damaged, or of another shard.
    """
    shard = index.shards[shard_number]
    try:
        sidecar = Sidecar.from_bytes(store.get(shard.sidecar_key), shard.samples, len(index.attributes))
    except MissingObject as error:
        raise mismatch_error(store, f"{shard.sidecar_key} is missing") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise mismatch_error(store, f"{shard.sidecar_key} cannot be read ({_error_line(error)})") from error
    if len(sidecar.offsets) != shard.samples:
        reason = f"{shard.sidecar_key} lists {len(sidecar.offsets)} samples, the index {shard.samples}"
        raise mismatch_error(store, reason)
    if sidecar.content_sha256() != shard.sidecar_sha256:
        raise mismatch_error(store, f"{shard.sidecar_key} is not the one the index was written with")
    _check_extent(store, shard, sidecar)
    _check_labels(store, index, shard, sidecar)
    return sidecar


def _check_extent(store: Store, shard: Shard, sidecar: Sidecar) -> None:
    """Refuse samples that lie beyond the end of their tar."""
    if len(sidecar.offsets) and int(sidecar.offsets[-1]) + int(sidecar.sizes[-1]) > shard.bytes:
        raise mismatch_error(store, f"{shard.sidecar_key} places samples beyond the end of {shard.key}")


def _check_labels(store: Store, index: Index, shard: Shard, sidecar: Sidecar) -> None:
    """Refuse attributes without names, and a class number that has none: a model has as many classes as names."""
    labels = sidecar.labels
    if labels is not None and labels.ndim == 2 and labels.shape[1] != len(index.attributes):
        reason = f"{shard.sidecar_key} has {labels.shape[1]} attributes, the index {len(index.attributes)}"
        raise mismatch_error(store, reason)
    if not index.classes or labels is None or labels.ndim != 1 or not len(labels):
        return
    number = int(labels.argmin() if labels.min() < 0 else labels.argmax())  # the sample with the worst label
    if not 0 <= int(labels[number]) < len(index.classes):
        raise InputError(
            f"Sample {number} of {shard.key} in {store.url} has class {int(labels[number])}, but the index names "
            f"{len(index.classes)} classes, counted from 0: prepare the data again, with a name for each class."
        )


def check_listing(store: Store, index: Index, tars: Store | None = None) -> dict[str, str]:
    """Check that every shard is there with the size that the index says. This takes one listing and reads no shard.

    Args:
        store: The split's own folder.
        index: Its index.
        tars: The store of the tars that will be read; by default another one for the same place.

    Returns:
        The etag of each shard by key, with which a reader notices that an object changes while it is being read.

    Raises:
        InputError: A shard or sidecar is missing, or has another size.
    """
    tars = open_tars(store, index.extra) if tars is None else tars
    sidecars = {info.key: info for info in store.list()}
    stored = sidecars if tars is store else {info.key: info for info in tars.list()}
    for shard in index.shards:
        for key, present in ((shard.key, stored), (shard.sidecar_key, sidecars)):
            if key not in present:
                raise mismatch_error(store, f"{key} is missing (the index lists {len(index.shards)} shards)")
        if stored[shard.key].size != shard.bytes:
            raise mismatch_error(store, f"{shard.key} has {stored[shard.key].size} bytes, the index says {shard.bytes}")
    return {shard.key: stored[shard.key].etag for shard in index.shards}


def mismatch_error(store: Store, reason: str) -> InputError:
    """The error for data that are not what the index in `store` says."""
    return InputError(
        f"The index does not match its shards in {store.url}: {reason}; copy the folder again, or remove it and "
        f"prepare it again."
    )


def find_split(store: Store, split: str) -> Store:
    """Find the store of one split: `<url>/<split>`, or `<url>` itself if it holds an index.json, as the only split.

    Raises:
        InputError: There is no such split; the message lists those that exist.
    """
    if store.stat(INDEX_KEY) is not None:
        return store
    child = store.child(split)
    if child.stat(INDEX_KEY) is not None:
        return child
    existing = [info.key.removesuffix(f"/{INDEX_KEY}") for info in store.list() if info.key.endswith(f"/{INDEX_KEY}")]
    if existing:
        raise InputError(f"There is no split {split!r} in {store.url}; its splits are: {', '.join(sorted(existing))}.")
    raise InputError(f"There are no prepared shards in {store.url} (no {INDEX_KEY}): {PREPARE_HINT}.")
