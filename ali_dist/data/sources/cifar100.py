"""CIFAR-100, from its binary or its Python version, with its 100 fine or its 20 coarse classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.base import SourceSplit, fingerprint_content, samples_from_arrays
from ali_dist.data.sources.cifar_files import read_version
from ali_dist.data.sources.holdout import check_share
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.data.sources.safe_pickle import read_pickled
from ali_dist.errors import InputError

HOLDOUT = 0.1  # 5,000 of 50,000, as of CIFAR-10
_KINDS = {"coarse": 20, "fine": 100}  # numbers of classes, in the order of a binary record's first two bytes
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_VERSIONS = ("cifar-100-binary", "cifar-100-binary.tar.gz", "cifar-100-python", "cifar-100-python.tar.gz")
_FROM = "cifar-100-binary, cifar-100-python, or the .tar.gz of either, from the CIFAR page of Toronto University"
Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]


def cifar100_splits(
    path: Path, *, labels: str = "fine", holdout: float = HOLDOUT, splits: Sequence[str] | None = None
) -> Iterator[SourceSplit]:
    """Give uint8 [3, 32, 32] in classes; `valid` is the last share of the training file, 5,000 of 50,000.

    Args:
        path: The folder or archive of either version, or a folder that holds one.
        labels: `fine` for 100 classes, `coarse` for 20.
        holdout: Share of the training file that becomes `valid`; with 0 there is no such split.
        splits: The splits of train, valid and test to write; by default all.

    Raises:
        InputError: A file is missing or malformed, or an option is impossible.
    """
    if labels not in _KINDS:
        raise InputError(f"--labels is {labels!r}, but CIFAR-100 has fine and coarse labels.")
    check_share(holdout)
    chosen = choose_splits(splits, ("train", "valid", "test") if holdout else ("train", "test"))
    parts = list(dict.fromkeys("test" if name == "test" else "train" for name in chosen))
    names = [*(file for part in parts for file in (f"{part}.bin", part)), f"{labels}_label_names.txt", "meta"]
    version, content = read_version(path, _VERSIONS, names, f"cifar100 needs {_FROM}")
    classes = _read_classes(version, content, labels)
    samples = {part: _read_part(version, content, part, labels) for part in parts}
    for name in chosen:
        part = "test" if name == "test" else "train"
        x, y = samples[part]
        kept = len(x) if name == "test" else len(x) - round(len(x) * holdout)
        rows = slice(kept, None) if name == "valid" else slice(kept)
        origins = [f"{part}:{row}" for row in range(len(x))][rows]
        x, y = x[rows], y[rows]
        yield SourceSplit(
            name=name,
            num_samples=len(x),
            shape=_SHAPE,
            select_samples=samples_from_arrays(x, y, f"CIFAR-100 image of {name}", origins),
            classes=classes,
            class_numbers=y,
            settings={"name": "cifar100", "labels": labels, "input": fingerprint_content(x, y)},
        )


def _read_classes(version: Path, content: dict[str, bytes], labels: str) -> tuple[str, ...]:
    text_file = f"{labels}_label_names.txt"
    if text_file in content:
        file, names = text_file, [line for line in content[text_file].decode("utf-8", "replace").split() if line]
    elif "meta" in content:
        file, names = "meta", _read_meta(version, content["meta"], labels)
    else:
        raise InputError(f"There is no {text_file} (nor meta) in {version}: cifar100 needs {_FROM}.")
    if len(names) != _KINDS[labels]:
        raise InputError(
            f"{file} in {version} has {len(names)} {labels} class names, but CIFAR-100 has {_KINDS[labels]}: download "
            f"it again."
        )
    return tuple(names)


def _read_meta(version: Path, data: bytes, labels: str) -> list[str]:
    try:
        names = read_pickled(data).get(f"{labels}_label_names", [])
    except ValueError as error:
        raise InputError(f"meta in {version} is not a file of CIFAR-100: {error}; download it again.") from error
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


def _read_part(version: Path, content: dict[str, bytes], part: str, labels: str) -> Samples:
    name = f"{part}.bin" if f"{part}.bin" in content else part
    if name not in content:
        raise InputError(f"There is no {part}.bin (nor {part}) in {version}: cifar100 needs {_FROM}.")
    try:
        parse = _parse_binary if name.endswith(".bin") else _parse_pickled
        x, y = parse(content[name], labels)
        if not len(y) or not 0 <= int(y.min()) <= int(y.max()) < _KINDS[labels]:
            raise ValueError(f"its class numbers are not from 0 to {_KINDS[labels] - 1}")
    except ValueError as error:
        raise InputError(f"{name} in {version} is not a file of CIFAR-100: {error}; download it again.") from error
    return x.reshape(-1, *_SHAPE), y


def _parse_binary(data: bytes, labels: str) -> Samples:
    """Parse records of a coarse and a fine class number and 3072 bytes; ValueError says what is wrong."""
    size = len(_KINDS) + _PIXELS
    if not data or len(data) % size:
        raise ValueError(f"it has {len(data)} bytes, which are not whole records of {size}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return records[:, len(_KINDS) :], records[:, list(_KINDS).index(labels)].astype(np.int64)


def _parse_pickled(data: bytes, labels: str) -> Samples:
    """Parse a dictionary with `data` [N, 3072] and `fine_labels` and `coarse_labels`; ValueError says what is wrong."""
    content = read_pickled(data)
    x, numbers = content.get("data"), content.get(f"{labels}_labels")
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != _PIXELS:
        raise ValueError(f"it has no images of {_PIXELS} bytes under 'data'")
    if not isinstance(numbers, list) or len(numbers) != len(x) or not all(isinstance(n, int) for n in numbers):
        raise ValueError(f"it has no {len(x)} class numbers under '{labels}_labels'")
    return x, np.array(numbers, dtype=np.int64)
