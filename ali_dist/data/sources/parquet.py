"""Hugging Face image data sets as they are downloaded: Parquet files with encoded pictures in one of the columns.

Shards take samples from everywhere in a split, because data sets are often sorted by class, and a shuffle of whole row
groups would leave shards, and so batches, of few classes. A Parquet file, however, can only be read by row groups of
hundreds of pictures. So the encoded pictures are first copied, group by group, into a temporary file in which each can
be found: every picture is read twice, however many shards there are, and memory holds no more than a few of them.
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.pictures import BACKGROUND, open_image
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.sources.base import SampleNumbers, ShardSamples, SourceSplit, fingerprint_content
from ali_dist.data.sources.holdout import Rows, choose_share, hold_out_rows
from ali_dist.data.sources.image_files import readable_formats
from ali_dist.data.sources.images import CenterCrop
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.data.sources.parquet_files import ParquetFiles, find_parquet_files, join_path
from ali_dist.data.sources.parquet_labels import (
    LabelChoice,
    SplitLabels,
    choose_image_column,
    choose_label_columns,
    read_labels,
    without_fractions,
)
from ali_dist.errors import InputError

_BATCH = 16  # pictures that are in memory while they are copied
_MISSING = -1  # size of a picture that is not in the file


def parquet_splits(
    path: Path,
    *,
    image: str | None = None,
    labels: str | None = None,
    size: int = 64,
    grey: bool = False,
    background: str = BACKGROUND,
    holdout: float | None = None,
    splits: Sequence[str] | None = None,
) -> Iterator[SourceSplit]:
    """Give uint8 [1 or 3, size, size] from the middle squares of the pictures in Parquet files.

    The splits are those of the files' names. Where there is `train` alone, a share of it is held out as `test`: drawn
    at random, always the same, and spread over the classes.

    Args:
        path: The folder of the files, or one file.
        image: The column of the pictures: binary, or a struct with `bytes` (and `path`, which then names a sample).
        labels: The column of the class, or those of attributes that are 0 or 1, separated by commas; by default the
            only one that is declared as ClassLabel, or one called `label` or alike. Numbers of a class are whole.
        size: Pixels of a side.
        grey: Whether samples have one channel instead of three.
        background: Color under transparent pictures.
        holdout: Share of the pictures that is for testing, where all files are of `train` (by default a tenth).
        splits: The splits to write; by default all.

    Raises:
        InputError: A file is missing or malformed, a column cannot be what it was chosen for, or the temporary folder
            has no room for the pictures.
    """
    crop = CenterCrop(size, grey, background)
    by_split = find_parquet_files(path)
    share = choose_share(holdout, by_split)
    schema = next(iter(by_split.values())).schema()
    image_column = choose_image_column(schema, image)
    label_choice = choose_label_columns(schema, image_column, labels)
    if labels is None:
        label_choice = without_fractions(label_choice, by_split)
    _report_choice(label_choice)
    labels_by_split = read_labels(by_split, schema, label_choice.columns)
    settings: dict[str, Any] = {"name": "parquet", "image": image_column, "labels": list(label_choice.columns)}
    settings |= {"size": size, "grey": grey, "background": background}
    parts: dict[str, tuple[str, Rows | None]] = {name: (name, None) for name in by_split}
    if share:
        num_samples = sum(by_split["train"].count_rows())
        train, test = hold_out_rows(num_samples, share, labels_by_split["train"].numbers)
        parts = {"train": ("train", train), "test": ("train", test)} if len(test) else parts
        settings["holdout"] = share
    read_table = functools.lru_cache(maxsize=1)(  # one, so that the copy of a split is removed before the next is made
        lambda name: _Table.read(by_split[name], image_column, schema, labels_by_split[name])
    )
    for name in choose_splits(splits, tuple(parts)):
        whole, rows = parts[name]
        yield _make_split(name, read_table(whole), rows, crop, settings)


def _report_choice(choice: LabelChoice) -> None:
    """Say what was chosen where the user may have meant another column."""
    if not choice.others and not choice.reason:
        return
    what = f"Labels are those of the column {choice.columns[0]!r}" if choice.columns else "No column is taken as label"
    others = f"--labels can name others: {', '.join(choice.others)}" if choice.others else "there is no other column"
    why = f"{choice.reason}. " if choice.reason else ""
    sys.stderr.write(f"{why}{what}; {others}.\n")


@dataclass(frozen=True, slots=True)
class _Table:
    """What is known of a split's rows before any picture is read."""

    pictures: _PictureSpool
    labels: SplitLabels
    origins: tuple[str, ...]
    fingerprint: str

    @classmethod
    def read(cls, files: ParquetFiles, column: str, schema: Any, labels: SplitLabels) -> _Table:
        counts = files.count_rows()
        rows = [f"{name}:{row}" for name, count in zip(files.names, counts, strict=True) for row in range(count)]
        if not rows:
            raise InputError(f"{files.root / files.names[0]} has no rows: download it again.")
        kind = schema.field(column).type
        is_struct = kind.num_fields > 0
        has_paths = is_struct and any(field.name == "path" for field in kind)
        paths = files.read_column(column, "path") if has_paths else []
        # A path names a picture only if no other picture has it; some data sets call every one image.png.
        origins = tuple(paths) if all(paths) and len(set(paths)) == len(rows) else tuple(rows)
        sizes = [(files.root / name).stat().st_size for name in files.names]
        facts = "\n".join(f"{name}\t{size}\t{n}" for name, size, n in zip(files.names, sizes, counts, strict=True))
        fingerprint = fingerprint_content(facts, labels.fingerprint())
        return cls(_PictureSpool(files, column, "bytes" if is_struct else ""), labels, origins, fingerprint)


def _make_split(name: str, table: _Table, rows: Rows | None, crop: CenterCrop, settings: dict[str, Any]) -> SourceSplit:
    kept = np.arange(len(table.origins)) if rows is None else rows
    numbers = table.labels.numbers

    def select_samples(places: SampleNumbers) -> ShardSamples:
        spool = table.pictures.copy_once()
        chosen = kept[places]
        return ParquetSamples(
            spool.path,
            spool.offsets[chosen],
            spool.sizes[chosen],
            tuple(table.labels.of_rows(chosen)),
            tuple(table.origins[row] for row in chosen.tolist()),
            crop,
        )

    return SourceSplit(
        name=name,
        num_samples=len(kept),
        shape=(1 if crop.grey else 3, crop.size, crop.size),
        select_samples=select_samples,
        classes=table.labels.classes,
        attributes=table.labels.attributes,
        class_numbers=None if numbers is None else numbers[kept],
        settings={**settings, "input": table.fingerprint},
    )


class _CopiedPictures(NamedTuple):
    """A file of encoded pictures, and where each begins and how many bytes it has, by row; -1 if it is missing."""

    path: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


class _PictureSpool:
    """Copies the pictures of Parquet files to a temporary file, which is removed with this object.

    Args:
        files: The files.
        column: The column of the pictures.
        field: The field of the bytes, if these are structs.
    """

    def __init__(self, files: ParquetFiles, column: str, field: str) -> None:
        self._files = files
        self._column = column
        self._field = field
        self._copied: _CopiedPictures | None = None

    def copy_once(self) -> _CopiedPictures:
        """Copy the pictures, unless that was done.

        Raises:
            InputError: The temporary folder has no room for them.
        """
        if self._copied is None:
            self._require_room()
            self._folder = tempfile.TemporaryDirectory(prefix="ali-dist-parquet-")
            path = Path(self._folder.name) / "pictures"
            with path.open("wb") as target:
                sizes = np.array([_write_picture(target, picture) for picture in self._read_pictures()], dtype=np.int64)
            ends = np.cumsum(np.maximum(sizes, 0))
            self._copied = _CopiedPictures(path, ends - np.maximum(sizes, 0), sizes)
        return self._copied

    def _read_pictures(self) -> Iterator[bytes | None]:
        for name, file in self._files.open_all():
            self._files.require_column(name, file, self._column)
            for batch in file.iter_batches(_BATCH, columns=[join_path(self._column, self._field)]):
                for value in batch.column(0).to_pylist():
                    yield value[self._field] if isinstance(value, dict) else value

    def _require_room(self) -> None:
        needed, path = 0, join_path(self._column, self._field)
        for _, file in self._files.open_all():
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                columns = (group.column(place) for place in range(group.num_columns))
                needed += sum(column.total_uncompressed_size for column in columns if column.path_in_schema == path)
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise InputError(
                f"The pictures are first copied to a temporary file of {needed / 1e9:.1f} GB, but {folder} has "
                f"{free / 1e9:.1f} GB free: set TMPDIR to a folder with more room."
            )


def _write_picture(target: Any, picture: bytes | None) -> int:
    return _MISSING if picture is None else target.write(picture)


@dataclass(frozen=True, slots=True)
class ParquetSamples:
    """Pictures of Parquet files, in the file that they were copied to, with their labels and names."""

    path: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: tuple[Label | None, ...]
    origins: tuple[str, ...]
    crop: CenterCrop

    def __len__(self) -> int:
        return len(self.origins)

    def describe_sample(self, number: int) -> str:
        return self.origins[number]

    def read_sample(self, number: int) -> PreparedSample:
        size = int(self.sizes[number])
        if size == _MISSING:
            raise ValueError("its bytes are not in the file, only a path at most")
        label = self.labels[number]
        if isinstance(label, np.integer) and label < 0:
            raise ValueError("it has no label")
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[number]))
            payload = file.read(size)
        with open_image(payload, readable_formats()) as image:
            x, treatments = self.crop(image)
        return PreparedSample(np.ascontiguousarray(x), label, self.origins[number], treatments)
