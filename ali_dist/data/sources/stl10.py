"""STL-10, from its binary version: few labelled pictures, and many without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.array_pictures import Pictures, SideFit, samples_from_pictures
from ali_dist.data.sources.base import SourceSplit, fingerprint_content
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.errors import InputError

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIZE = 64  # pixels of a side by default: there are no networks for the 96 of the files
_SHAPE = (3, 96, 96)
_FILES = {"train": "train_X.bin", "unlabeled": "unlabeled_X.bin", "test": "test_X.bin"}
_FROM = "the unpacked folder stl10_binary of stl10_binary.tar.gz from the STL-10 page of Stanford University"


def stl10_splits(path: Path, *, size: int = SIZE, splits: Sequence[str] | None = None) -> Iterator[SourceSplit]:
    """Give uint8 [3, size, size]: `train` and `test` in ten classes, and `unlabeled` without any.

    Args:
        path: The folder stl10_binary, or one that holds it.
        size: Pixels of a side, to which the 96 of the files are resized.
        splits: The splits of train, unlabeled and test to write; by default all.

    Raises:
        InputError: A file is missing or malformed, or the size is impossible.
    """
    fit = SideFit(size)
    chosen = choose_splits(splits, tuple(_FILES))
    folder = path / "stl10_binary" if (path / "stl10_binary").is_dir() else path
    for name in chosen:  # all of them before the first is written, which takes minutes
        for file_name in (_FILES[name], *([] if name == "unlabeled" else [f"{name}_y.bin"])):
            if not (folder / file_name).is_file():
                raise InputError(f"There is no {file_name} in {folder}: stl10 needs {_FROM}.")
    for name in chosen:
        x = _open_pictures(folder / _FILES[name])
        y = None if name == "unlabeled" else _read_labels(folder / f"{name}_y.bin", len(x))
        yield SourceSplit(
            name=name,
            num_samples=len(x),
            shape=(3, size, size),
            select_samples=samples_from_pictures(x, y, fit, f"{_FILES[name]}:{{}}"),
            classes=() if y is None else CLASSES,
            class_numbers=y,
            settings={"name": "stl10", "size": size, "input": fingerprint_content(x, *([] if y is None else [y]))},
        )


def _open_pictures(path: Path) -> Pictures:
    """Map pictures [N, 3, 96, 96] into memory; the file has them column by column."""
    pixels = int(np.prod(_SHAPE))
    num_bytes = path.stat().st_size
    if not num_bytes or num_bytes % pixels:
        raise InputError(f"{path} has {num_bytes} bytes, which are not whole pictures of {pixels}: download it again.")
    try:
        return np.memmap(path, np.uint8, "r").reshape(-1, *_SHAPE).transpose(0, 1, 3, 2)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def _read_labels(path: Path, count: int) -> NDArray[np.int64]:
    """Read class numbers, which the file counts from 1."""
    labels = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(labels) != count or not np.isin(labels, np.arange(1, len(CLASSES) + 1)).all():
        raise InputError(f"{path} does not have {count} labels from 1 to {len(CLASSES)}: download it again.")
    return labels.astype(np.int64) - 1
