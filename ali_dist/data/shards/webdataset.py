"""Index WebDataset tars that somebody else wrote, where they lie and without changing them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np

from ali_dist.data.shards.codec import Sample, read_image, read_npy
from ali_dist.data.shards.index import INDEX_KEY, Index, Shard
from ali_dist.data.shards.labels import Label, label_array, numeric_names, parse_label
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
    """What the first sample decides for all: encoding, shape [C, H, W], attribute names."""

    encoding: Encoding
    shape: tuple[int, ...]
    attributes: tuple[str, ...]


def tar_folders(store: Store) -> list[str]:
    """Folders below `store` ('' is itself) that hold tars; each is a split."""
    return sorted({info.key.rpartition("/")[0] for info in store.list() if info.key.endswith(".tar")})


def index_webdataset(store: Store, on_shard: Callable[[int], None] = lambda samples: None) -> Index:
    """Write sidecars and index.json for the tars in a folder; the tars stay as they are.

    A sample is one png, jpg or jpeg field, or, where there is none, an npy field (uint8 [H, W], [H, W, 1 or 3] or
    [1 or 3, H, W]), and, in all samples or in none, a label: `cls` (a class number), else the numbers of a `json`
    object (attributes). Other fields are left alone. Grey images among coloured ones are read as RGB.

    Args:
        store: the split's own folder.
        on_shard: called after each tar with its number of samples.

    Raises:
        InputError: no tars, a damaged one, or a sample that does not fit the first; names the tar and the sample.
    """
    keys = [info.key for info in store.list() if info.key.endswith(".tar") and "/" not in info.key]
    if not keys:
        raise InputError(f"There are no .tar files in {store.url}: give the folder that holds the shards.")
    form = _find_tar_format(store, keys[0])
    statistics = Statistics(form.shape, "uint8")
    shards, labels = [], []
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="ali-index")
    try:
        for shard, sidecar, counted in pool.map(lambda key: _index_tar(store, key, form), keys):
            statistics.merge(counted)
            shards.append(shard)
            labels.append(sidecar.labels)
            on_shard(shard.samples)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    index = Index(
        encoding=form.encoding,
        dtype="uint8",
        shape=form.shape,
        shards=tuple(shards),
        classes=_class_names(store, labels),
        attributes=form.attributes,
        extra={"source": {"name": "webdataset"}},
        **statistics.for_index(),
    )
    store.put(INDEX_KEY, index.to_json().encode())
    return index


def _class_names(store: Store, labels: list[Any]) -> tuple[str, ...]:
    """'0', '1', ... up to the largest class number; empty without class numbers."""
    if len({(part is None, None if part is None else part.ndim) for part in labels}) > 1:
        raise InputError(f"Some shards of {store.url} have labels and some have none: give all samples the same kind.")
    if labels[0] is None or labels[0].ndim != 1:
        return ()
    return tuple(str(number) for number in range(int(max(part.max() for part in labels)) + 1))


def _find_tar_format(store: Store, key: str) -> _TarFormat:
    data = store.get(key)
    where = f"{key} in {store.url}"
    records = scan_tar(data, where)
    if not records:
        raise InputError(f"{where} holds no samples: remove it, or write it again.")
    first = records[0]
    encoding, extent = _find_image_field(first, where)
    try:
        image = _read_image_field(encoding, _field_content(data, extent))
        names = numeric_names(bytes(_field_content(data, first.fields["json"]))) if "json" in first.fields else ()
    except ValueError as error:
        raise _sample_error(first, where, error) from error
    return _TarFormat(encoding, image.shape, () if "cls" in first.fields else names)


def _index_tar(store: Store, key: str, form: _TarFormat) -> tuple[Shard, Sidecar, Statistics]:
    data = store.get(key)
    where = f"{key} in {store.url}"
    statistics = Statistics(form.shape, "uint8")
    extents: list[ByteExtent] = []
    labels: list[Label | None] = []
    records = scan_tar(data, where)
    if not records:
        raise InputError(f"{where} holds no samples: remove it, or write it again.")
    for record in records:
        try:
            extent, label = _check_sample(record, data, form, statistics, where)
        except InputError:
            raise
        except ValueError as error:
            raise _sample_error(record, where, error) from error
        extents.append(extent)
        labels.append(label)
    sidecar = Sidecar(
        offsets=np.array([extent.offset for extent in extents], dtype=np.int64),
        sizes=np.array([extent.size for extent in extents], dtype=np.int64),
        crc32=np.array([zlib.crc32(_field_content(data, extent)) for extent in extents], dtype=np.uint32),
        labels=label_array(labels, where),
    )
    shard = Shard(key, len(data), len(records), hashlib.sha256(data).hexdigest(), sidecar.sha256())
    put_if_changed(store, shard.sidecar_key, sidecar.to_bytes())
    return shard, sidecar, statistics


def _check_sample(
    record: TarSample, data: bytes, form: _TarFormat, statistics: Statistics, where: str
) -> tuple[ByteExtent, Label | None]:
    """Place and label of one sample, which is counted; ValueError says why it does not fit."""
    encoding, extent = _find_image_field(record, where)
    if encoding != form.encoding:
        raise ValueError(f"it is {encoding}, but the first sample is {form.encoding}")
    image = _read_image_field(encoding, _field_content(data, extent), channels=form.shape[0])
    if image.shape != form.shape:
        raise ValueError(f"its shape is {image.shape}, but the first sample's is {form.shape}; all must be the same")
    statistics.add(image[None])
    fields = {name: bytes(_field_content(data, record.fields[name])) for name in _LABELS if name in record.fields}
    return extent, parse_label(fields, form.attributes)


def _find_image_field(record: TarSample, where: str) -> tuple[Encoding, ByteExtent]:
    names = [name for name in record.fields if name in _IMAGES]
    if not names and "npy" in record.fields:  # beside an image, an array is something else: an embedding, a mask
        return "npy", record.fields["npy"]
    if len(names) != 1:
        raise InputError(
            f"Sample {record.key!r} of {where} has {len(names)} images (fields: {', '.join(record.fields)}), but must "
            f"have exactly one field png, jpg or jpeg, or an npy field."
        )
    return _IMAGES[names[0]], record.fields[names[0]]


def _read_image_field(encoding: Encoding, payload: memoryview, channels: int | None = None) -> Sample:
    return read_npy(payload, channels) if encoding == "npy" else read_image(payload, channels)


def _field_content(data: bytes, extent: ByteExtent) -> memoryview:
    return memoryview(data)[extent.offset : extent.offset + extent.size]


def _sample_error(record: TarSample, where: str, error: Exception) -> InputError:
    return InputError(f"Sample {record.key!r} of {where} cannot be used: {error}; write the shard again without it.")
