"""CIFAR-10, from its binary or its Python version, as a folder or as the archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.base import SourceSplit, fingerprint_content, samples_from_arrays
from ali_dist.data.sources.cifar_files import read_version
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.data.sources.safe_pickle import read_pickled
from ali_dist.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOLDOUT = 0.1  # 5,000 of 50,000, as in the paper
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes in the binary version: a class number, then red, green and blue rows
_VERSIONS = ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-python.tar.gz")
_TRAINING_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BATCHES = {"train": _TRAINING_BATCHES, "valid": _TRAINING_BATCHES, "test": ("test_batch",)}
_FROM = "cifar-10-batches-bin, cifar-10-batches-py, or the .tar.gz of either, from the CIFAR page of Toronto University"
Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]


def cifar10_splits(
    path: Path, *, holdout: float = HOLDOUT, splits: Sequence[str] | None = None
) -> Iterator[SourceSplit]:
    """Give uint8 [3, 32, 32] in ten classes; `valid` is the last share of the training files, 5,000 of 50,000.

    Args:
        path: The folder or archive of either version, or a folder that holds one.
        holdout: Share of the training files that becomes `valid`; with 0 there is no such split.
        splits: The splits of train, valid and test to write; by default all.

    Raises:
        InputError: A file is missing or malformed, or the share is impossible.
    """
    if not 0 <= holdout < 1:
        raise InputError(f"--holdout is {holdout:g}, but must be from 0 to less than 1.")
    names = ("train", "valid", "test") if holdout else ("train", "test")
    chosen = choose_splits(splits, names)
    batches = _read_batches(path, list(dict.fromkeys(batch for name in chosen for batch in _BATCHES[name])))
    for name in chosen:
        x, y = _join_batches([batches[batch] for batch in _BATCHES[name]])
        origins = [f"{batch}:{row}" for batch in _BATCHES[name] for row in range(len(batches[batch][0]))]
        if name != "test":
            kept = len(x) - round(len(x) * holdout)
            part = slice(kept) if name == "train" else slice(kept, None)
            x, y, origins = x[part], y[part], origins[part]
        yield SourceSplit(
            name=name,
            num_samples=len(x),
            shape=_SHAPE,
            select_samples=samples_from_arrays(x, y, f"CIFAR-10 image of {name}", origins),
            classes=CLASSES,
            class_numbers=y,
            settings={"name": "cifar10", "input": fingerprint_content(x, y)},
        )


def _join_batches(batches: Sequence[Samples]) -> Samples:
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def _read_batches(path: Path, batches: Sequence[str]) -> dict[str, Samples]:
    """Read the images and labels of each batch, from whichever version is there."""
    file_names = [name for batch in batches for name in (f"{batch}.bin", batch)]
    version, content = read_version(path, _VERSIONS, file_names, f"cifar10 needs {_FROM}")
    parsed = {}
    for batch in batches:
        binary = f"{batch}.bin"
        name = binary if binary in content else batch
        if name not in content:
            raise InputError(f"There is no {binary} (nor {batch}) in {version}: cifar10 needs {_FROM}.")
        try:
            parsed[batch] = _parse_binary(content[name]) if name == binary else _parse_pickled(content[name])
        except ValueError as error:
            raise InputError(f"{name} in {version} is not a file of CIFAR-10: {error}; download it again.") from error
    return parsed


def _parse_binary(data: bytes) -> Samples:
    """Parse records of a class number and 3072 bytes; ValueError says what is wrong."""
    if not data or len(data) % _RECORD:
        raise ValueError(f"it has {len(data)} bytes, which are not whole records of {_RECORD}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, _RECORD)
    return _check_batch(records[:, 1:], records[:, 0].astype(np.int64))


def _parse_pickled(data: bytes) -> Samples:
    """Parse a dictionary with `data` [N, 3072] and `labels`; ValueError says what is wrong."""
    content = read_pickled(data)
    x, labels = content.get("data"), content.get("labels")
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != _RECORD - 1:
        raise ValueError(f"it has no images of {_RECORD - 1} bytes under 'data'")
    if not isinstance(labels, list) or len(labels) != len(x) or not all(isinstance(label, int) for label in labels):
        raise ValueError(f"it has no {len(x)} class numbers under 'labels'")
    return _check_batch(x, np.array(labels, dtype=np.int64))


def _check_batch(rows: NDArray[np.uint8], y: NDArray[np.int64]) -> Samples:
    if len(y) == 0 or not 0 <= int(y.min()) <= int(y.max()) < len(CLASSES):
        raise ValueError("its class numbers are not from 0 to 9")
    return rows.reshape(-1, *_SHAPE), y
