"""Index WebDataset tars that another program wrote, where they lie and without changing them.

A split is indexed in two steps: `tar_scan.scan_split` reads its tars, and `write_tar_index` writes sidecars and
index.json. What the labels are called and counted as is decided in between, from all splits of a data set
(`name_labels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.index import INDEX_KEY, Index, Shard
from ali_dist.data.shards.location import name_tars
from ali_dist.data.shards.pictures import BACKGROUND
from ali_dist.data.shards.sample import NamedCounts
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.tar_images import ImageKind, join_kinds
from ali_dist.data.shards.tar_labels import NO_LABELS, ClassNames, FoundLabels, LabelChoice, name_classes
from ali_dist.data.shards.tar_scan import ScannedSplit, ScannedTar
from ali_dist.data.shards.writer import put_if_changed
from ali_dist.errors import InputError
from ali_dist.storage.base import Store


def name_labels(splits: Sequence[ScannedSplit]) -> ClassNames:
    """Decide what the labels of all splits of a data set are: names of classes, and whether numbers are attributes.

    Where a number that was taken for an attribute is neither 0 nor 1 in some split, labels are dropped in all.

    Raises:
        InputError: There are too many classes, or they are of different kinds.
    """
    reason = next((shard.not_binary for split in splits for shard in split.shards if shard.not_binary), "")
    for split in splits:
        if reason and split.labels.choice.kind == "binary":
            offered = ", ".join(split.labels.choice.names)
            note = (
                f"No labels are taken: json's numbers are not all 0 or 1 ({reason}); --labels json:FIELD takes one of "
                f"its fields ({offered}, ...) as the class, json:FIELD,FIELD takes attributes."
            )
            split.labels = FoundLabels(NO_LABELS, note)
    values = set[int | str]().union(*(split.class_values() for split in splits))
    if not values:
        return ClassNames((), None)
    if len({type(value) for value in values}) > 1:
        raise InputError("Classes are numbers in some splits and names in others: choose others with --labels.")
    labelled = sum(
        len(shard.labels) for split in splits for shard in split.shards if split.labels.choice.kind != "none"
    )
    return name_classes(values, labelled)


def write_tar_index(
    store: Store, split: ScannedSplit, classes: ClassNames, settings: Mapping[str, Any], access: Mapping[str, Any]
) -> Index:
    """Write the sidecars and the index of tars that have been scanned.

    Args:
        store: The split's own folder, which need not be that of the tars.
        split: The tars.
        classes: The classes of all splits.
        settings: What the index is made with, for its `source`.
        access: How a bucket of tars is reached, if not as usual: `tars_endpoint_url` and `tars_anonymous`.
    """
    statistics = Statistics(split.tar_format.shape, "uint8")
    treatments, left_out = NamedCounts(), NamedCounts()
    scattered: list[str] = []
    for tar in split.shards:
        statistics.merge(tar.statistics)
        treatments.merge(tar.treatments)
        left_out.merge(tar.left_out)
        scattered += tar.scattered
    choice = split.labels.choice
    notes = [note for note in (split.labels.note, _describe_scattered(scattered)) if note]
    extra = {
        "source": dict(settings),
        "labels": str(choice),
        **({"notes": notes} if notes else {}),
        **({"background": split.tar_format.background} if split.tar_format.background != BACKGROUND else {}),
        **({"treatments": treatments.to_json()} if treatments.to_json() else {}),
        **({"left_out": left_out.to_json()} if left_out.to_json() else {}),
    }
    if split.tars.url != store.url:
        extra["tars"] = name_tars(split.tars, store)
        extra.update(access)
    kinds = set[ImageKind]().union(*(tar.kinds for tar in split.shards))
    index = Index(
        encoding=join_kinds(kinds),
        dtype="uint8",
        shape=split.tar_format.shape,
        shards=tuple(_write_sidecar(store, tar, choice, classes) for tar in split.shards),
        classes=classes.names if choice.kind in ("text", "class") else (),
        attributes=choice.attributes,
        extra=extra,
        **statistics.index_fields(),
    )
    store.put(INDEX_KEY, index.to_json().encode())
    return index


def _describe_scattered(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    return (
        f"The members of {len(keys)} samples (such as {keys[0]!r}) do not stand side by side in their tar; they are "
        "grouped by name here, but stock webdataset would read each of them as several samples."
    )


def _write_sidecar(store: Store, tar: ScannedTar, choice: LabelChoice, classes: ClassNames) -> Shard:
    sidecar = Sidecar(
        offsets=np.array([extent.offset for extent in tar.extents], dtype=np.int64),
        sizes=np.array([extent.size for extent in tar.extents], dtype=np.int64),
        crc32=np.array(tar.crc32, dtype=np.uint32),
        labels=_number_labels(tar.labels, choice, classes),
        origins=tuple(tar.origins),
    )
    shard = Shard(tar.key, tar.size, len(tar.extents), tar.sha256, sidecar.content_sha256())
    put_if_changed(store, shard.sidecar_key, sidecar.to_bytes())
    return shard


def _number_labels(labels: Sequence[Any], choice: LabelChoice, classes: ClassNames) -> NDArray[Any] | None:
    """Labels as a sidecar has them: int64 [n], float32 [n, A], or None."""
    if choice.kind == "none":
        return None
    if choice.attributes:
        return np.array(labels, dtype=np.float32).reshape(len(labels), len(choice.attributes))
    return classes.number_labels(labels)
