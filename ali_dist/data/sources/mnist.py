"""MNIST and the sets that are published in its IDX files: Fashion-MNIST, KMNIST and EMNIST."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ali_dist.config.loading import did_you_mean
from ali_dist.data.sources.array_pictures import (
    Pictures,
    SideFit,
    describe_cut,
    require_same_shape,
    samples_from_pictures,
)
from ali_dist.data.sources.base import SourceSplit, fingerprint_content
from ali_dist.data.sources.holdout import check_share
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.errors import InputError

HOLDOUT = 1 / 6  # 10,000 of MNIST's 60,000, as is usual
_FILE = re.compile(
    r"(?:emnist-(?P<variant>\w+)-)?(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(?P<gz>\.gz)?"
)
_IMAGES, _LABELS = 0x0803, 0x0801  # what files begin with: bytes, in 3 and in 1 dimension
_PARTS = {"train": "train", "t10k": "test", "test": "test"}
_FROM = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or .gz)"
_KNOWN_NAMES = {
    "fashion": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}


class _Part(NamedTuple):
    """The pictures and labels of the training or the test files, and the file of the pictures."""

    x: Pictures
    y: NDArray[np.int64]
    file: Path


def mnist_splits(
    path: Path,
    *,
    variant: str | None = None,
    names: Sequence[str] | None = None,
    size: int | None = None,
    holdout: float = HOLDOUT,
    splits: Sequence[str] | None = None,
) -> Iterator[SourceSplit]:
    """Give uint8 [1, 32, 32] in classes: 28 pixels with a black frame of 2; `valid` is the last share of training.

    EMNIST's pictures, which are stored transposed, are put upright. Its classes have the names of its mapping file. The
    files of Fashion-MNIST and of KMNIST have the same names as MNIST's, so that they are told by their folder, which
    contains `fashion` or `kmnist`, or by `names`; without either, classes are numbers.

    Args:
        path: The folder of the files, packed or not, at any depth.
        variant: Which part of EMNIST, such as `letters`, where there are several.
        names: Names of the classes in order, or one of `fashion` and `kmnist`.
        size: Pixels of a side, to which pictures are resized in place of the frame.
        holdout: Share of the training files that becomes `valid`; with 0 there is no such split.
        splits: The splits of train, valid and test to write; by default all.

    Raises:
        InputError: A file is missing or malformed, several sets could be meant, or an option is impossible.
    """
    fit = SideFit(size)
    check_share(holdout)
    chosen = choose_splits(splits, ("train", "valid", "test") if holdout else ("train", "test"))
    variant, files = _choose_variant(_find_files(path), variant, path)
    needed = dict.fromkeys("test" if name == "test" else "train" for name in chosen)
    parts = {part: _read_part(files, part, variant, path) for part in needed}
    picture_shapes = {part: (1, *files_of.x.shape[2:]) for part, files_of in parts.items()}
    require_same_shape({part: fit.shape_of(*shape) for part, shape in picture_shapes.items()})
    classes, numbers, note = _name_classes(parts, names, variant)
    notes = [*describe_cut(picture_shapes.values()), *([note] if note else [])]
    for name in chosen:
        part = "test" if name == "test" else "train"
        x, y = parts[part].x, numbers[part]
        kept = len(x) if name == "test" else len(x) - round(len(x) * holdout)
        rows = np.arange(kept, len(x)) if name == "valid" else np.arange(kept)
        yield SourceSplit(
            name=name,
            num_samples=len(rows),
            shape=fit.shape_of(*picture_shapes[part]),
            select_samples=samples_from_pictures(x, y, fit, f"{parts[part].file.name}:{{}}", rows),
            settings={
                "name": "mnist",
                "size": size,
                "input": fingerprint_content(x[rows], y[rows], "\n".join(classes)),
            },
            classes=classes,
            class_numbers=y[rows],
            extra={"notes": notes} if notes and name == chosen[0] else {},
        )


_Files = dict[tuple[str, str, str], Path]  # by the variant of EMNIST or "", train or test, and images or labels


def _find_files(path: Path) -> _Files:
    """Find every file, the unpacked one where there are both.

    Raises:
        InputError: There are none, or several of one name.
    """
    found: _Files = {}
    for file in sorted(path.rglob("*ubyte*")) if path.is_dir() else []:
        match = _FILE.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        key = (match["variant"] or "", _PARTS[match["part"]], match["what"])
        other = found.setdefault(key, file)
        if other.parent != file.parent:
            raise InputError(
                f"There are {other.name} in {other.parent} and {file.name} in {file.parent}: give --from one of these "
                f"folders."
            )
    if not found:
        raise InputError(f"There are no files of MNIST in {path}: mnist needs {_FROM}.")
    return found


def _choose_variant(files: _Files, chosen: str | None, path: Path) -> tuple[str, _Files]:
    variants = sorted({variant for variant, _, _ in files})
    listed = ", ".join(variant or "(MNIST's own names)" for variant in variants)
    if chosen is None:
        if len(variants) > 1:
            raise InputError(f"{path} has several sets ({listed}): choose one with --variant.")
        chosen = variants[0]
    elif chosen not in variants:
        hint = did_you_mean(chosen, variants).removesuffix("?")
        raise InputError(f"--variant is {chosen!r}, of which {path} has no files{hint}; sets: {listed}.")
    return chosen, {key: file for key, file in files.items() if key[0] == chosen}


def _read_part(files: _Files, part: str, variant: str, path: Path) -> _Part:
    for what in ("images", "labels"):
        if (variant, part, what) not in files:
            raise InputError(f"There are no {what} of {part} in {path}: mnist needs {_FROM}.")
    images, labels = files[variant, part, "images"], files[variant, part, "labels"]
    x, y = _read_idx(images, _IMAGES), _read_idx(labels, _LABELS)
    if len(x) != len(y) or not len(x):
        raise InputError(
            f"{images} has {len(x)} pictures and {labels.name} has {len(y)} labels, but as many are needed, and at "
            f"least one: download them again."
        )
    upright = x.transpose(0, 2, 1) if variant else x
    return _Part(upright[:, None], y.astype(np.int64), images)


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read a file of bytes in the IDX format, packed or not: uint8 [n, H, W] or [n]."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): download it again.") from error
    if not data:
        raise InputError(f"{path} is empty (0 bytes): download it again.")
    dimensions = magic & 0xFF
    header = 4 + 4 * dimensions
    if len(data) < header or struct.unpack_from(">I", data)[0] != magic:
        raise InputError(
            f"{path} begins with {data[:4].hex()}, but an IDX file of {dimensions}-dimensional bytes begins with "
            f"{magic:08x}: download it again."
        )
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if len(data) - header != np.prod(shape, dtype=np.uint64):
        raise InputError(
            f"{path} holds {len(data) - header} bytes, but its header says {' x '.join(map(str, shape))}: download it "
            f"again."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _name_classes(
    parts: dict[str, _Part], names: Sequence[str] | None, variant: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]], str]:
    """The names of the classes, each part's labels as numbers of them, and a sentence where names are missing."""
    first = next(iter(parts.values())).file
    mapping = _read_mapping(first.parent / f"emnist-{variant}-mapping.txt") if variant else {}
    if names is None and not mapping:
        folders = "/".join(first.resolve().parts[-4:-1]).lower()
        names = next((known for word, known in _KNOWN_NAMES.items() if word in folders), None)
    elif names is not None and len(names) == 1:
        names = _KNOWN_NAMES.get(names[0], names)
    found = sorted({label for part in parts.values() for label in np.unique(part.y).tolist()})
    first_label = min(found[0], 1) if variant else 0  # EMNIST's letters count from 1
    if names is not None:
        mapping = dict(enumerate(names, first_label))
    note = "" if mapping or not variant else _note_unnamed(variant)
    mapping = mapping or {label: str(label) for label in range(first_label, max(found) + 1)}
    unnamed = next((label for label in found if label not in mapping), None)
    if unnamed is not None:
        raise InputError(
            f"{first.parent} has labels of {unnamed}, but the {len(mapping)} class names are of {min(mapping)} to "
            f"{max(mapping)}: give as many --names as there are classes."
        )
    places = np.zeros(max(mapping) + 1, dtype=np.int64)
    places[list(mapping)] = np.arange(len(mapping))
    return tuple(mapping.values()), {name: places[part.y] for name, part in parts.items()}, note


def _note_unnamed(variant: str) -> str:
    return (
        f"Classes are numbers, because emnist-{variant}-mapping.txt, which says what their letters are, is not beside "
        f"the files: put it there, or give --names."
    )


def _read_mapping(path: Path) -> dict[int, str]:
    """Read the letters of each label of EMNIST, such as `A` or, where it joins both cases, `Aa`; empty without a file.

    Raises:
        InputError: A line is not a label and the codes of its letters.
    """
    if not path.is_file():
        return {}
    mapping = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        fields = line.split()
        if fields and (len(fields) < 2 or not all(field.isdigit() for field in fields)):
            raise InputError(f"{path} has the line {line!r}, but a label and codes of letters are needed.")
        if fields:
            mapping[int(fields[0])] = "".join(chr(int(code)) for code in fields[1:])
    return mapping
