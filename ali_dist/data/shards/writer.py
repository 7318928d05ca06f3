"""Write the shards of a split and its index.

Equal samples and options give equal bytes. Tars have fixed times and owners, so that their sha256 depends on their
content alone.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.codec import encode_sample
from ali_dist.data.shards.index import (
    INDEX_KEY,
    Index,
    Shard,
)
from ali_dist.data.shards.labels import encode_label, join_labels
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.tar import scan_tar
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFormat:
    """What all samples of a split have in common.

    Attributes:
        encoding: `raw` for any sample, or `png` or `jpg` for uint8 [1 or 3, H, W].
        shape: Shape of a sample.
        dtype: Type of a sample.
        attributes: Names of the entries of attribute vectors.
    """

    encoding: Literal["raw", "png", "jpg"]
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_image = self.dtype == "uint8" and len(self.shape) == 3 and self.shape[0] in (1, 3)
        if self.encoding != "raw" and not is_image:
            raise InputError(
                f"{self.dtype} samples of shape {self.shape} cannot be written as {self.encoding}: use encoding raw."
            )

    def check_sample(self, x: NDArray[Any], name: str) -> None:
        """Refuse a sample of another format.

        Raises:
            InputError: The sample has another shape or dtype; the message has its name.
        """
        if x.shape != self.shape or x.dtype != np.dtype(self.dtype):
            raise InputError(f"Sample {name} is {x.dtype} {x.shape}, but must be {self.dtype} {self.shape}.")


def write_shard(
    store: Store, number: int, samples: Iterable[PreparedSample], sample_format: SampleFormat
) -> tuple[Shard, Statistics]:
    """Write one shard with its sidecar; shards may be written in any order and by several processes.

    Args:
        store: The split's own folder.
        number: Number of the shard, which is in its name.
        samples: At least one.
        sample_format: What the samples have in common.

    Returns:
        The shard, for `write_index`, and what its samples count.

    Raises:
        InputError: A sample has another format, or samples have different kinds of label.
    """
    tar = _TarBuilder(number, sample_format)
    for count, sample in enumerate(samples):
        sample_format.check_sample(sample.x, sample.origin or f"{count} of shard {number}")
        tar.add_sample(sample)
    return tar.finish(store)


def write_index(
    store: Store,
    sample_format: SampleFormat,
    shards: Sequence[Shard],
    statistics: Statistics,
    *,
    classes: Sequence[str],
    extra: dict[str, Any],
) -> Index:
    """Write index.json for shards that have been written; from then on the split is complete.

    Args:
        store: The split's own folder.
        sample_format: What all samples have in common.
        shards: The shards, in the order in which sample ids count through them.
        statistics: What the samples of all shards count.
        classes: Names of the class numbers, or empty.
        extra: Facts about the source, JSON-able.

    Raises:
        InputError: There are no shards.
    """
    if not shards:
        raise InputError(f"There are no samples to write to {store.url}: check the source.")
    index = Index(
        encoding=sample_format.encoding,
        dtype=sample_format.dtype,
        shape=sample_format.shape,
        shards=tuple(shards),
        classes=tuple(classes),
        attributes=sample_format.attributes,
        extra=extra,
        **statistics.index_fields(),
    )
    store.put(INDEX_KEY, index.to_json().encode())
    return index


class _TarBuilder:
    """A shard that is being built in memory, byte for byte as webdataset's own TarWriter would write it.

    That writer itself will not do: importing webdataset imports torch, which takes each of several processes seconds.
    """

    def __init__(self, number: int, sample_format: SampleFormat) -> None:
        self._number = number
        self._sample_format = sample_format
        self._key = f"{number:05d}.tar"
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._samples: list[PreparedSample] = []
        self._crcs: list[int] = []

    def add_sample(self, sample: PreparedSample) -> None:
        """Append a sample."""
        encoding = self._sample_format.encoding
        payload = encode_sample(sample.x, encoding)
        fields = {encoding: payload, **encode_label(sample.label, self._sample_format.attributes)}
        for name in sorted(fields):
            member = tarfile.TarInfo(f"{self._number:05d}-{len(self._samples):07d}.{name}")
            member.size = len(fields[name])
            member.mode = 0o444
            self._tar.addfile(member, io.BytesIO(fields[name]))
        self._samples.append(sample)
        self._crcs.append(zlib.crc32(payload))

    def finish(self, store: Store) -> tuple[Shard, Statistics]:
        """Close the tar, store it and its sidecar, and count its samples."""
        self._tar.close()
        data = self._file.getvalue()
        extents = [record.fields[self._sample_format.encoding] for record in scan_tar(data, self._key).samples]
        sidecar = Sidecar(
            offsets=np.array([extent.offset for extent in extents], dtype=np.int64),
            sizes=np.array([extent.size for extent in extents], dtype=np.int64),
            crc32=np.array(self._crcs, dtype=np.uint32),
            labels=join_labels([sample.label for sample in self._samples], self._key),
            origins=self._origins(),
        )
        statistics = Statistics(self._sample_format.shape, self._sample_format.dtype)
        statistics.add_samples(np.stack([sample.x for sample in self._samples]))
        shard = Shard(self._key, len(data), len(extents), hashlib.sha256(data).hexdigest(), sidecar.content_sha256())
        put_if_changed(store, shard.key, data)
        put_if_changed(store, shard.sidecar_key, sidecar.to_bytes())
        return shard, statistics

    def _origins(self) -> tuple[str, ...] | None:
        origins = tuple(sample.origin for sample in self._samples)
        return origins if any(origins) else None


def put_if_changed(store: Store, key: str, data: bytes) -> None:
    """Store `data` unless the object has that content already: whoever reads it must not see it change."""
    info = store.stat(key)
    if info is None or info.size != len(data) or store.get(key) != data:
        store.put(key, data)
