"""Write a split of shards with its index.

Same samples, same options: same bytes. Tars have fixed times and owners, so their sha256 depends on content only.
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
from ali_dist.data.shards.labels import Label, label_array, label_field
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.tar import scan_tar
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

MB = 1_000_000

LabelledSample = tuple[NDArray[Any], Label | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFormat:
    """What all samples of a split have in common.

    Attributes:
        encoding: raw (any sample), or png or jpg (uint8 [1 or 3, H, W]).
        shape: of a sample.
        dtype: of a sample.
        attributes: names of the entries of attribute vectors.
    """

    encoding: Literal["raw", "png", "jpg"]
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        image = self.dtype == "uint8" and len(self.shape) == 3 and self.shape[0] in (1, 3)
        if self.encoding != "raw" and not image:
            raise InputError(
                f"{self.dtype} samples of shape {self.shape} cannot be written as {self.encoding}: use encoding raw."
            )

    def check(self, x: NDArray[Any], name: object) -> None:
        """InputError, which names the sample, unless `x` has this form."""
        if x.shape != self.shape or x.dtype != np.dtype(self.dtype):
            raise InputError(f"Sample {name} is {x.dtype} {x.shape}, but must be {self.dtype} {self.shape}.")


def write_shard(
    store: Store, number: int, samples: Iterable[LabelledSample], form: SampleFormat
) -> tuple[Shard, Statistics]:
    """Write the shard of a number, with its sidecar; shards may be written in any order and by several processes.

    Args:
        store: the split's own folder.
        number: of the shard.
        samples: at least one pair of a sample [*shape], and a class number, an attribute vector [A], or None.
        form: of the samples.

    Returns:
        The shard, for `write_index`, and what its samples count.

    Raises:
        InputError: samples of another form, or with different kinds of label.
    """
    statistics = Statistics(form.shape, form.dtype)
    tar = _TarBuilder(number, form)
    for count, (x, label) in enumerate(samples):
        form.check(x, f"{count} of shard {number}")
        tar.add(x, label)
    return tar.finish(store, statistics), statistics


def write_index(
    store: Store,
    form: SampleFormat,
    shards: Sequence[Shard],
    statistics: Statistics,
    *,
    classes: Sequence[str],
    extra: dict[str, Any],
) -> Index:
    """Write index.json for shards that are there: from now on the split is complete.

    Raises:
        InputError: there are no shards.
    """
    if not shards:
        raise InputError(f"There are no samples to write to {store.url}: check the source.")
    index = Index(
        encoding=form.encoding,
        dtype=form.dtype,
        shape=form.shape,
        shards=tuple(shards),
        classes=tuple(classes),
        attributes=form.attributes,
        extra=extra,
        **statistics.for_index(),
    )
    store.put(INDEX_KEY, index.to_json().encode())
    return index


class _TarBuilder:
    """A shard under way, in memory until it is finished: what webdataset's own TarWriter would write.

    Not that writer itself: importing webdataset imports torch, which takes each of several processes seconds.
    """

    def __init__(self, number: int, form: SampleFormat) -> None:
        self._number, self._form = number, form
        self._key = f"{number:05d}.tar"
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._samples: list[NDArray[Any]] = []
        self._labels: list[Label | None] = []
        self._crcs: list[int] = []

    def add(self, x: NDArray[Any], label: Label | None) -> None:
        """Append a sample."""
        encoding = self._form.encoding
        payload = encode_sample(x, encoding)
        fields = {encoding: payload, **label_field(label, self._form.attributes)}
        for name in sorted(fields):
            member = tarfile.TarInfo(f"{self._number:05d}-{len(self._samples):07d}.{name}")
            member.size, member.mode = len(fields[name]), 0o444
            self._tar.addfile(member, io.BytesIO(fields[name]))
        self._samples.append(x)
        self._labels.append(label)
        self._crcs.append(zlib.crc32(payload))

    def finish(self, store: Store, statistics: Statistics) -> Shard:
        """Close the tar, store it and its sidecar, and count its samples."""
        self._tar.close()
        data = self._file.getvalue()
        extents = [record.fields[self._form.encoding] for record in scan_tar(data, self._key)]
        sidecar = Sidecar(
            offsets=np.array([extent.offset for extent in extents], dtype=np.int64),
            sizes=np.array([extent.size for extent in extents], dtype=np.int64),
            crc32=np.array(self._crcs, dtype=np.uint32),
            labels=label_array(self._labels, self._key),
        )
        statistics.add(np.stack(self._samples))
        shard = Shard(self._key, len(data), len(extents), hashlib.sha256(data).hexdigest(), sidecar.sha256())
        put_if_changed(store, shard.key, data)
        put_if_changed(store, shard.sidecar_key, sidecar.to_bytes())
        return shard


def put_if_changed(store: Store, key: str, data: bytes) -> None:
    """Store `data` unless it is there already: a reader of the same object must not see it change."""
    there = store.stat(key)
    if there is None or there.size != len(data) or store.get(key) != data:
        store.put(key, data)
