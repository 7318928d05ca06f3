"""Read the tars that another program wrote, sample by sample, into what an index and its sidecars say of them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ali_dist.data.shards.pictures import BACKGROUND
from ali_dist.data.shards.reader import READERS
from ali_dist.data.shards.sample import NamedCounts
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.tar import ByteExtent, TarContent, TarSample, scan_tar
from ali_dist.data.shards.tar_images import (
    ImageChoice,
    ImageKind,
    NoImageError,
    TarFormat,
    find_format,
    image_kind,
    looks_like_image,
)
from ali_dist.data.shards.tar_label_search import find_labels
from ali_dist.data.shards.tar_labels import (
    FoundLabels,
    LabelChoice,
    NotBinaryError,
    RawLabel,
)
from ali_dist.data.shards.tar_samples import BadTarSample, TarReading
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

_MEMORY_BYTES = 4_000_000_000  # for the tars that are read at the same time
STUDIED = 64
"""How many images of the first tar decide the shape of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarOptions:
    """What is made of tars.

    Attributes:
        labels: Where labels stand; None: as `find_labels` finds them.
        image: Which field is the image.
        background: Color under transparent images.
        skip_bad: Whether samples that cannot be used are left out, counted and named.
        dotted: Whether names of samples may have dots, so that the field begins at the last one.
    """

    labels: LabelChoice | None = None
    image: ImageChoice = field(default_factory=ImageChoice)
    background: str = BACKGROUND
    skip_bad: bool = False
    dotted: bool = False

    def settings(self) -> dict[str, Any]:
        """The options as the index keeps them; equal ones give an equal index of equal tars."""
        chosen = {
            "labels": None if self.labels is None else str(self.labels),
            "image": ",".join(self.image.fields) or None,
            "background": None if self.background == BACKGROUND else self.background,
            "skip_bad": self.skip_bad or None,
            "dotted_names": self.dotted or None,
        }
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(slots=True)
class ScannedTar:
    """What a tar holds: [n] positions, checksums, keys and labels of its samples, in the order of their positions.

    Attributes:
        key: Key of the tar.
        size: Its size in bytes.
        sha256: Its hash.
        extents: Where the images are.
        crc32: Their checksums.
        origins: Keys of the samples.
        labels: Labels as they stand; None where there are none.
        kinds: How images are stored.
        statistics: What the images count.
        treatments: What was done to images.
        left_out: Samples and members that were left out, by reason.
        scattered: Keys of samples whose members do not stand side by side.
        not_binary: Why numbers that were taken as attributes are none; "" if they are.
    """

    key: str
    size: int
    sha256: str
    statistics: Statistics
    extents: list[ByteExtent] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    labels: list[RawLabel | None] = field(default_factory=list)
    kinds: set[ImageKind] = field(default_factory=set)
    treatments: NamedCounts = field(default_factory=NamedCounts)
    left_out: NamedCounts = field(default_factory=NamedCounts)
    scattered: list[str] = field(default_factory=list)
    not_binary: str = ""


@dataclass(slots=True)
class ScannedSplit:
    """The tars of a split, and what its labels are."""

    tars: Store
    shards: list[ScannedTar]
    tar_format: TarFormat
    labels: FoundLabels

    def class_values(self) -> set[int | str]:
        """The different classes that there are.

        Raises:
            InputError: Some are numbers and others are names; the message names a sample of the rarer kind.
        """
        found: dict[bool, tuple[str, str, int | str]] = {}  # by whether it is a number: the first one
        counts = {True: 0, False: 0}
        values: set[int | str] = set()
        for shard in self.shards:
            for origin, label in zip(shard.origins, shard.labels, strict=True):
                if isinstance(label, int | str):
                    values.add(label)
                    is_number = isinstance(label, int)
                    counts[is_number] += 1
                    found.setdefault(is_number, (origin, shard.key, label))
        if len(found) > 1:
            rarer = counts[True] < counts[False]
            origin, key, value = found[rarer]
            raise InputError(
                f"Sample {origin!r} of {key} in {self.tars.url} has the class {str(value)[:50]!r}, but other classes "
                f"are {'names' if rarer else 'numbers'}: repair it, or choose other labels with --labels."
            )
        return values


def scan_split(
    tars: Store, keys: Sequence[str], options: TarOptions, on_shard: Callable[[int], None] = lambda samples: None
) -> ScannedSplit:
    """Read the tars of a split; nothing is written.

    Args:
        tars: The folder of the tars.
        keys: The tars.
        options: What is made of them.
        on_shard: Called after each tar with its number of samples.

    Raises:
        InputError: A tar is damaged, or a sample cannot be used and such are not left out; the message names both.
    """
    tar_format, labels = _study_tars(tars, keys, options)
    reading = TarReading(tar_format, labels.choice, options.image, explicit_labels=options.labels is not None)
    shards = []
    largest = max(info.size for info in tars.list() if info.key in set(keys))
    readers = max(1, min(READERS, _MEMORY_BYTES // max(1, largest)))  # a tar is held as a whole
    pool = ThreadPoolExecutor(readers, thread_name_prefix="ali-index")
    try:
        for shard in pool.map(lambda key: _scan_shard(tars, key, reading, options), keys):
            shards.append(shard)
            on_shard(len(shard.extents))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if not any(shard.extents for shard in shards):
        raise InputError(f"No sample of the tars in {tars.url} can be used: look at them without --skip-bad.")
    return ScannedSplit(tars, shards, tar_format, labels)


# ---- Reading tars --------------------------------------------------------------------------------------------------


class _NothingUsableError(InputError):
    """A tar has no sample with an image that can be read."""


def _study_tars(tars: Store, keys: Sequence[str], options: TarOptions) -> tuple[TarFormat, FoundLabels]:
    """Decide by the first tar (with bad samples left out, the first one with good samples) what all must be like."""
    for number, key in enumerate(keys, 1):
        where = f"{key} in {tars.url}"
        data = tars.get(key)
        try:
            return _study_tar(data, scan_tar(data, where, dotted=options.dotted), options, where)
        except _NothingUsableError:
            if not options.skip_bad or number == len(keys):
                raise
    raise InputError(f"There are no .tar files in {tars.url}: give the folder that holds the shards.")


def _study_tar(data: bytes, content: TarContent, options: TarOptions, where: str) -> tuple[TarFormat, FoundLabels]:
    if not content.samples:
        raise _no_samples_error(where)
    images: list[tuple[TarSample, str]] = []
    problem: ValueError | None = None
    for sample in content.samples:
        try:
            images.append((sample, options.image.find(sample.fields)))
        except NoImageError as error:
            problem = problem or error
    studied = [(name, _content(data, sample.fields[name])) for sample, name in images[:STUDIED]]
    first = images[0][0] if images else content.samples[0]
    try:
        if problem is not None and not images:
            raise problem
        tar_format = find_format(studied, options.background)
    except ValueError as error:
        raise _NothingUsableError(f"Sample {first.key!r} of {where} cannot be used: {error}.") from error
    wanted = options.labels.needed_fields if options.labels else ("cls", "json")
    fields = (
        (sample.key, {name: bytes(_content(data, sample.fields[name])) for name in wanted if name in sample.fields})
        for sample, _ in images
    )
    if options.labels is None:
        return tar_format, find_labels(fields)
    check_choice(options.labels, (content for _, content in fields), first.key, first.fields, where)
    return tar_format, FoundLabels(options.labels, "")


def _no_samples_error(where: str) -> InputError:
    return _NothingUsableError(f"{where} holds no samples: remove it, or write it again.")


def check_choice(
    choice: LabelChoice, samples: Iterable[Mapping[str, bytes]], first_key: str, first_fields: Iterable[str], where: str
) -> None:
    """Refuse labels that none of the first samples has.

    Args:
        choice: Where labels should be.
        samples: The fields of the first samples.
        first_key: Key of the first one, for the message.
        first_fields: Names of its fields, likewise.
        where: What the message calls the tar.

    Raises:
        InputError: None has such a label.
    """
    if choice.kind == "none":
        return
    for fields in samples:
        try:
            if choice.read(fields) is not None:
                return
        except ValueError:
            return  # it has one, which reading it will complain of
    raise InputError(
        f"--labels is {choice}, but no sample of {where} has that: its first sample, {first_key!r}, has the fields "
        f"{', '.join(first_fields)}."
    )


def _scan_shard(tars: Store, key: str, reading: TarReading, options: TarOptions) -> ScannedTar:
    data = tars.get(key)
    where = f"{key} in {tars.url}"
    content = scan_tar(data, where, dotted=options.dotted)
    if not content.samples and not options.skip_bad:
        raise _no_samples_error(where)
    statistics = Statistics(reading.tar_format.shape, "uint8")
    shard = ScannedTar(key, len(data), hashlib.sha256(data).hexdigest(), statistics, scattered=content.scattered)
    for name in content.strays:
        shard.left_out.add("no part of a sample", name)
    fields_of_samples = _find_fields(content, options.image)
    rows = []
    for sample in content.samples:
        try:
            rows.append(_scan_sample(sample, data, reading, shard))
        except BadTarSample as error:
            is_stray = error.reason == "no image" and not (
                fields_of_samples.intersection(sample.fields) or any(map(looks_like_image, sample.fields))
            )
            if is_stray:
                for name in sample.fields:
                    shard.left_out.add("no part of a sample", f"{sample.key}.{name}")
            elif options.skip_bad:
                shard.left_out.add(error.reason, sample.key)
            else:
                raise InputError(
                    f"Sample {sample.key!r} of {where} cannot be used: {error}; write the shard again without it, or "
                    f"leave such samples out with --skip-bad."
                ) from error
    rows.sort(key=lambda row: row[0])  # by position, in which reading goes through the tar
    shard.extents = [extent for extent, _, _ in rows]
    shard.crc32 = [zlib.crc32(_content(data, extent)) for extent in shard.extents]
    shard.origins = [origin for _, origin, _ in rows]
    shard.labels = [label for _, _, label in rows]
    return shard


def _scan_sample(
    sample: TarSample, data: bytes, reading: TarReading, shard: ScannedTar
) -> tuple[ByteExtent, str, RawLabel | None]:
    """Count one sample, and return where its image is, its key and its label."""
    fields = {name: _content(data, extent) for name, extent in sample.fields.items()}
    name, x, treatments = reading.read_image(fields)
    label = None
    if not shard.not_binary:
        try:
            label = reading.read_label(fields)
        except NotBinaryError as error:
            shard.not_binary = f"{error} in sample {sample.key!r} of {shard.key}"
    shard.statistics.add_samples(x[None])
    shard.treatments.add_all(treatments, sample.key)
    shard.kinds.add(image_kind(name))
    return sample.fields[name], sample.key, label


def _find_fields(content: TarContent, choice: ImageChoice) -> set[str]:
    """All fields that samples with an image have."""
    names: set[str] = set()
    for sample in content.samples:
        try:
            choice.find(sample.fields)
        except NoImageError:
            continue
        names.update(sample.fields)
    return names


def _content(data: bytes, extent: ByteExtent) -> memoryview:
    return memoryview(data)[extent.offset : extent.offset + extent.size]
