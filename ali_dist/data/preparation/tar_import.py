"""Write tars that can only be read from beginning to end as shards of our own.

One sample is held decoded at a time, and one shard encoded. Where labels are classes the tars are read twice: first for
the names, because shards carry numbers.
"""

from __future__ import annotations

import itertools
import json
import math
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import numpy as np

from ali_dist.data.preparation.shard_task import UNFINISHED_KEY
from ali_dist.data.preparation.tar_split_checks import check_shapes, compare_labels, join_notes
from ali_dist.data.preparation.tar_splits import divide_names, split_of_name
from ali_dist.data.preparation.tar_stream import StreamedSample, expand_urls, is_remote, show_url, stream_samples
from ali_dist.data.preparation.write_splits import WrittenSplits
from ali_dist.data.shards.codec import IMAGE_FORMATS, Sample, read_npy
from ali_dist.data.shards.index import INDEX_KEY, Shard, check_listing, load_index
from ali_dist.data.shards.pictures import open_image
from ali_dist.data.shards.sample import NamedCounts, PreparedSample
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.tar_images import NoImageError, TarFormat, find_format, image_kind, looks_like_image
from ali_dist.data.shards.tar_label_search import find_labels
from ali_dist.data.shards.tar_labels import (
    NO_LABELS,
    ClassNames,
    FoundLabels,
    NotBinaryError,
    RawLabel,
    name_classes,
)
from ali_dist.data.shards.tar_samples import BadTarSample, TarReading
from ali_dist.data.shards.tar_scan import STUDIED, TarOptions, check_choice
from ali_dist.data.shards.writer import MB, SampleFormat, write_index, write_shard
from ali_dist.data.sources.base import StartTracking, fingerprint_content, track_nothing
from ali_dist.data.sources.images import CenterCrop
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

IMPORT = "webdataset-import"
_COMPRESSION = {"raw": 1.0, "png": 0.75, "jpg": 0.35}  # approximate size of a payload relative to the pixels
_MEMBER_BYTES = 1536  # headers and padding of a sample's members in a tar
_MAX_RAW_SIZE = 64
_OWN_FILE = re.compile(r"\d{5}\.(tar|npz)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How tars are imported.

    Attributes:
        reading: What is made of the tars.
        size: Pixels of a side to which the middle square of each image is resized; None: images stay as they are.
        encoding: How images are stored; None: raw up to 64 pixels a side, else png.
        shard_mb: Megabytes of a shard (approximate where images are compressed).
    """

    reading: TarOptions = field(default_factory=TarOptions)
    size: int | None = None
    encoding: Literal["raw", "png", "jpg"] | None = None
    shard_mb: float = 32.0


def import_tars(
    source: str, out: Store, options: ImportOptions, start_tracking: StartTracking = track_nothing
) -> WrittenSplits:
    """Write the tars of a source as shards, a split for each that their names speak of.

    Args:
        source: See `expand_urls`.
        out: Parent folder of the splits, or the folder of the only one.
        options: How.
        start_tracking: Shows progress, see `track_nothing`.

    Raises:
        InputError: A tar is damaged, a sample cannot be used and such are not left out, or `out` holds other data.
        StorageError: A server failed.
    """
    crop = None if options.size is None else CenterCrop(options.size, background=options.reading.background)
    hidden: list[str] = []
    urls = expand_urls(source, hidden.append)
    divided = divide_names(
        {url: _split_of_url(url) for url in urls}, show_url(source), skip_unknown=options.reading.skip_bad
    )
    plans = [
        _SplitImport(out.child(split) if split else out, split or "data", members, options, crop)
        for split, members in divided.items()
    ]
    if all(plan.is_complete() for plan in plans):
        return {plan.name: (plan.store, False) for plan in plans}
    for name in hidden:
        plans[0].left_out.add("hidden file", name)
    for plan in plans:
        plan.study()
    check_shapes({plan.name: plan.shape for plan in plans})
    classes = _name_classes(plans, start_tracking)
    for plan, note in zip(plans, compare_labels({plan.name: plan.labels.choice for plan in plans}), strict=True):
        plan.labels = FoundLabels(plan.labels.choice, join_notes(plan.labels.note, note))
    for plan in plans:
        plan.write(classes, start_tracking)
    return {plan.name: (plan.store, True) for plan in plans}


def _split_of_url(url: str) -> str | None:
    """The split that a tar's name speaks of, or else its folder's."""
    path = urlsplit(url).path if is_remote(url) else url
    return split_of_name(posixpath.basename(path)) or split_of_name(posixpath.basename(posixpath.dirname(path)))


class _SplitImport:
    """The import of one split."""

    def __init__(
        self, store: Store, name: str, urls: Sequence[str], options: ImportOptions, crop: CenterCrop | None
    ) -> None:
        self.store = store
        self.name = name
        self.labels = FoundLabels(NO_LABELS, "")
        self.left_out = NamedCounts()
        self._urls = urls
        self._options = options
        self._crop = crop
        self._format = TarFormat(False, (3, 1, 1))
        self._seen_fields: set[str] = set()
        self._treatments = NamedCounts()
        self._settings = {
            "name": IMPORT,
            **options.reading.settings(),
            **({} if options.size is None else {"size": options.size}),
            **({} if options.encoding is None else {"encoding": options.encoding}),
            "shard_mb": options.shard_mb,
            "tars": len(urls),
            "input": fingerprint_content("\n".join(map(show_url, urls))),
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of the images, once they were studied."""
        return self._format.shape

    def is_complete(self) -> bool:
        """Whether the split is there, made of the same tars with the same options.

        Raises:
            InputError: Its place holds other data.
        """
        if self.store.stat(INDEX_KEY) is not None:
            index = load_index(self.store)
            if index.extra.get("source") != self._settings:
                raise InputError(f"{self.store.url} already holds other data: choose another folder, or remove it.")
            check_listing(self.store, index)
            return True
        if self.store.stat(UNFINISHED_KEY) is None:
            for info in self.store.list():
                if info.key.endswith(".tar") or _OWN_FILE.fullmatch(info.key):
                    raise InputError(
                        f"{self.store.url} holds other data, such as {info.key}, which would be overwritten: choose "
                        f"another folder."
                    )
        return False

    def study(self) -> None:
        """Decide by the first samples what images and labels are like."""
        reading = self._options.reading
        images: list[tuple[StreamedSample, str]] = []
        problem = ""
        for sample in itertools.islice(self._stream(lambda name: None), 10 * STUDIED):
            try:
                images.append((sample, reading.image.find(sample.fields)))
            except NoImageError as error:
                problem = problem or f"Sample {sample.key!r} cannot be used: {error}"
            if len(images) == STUDIED:
                break
        where = show_url(self._urls[0])
        if not images:
            raise InputError(f"{where} has no samples with images: {problem or 'it is empty'}.")
        try:
            self._format = find_format(((name, sample.fields[name]) for sample, name in images), reading.background)
        except ValueError as error:
            raise InputError(f"Sample {images[0][0].key!r} of {where} cannot be used: {error}.") from error
        if self._crop is not None:
            channels, size = self._format.shape[0], self._crop.size
            self._format = TarFormat(self._format.is_npy, (channels, size, size), reading.background)
        fields = [sample.fields for sample, _ in images]
        if reading.labels is None:
            self.labels = find_labels((sample.key, sample.fields) for sample, _ in images)
        else:
            check_choice(reading.labels, fields, images[0][0].key, fields[0], where)
            self.labels = FoundLabels(reading.labels, "")

    def read_labels(self, advance: Callable[[int], None]) -> Iterator[RawLabel]:
        """Read all labels, and nothing else; bad ones are passed over where they are left out later."""
        reading = self._reading()
        for sample in self._stream(lambda name: None, labels_only=True):
            advance(1)
            try:
                self._options.reading.image.find(sample.fields)
                label = reading.read_label(sample.fields)
            except NoImageError:
                continue
            except BadTarSample as error:
                if not self._options.reading.skip_bad:
                    raise self._sample_error(sample, error) from error
                continue
            if label is not None:
                yield label

    def drop_labels(self, note: str) -> None:
        """Go on without labels."""
        self.labels = FoundLabels(NO_LABELS, note)

    def write(self, classes: ClassNames, start_tracking: StartTracking) -> None:
        """Write all shards, and the index."""
        choice = self.labels.choice
        sample_format = self._sample_format()
        self.store.put(UNFINISHED_KEY, json.dumps({"source": self._settings}, sort_keys=True).encode())
        payload = math.prod(sample_format.shape) * _COMPRESSION[sample_format.encoding]
        per_shard = max(1, int(self._options.shard_mb * MB / (payload + _MEMBER_BYTES)))
        statistics = Statistics(sample_format.shape, "uint8")
        shards: list[Shard] = []
        samples = self._read_samples(classes, start_tracking(self.name, None))
        while chunk := list(itertools.islice(samples, per_shard)):
            shard, counted = write_shard(self.store, len(shards), chunk, sample_format)
            shards.append(shard)
            statistics.merge(counted)
        extra = {
            "source": self._settings,
            "labels": str(choice),
            **({"notes": [self.labels.note]} if self.labels.note else {}),
            **({"treatments": self._treatments.to_json()} if self._treatments.to_json() else {}),
            **({"left_out": self.left_out.to_json()} if self.left_out.to_json() else {}),
            **({"background": self._format.background} if "background" in self._settings else {}),
        }
        names = classes.names if choice.kind in ("text", "class") else ()
        write_index(self.store, sample_format, shards, statistics, classes=names, extra=extra)
        kept = {key for shard in shards for key in (shard.key, shard.sidecar_key)}
        stale = [info.key for info in self.store.list() if _OWN_FILE.fullmatch(info.key) and info.key not in kept]
        self.store.delete([*stale, UNFINISHED_KEY])

    def _sample_format(self) -> SampleFormat:
        shape = self._format.shape
        encoding = self._options.encoding or ("raw" if max(shape[1:]) <= _MAX_RAW_SIZE else "png")
        return SampleFormat(encoding=encoding, shape=shape, dtype="uint8", attributes=self.labels.choice.attributes)

    def _read_samples(self, classes: ClassNames, advance: Callable[[int], None]) -> Iterator[PreparedSample]:
        reading = self._reading()
        skip_bad = self._options.reading.skip_bad
        for sample in self._stream(lambda name: self.left_out.add("no part of a sample", name)):
            advance(1)
            try:
                x, treatments = self._read_image(sample, reading)
                label = reading.read_label(sample.fields)
            except BadTarSample as error:
                is_part = bool(self._seen_fields.intersection(sample.fields)) or any(
                    map(looks_like_image, sample.fields)
                )
                if error.reason == "no image" and not is_part:
                    self.left_out.add("no part of a sample", f"{sample.key}.{next(iter(sample.fields))}")
                elif skip_bad:
                    self.left_out.add(error.reason, sample.key)
                else:
                    raise self._sample_error(sample, error) from error
                continue
            self._seen_fields.update(sample.fields)
            self._treatments.add_all(treatments, sample.key)
            number = int(classes.number_labels([label])[0]) if isinstance(label, int | str) else label
            yield PreparedSample(x, number, sample.key, treatments)

    def _read_image(self, sample: StreamedSample, reading: TarReading) -> tuple[Sample, frozenset[str]]:
        if self._crop is None:
            _, x, treatments = reading.read_image(sample.fields)
            return x, treatments
        try:
            name = reading.image.find(sample.fields)
        except NoImageError as error:
            raise BadTarSample("no image", str(error)) from error
        crop = CenterCrop(self._crop.size, self._format.shape[0] == 1, self._crop.background)
        try:
            if image_kind(name) == "npy":
                return _crop_array(read_npy(sample.fields[name]), crop)
            with open_image(sample.fields[name], IMAGE_FORMATS) as image:
                return crop(image)
        except ValueError as error:
            raise BadTarSample("unreadable image", str(error)) from error

    def _reading(self) -> TarReading:
        reading = self._options.reading
        return TarReading(self._format, self.labels.choice, reading.image, explicit_labels=reading.labels is not None)

    def _stream(self, on_stray: Callable[[str], None], *, labels_only: bool = False) -> Iterator[StreamedSample]:
        reading = self._options.reading
        choice = reading.labels or self.labels.choice
        labels = {"cls", "json", *choice.needed_fields}

        def is_wanted(name: str) -> bool:
            is_image = looks_like_image(name) or name.endswith("npy") or name in reading.image.fields
            return name in labels or (is_image and not labels_only)

        for url in self._urls:
            yield from stream_samples(url, is_wanted, on_stray, dotted=reading.dotted)

    def _sample_error(self, sample: StreamedSample, error: Exception) -> InputError:
        return InputError(
            f"Sample {sample.key!r} of the tars of {self.name} cannot be used: {error}; leave such samples out with "
            f"--skip-bad."
        )


def _name_classes(plans: Sequence[_SplitImport], start_tracking: StartTracking) -> ClassNames:
    """Read the labels of all splits, where that is needed, and name their classes."""
    values: set[int | str] = set()
    count = 0
    for plan in plans:
        if plan.labels.choice.kind not in ("text", "class", "binary"):
            continue
        advance = start_tracking(f"labels of {plan.name}", None)
        try:
            for label in plan.read_labels(advance):
                count += 1
                if isinstance(label, int | str):
                    values.add(label)
        except NotBinaryError as error:
            note = f"No labels are taken: json's numbers are not all 0 or 1 ({error}); --labels chooses some."
            for other in plans:
                if other.labels.choice.kind == "binary":
                    other.drop_labels(note)
    if len({type(value) for value in values}) > 1:
        shown = ", ".join(repr(str(value)[:30]) for value in sorted(map(str, values))[:3])
        raise InputError(f"Some classes are numbers and others are names ({shown}, ...): choose others with --labels.")
    return name_classes(values, count) if values else ClassNames((), None)


def _crop_array(x: Sample, crop: CenterCrop) -> tuple[Sample, frozenset[str]]:
    from PIL import Image as Images

    return crop(Images.fromarray(np.ascontiguousarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0))))
