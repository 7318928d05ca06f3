"""Index WebDataset tars that another program wrote, in place and without changing them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np

from ali_dist.data.shards.codec import Sample, read_image, read_npy
from ali_dist.data.shards.index import INDEX_KEY, Index, Shard
from ali_dist.data.shards.labels import Label, join_labels, numeric_names, parse_label
from ali_dist.data.shards.reader import READERS
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.tar import ByteExtent, TarSample, scan_tar
from ali_dist.data.shards.writer import put_if_changed
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

Encoding = Literal["png", "jpg", "npy"]
_IMAGES: dict[str, Encoding] = {"png": "png", "jpg": "jpg", "jpeg": "jpg"}
_LABELS = ("cls", "json")


class _TarFormat(NamedTuple):
    """What the first sample decides for all samples: encoding, shape (C, H, W) and attribute names."""

    encoding: Encoding
    shape: tuple[int, ...]
    attributes: tuple[str, ...]


def list_tar_folders(store: Store) -> list[str]:
    """List the folders below `store` ('' is the store itself) that hold tars; each is a split."""
    return sorted({info.key.rpartition("/")[0] for info in store.list() if info.key.endswith(".tar")})


def index_webdataset(store: Store, on_shard: Callable[[int], None] = lambda samples: None) -> Index:
    """Write sidecars and index.json for the tars in a folder; the tars stay as they are.

    A sample is one png, jpg or jpeg field, or, where there is none, an npy field (uint8 [H, W], [H, W, 1 or 3] or
    [1 or 3, H, W]), and, in all samples or in none, a label: `cls` (a class number), else the numbers of a `json`
    object (attributes). Other fields are left alone. Gray images among color images are read as RGB.

    Args:
        store: The split's own folder.
        on_shard: Called after each tar with its number of samples.

    Raises:
        InputError: There are no tars, one is damaged, or a sample does not fit the first one; the message names the tar
            and the sample.
    """
    keys = [info.key for info in store.list() if info.key.endswith(".tar") and "/" not in info.key]
    if not keys:
        raise InputError(f"There are no .tar files in {store.url}: give the folder that holds the shards.")
    tar_format = _find_tar_format(store, keys[0])
    statistics = Statistics(tar_format.shape, "uint8")
    shards, labels = [], []
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="ali-index")
    try:
        for shard, sidecar, counted in pool.map(lambda key: _index_tar(store, key, tar_format), keys):
            statistics.merge(counted)
            shards.append(shard)
            labels.append(sidecar.labels)
            on_shard(shard.samples)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    index = Index(
        encoding=tar_format.encoding,
        dtype="uint8",
        shape=tar_format.shape,
        shards=tuple(shards),
        classes=_class_names(store, labels),
        attributes=tar_format.attributes,
        extra={"source": {"name": "webdataset"}},
        **statistics.index_fields(),
    )
    store.put(INDEX_KEY, index.to_json().encode())
    return index


def _class_names(store: Store, labels: list[Any]) -> tuple[str, ...]:
    """Name the classes '0', '1', ... up to the largest class number; empty without class numbers."""
    dimensions = {None if labels_of_shard is None else labels_of_shard.ndim for labels_of_shard in labels}
    if len(dimensions) > 1:
        raise InputError(
            f"The shards of {store.url} have different kinds of label, or only some have one: give all the same kind."
        )
    if labels[0] is None or labels[0].ndim != 1:
        return ()
    return tuple(str(number) for number in range(int(max(labels_of_shard.max() for labels_of_shard in labels)) + 1))


def _find_tar_format(store: Store, key: str) -> _TarFormat:
    data = store.get(key)
    where = f"{key} in {store.url}"
    samples = scan_tar(data, where)
    if not samples:
        raise InputError(f"{where} holds no samples: remove it, or write it again.")
    first = samples[0]
    encoding, extent = _find_image_field(first, where)
    try:
        image = _read_image_field(encoding, _field_content(data, extent))
        names = numeric_names(bytes(_field_content(data, first.fields["json"]))) if "json" in first.fields else ()
    except ValueError as error:
        raise _sample_error(first, where, error) from error
    return _TarFormat(encoding, image.shape, () if "cls" in first.fields else names)


def _index_tar(store: Store, key: str, tar_format: _TarFormat) -> tuple[Shard, Sidecar, Statistics]:
    data = store.get(key)
    where = f"{key} in {store.url}"
    statistics = Statistics(tar_format.shape, "uint8")
    extents: list[ByteExtent] = []
    labels: list[Label | None] = []
    samples = scan_tar(data, where)
    if not samples:
        raise InputError(f"{where} holds no samples: remove it, or write it again.")
    for sample in samples:
        try:
            extent, label = _check_sample(sample, data, tar_format, statistics, where)
        except InputError:
            raise
        except ValueError as error:
            raise _sample_error(sample, where, error) from error
        extents.append(extent)
        labels.append(label)
    sidecar = Sidecar(
        offsets=np.array([extent.offset for extent in extents], dtype=np.int64),
        sizes=np.array([extent.size for extent in extents], dtype=np.int64),
        crc32=np.array([zlib.crc32(_field_content(data, extent)) for extent in extents], dtype=np.uint32),
        labels=join_labels(labels, where),
    )
    shard = Shard(key, len(data), len(samples), hashlib.sha256(data).hexdigest(), sidecar.content_sha256())
    put_if_changed(store, shard.sidecar_key, sidecar.to_bytes())
    return shard, sidecar, statistics


def _check_sample(
    sample: TarSample, data: bytes, tar_format: _TarFormat, statistics: Statistics, where: str
) -> tuple[ByteExtent, Label | None]:
    """Count one sample and return where its image is and its label; ValueError says why it does not fit."""
    encoding, extent = _find_image_field(sample, where)
    if encoding != tar_format.encoding:
        raise ValueError(f"it is {encoding}, but the first sample is {tar_format.encoding}")
    image = _read_image_field(encoding, _field_content(data, extent), channels=tar_format.shape[0])
    if image.shape != tar_format.shape:
        raise ValueError(
            f"its shape is {image.shape}, but the first sample's is {tar_format.shape}; all must be the same"
        )
    statistics.add_samples(image[None])
    fields = {name: bytes(_field_content(data, sample.fields[name])) for name in _LABELS if name in sample.fields}
    return extent, parse_label(fields, tar_format.attributes)


def _find_image_field(sample: TarSample, where: str) -> tuple[Encoding, ByteExtent]:
    names = [name for name in sample.fields if name in _IMAGES]
    # An array beside an image is something else, such as an embedding or a mask.
    if not names and "npy" in sample.fields:
        return "npy", sample.fields["npy"]
    if len(names) != 1:
        raise InputError(
            f"Sample {sample.key!r} of {where} has {len(names)} images (fields: {', '.join(sample.fields)}), but must "
            f"have exactly one field png, jpg or jpeg, or an npy field."
        )
    return _IMAGES[names[0]], sample.fields[names[0]]


def _read_image_field(encoding: Encoding, payload: memoryview, channels: int | None = None) -> Sample:
    return read_npy(payload, channels) if encoding == "npy" else read_image(payload, channels)[0]


def _field_content(data: bytes, extent: ByteExtent) -> memoryview:
    return memoryview(data)[extent.offset : extent.offset + extent.size]


def _sample_error(sample: TarSample, where: str, error: Exception) -> InputError:
    return InputError(f"Sample {sample.key!r} of {where} cannot be used: {error}; write the shard again without it.")
