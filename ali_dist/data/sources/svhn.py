"""SVHN: street view house numbers, cropped digits, from the three .mat files of its authors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.base import SourceSplit, fingerprint_content, samples_from_arrays
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.errors import InputError

HOLDOUT = 10_000 / 73_257  # the paper's: the last 10,000 images of the training file
_SHAPE = (3, 32, 32)
_FROM = "train_32x32.mat, extra_32x32.mat and test_32x32.mat (format 2, cropped digits) from the SVHN page"


def svhn_splits(path: Path, *, holdout: float = HOLDOUT, splits: Sequence[str] | None = None) -> Iterator[SourceSplit]:
    """Give uint8 [3, 32, 32] in ten classes; `valid` is the last share of the training file, 10,000 of 73,257.

    Args:
        path: The folder of the .mat files.
        holdout: Share of the training file that becomes `valid`; with 0 there is no such split.
        splits: The splits of train, valid, extra and test to write; by default all.

    Raises:
        InputError: A file is missing or malformed, or the share is impossible.
    """
    if not 0 <= holdout < 1:
        raise InputError(f"--holdout is {holdout:g}, but must be from 0 to less than 1.")
    chosen = choose_splits(splits, ("train", "valid", "extra", "test") if holdout else ("train", "extra", "test"))
    files = {split: f"{'train' if split == 'valid' else split}_32x32.mat" for split in chosen}
    missing = next(((split, name) for split, name in files.items() if not (path / name).is_file()), None)
    if missing is not None:
        others = ",".join(split for split in chosen if (path / files[split]).is_file())
        hint = f", or --splits {others} for those that are there" if others else ""
        raise InputError(f"There is no {missing[1]} in {path}: svhn needs {_FROM}{hint}.")
    for split in chosen:
        x, y = _read_mat(path / files[split])
        origins = [f"{files[split]}:{row}" for row in range(len(x))]
        if split in ("train", "valid"):
            kept = len(x) - round(len(x) * holdout)
            part = slice(kept) if split == "train" else slice(kept, None)
            x, y, origins = x[part], y[part], origins[part]
        yield SourceSplit(
            name=split,
            num_samples=len(x),
            shape=_SHAPE,
            select_samples=samples_from_arrays(x, y, f"SVHN image of {split}", origins),
            settings={"name": "svhn", "input": fingerprint_content(x, y)},
            classes=tuple(str(digit) for digit in range(10)),
            class_numbers=y,
        )


def _read_mat(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images [N, 3, 32, 32], without a copy, and their digits; the file's label 10 is the digit 0."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        content = loadmat(str(path), variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].ravel()
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a .mat file with X and y ({error}): download it again.") from error
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise InputError(
            f"{path} holds {pixels.dtype} images {pixels.shape} and {len(labels)} labels, but uint8 (32, 32, 3, N) and "
            f"N labels are needed: download it again."
        )
    if not np.isin(labels, np.arange(1, 11)).all():
        raise InputError(f"{path} has labels that are not from 1 to 10: download it again.")
    return pixels.transpose(3, 2, 0, 1), labels.astype(np.int64) % 10
