"""Arrays of pictures in an .npz file, as MedMNIST, keras' mnist.npz and many of one's own are.

One array is read at a time, so that memory holds the pictures of one split.
"""

from __future__ import annotations

import functools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.array_numbers import NumberRange, to_bytes
from ali_dist.data.sources.array_pictures import (
    Pictures,
    SideFit,
    describe_cut,
    require_same_shape,
    samples_from_pictures,
)
from ali_dist.data.sources.base import SourceSplit, fingerprint_content
from ali_dist.data.sources.holdout import Rows, choose_share, hold_out_rows
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.errors import InputError

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
_ORDER = ("train", "valid", "test")
_IMAGES = ("images", "image", "imgs", "x", "data", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
_SPLIT_FIRST = re.compile(r"(train|valid|val|test)_(\w+)")
_SPLIT_LAST = re.compile(r"(\w+)_(train|valid|val|test)")
_MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class _Labels:
    """Names of classes or of attributes, and by split class numbers int64 [n], attributes float32 [n, A], or None.

    `note` is a sentence on how they were read, where they could have been read in another way.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    by_split: Mapping[str, NDArray[Any] | None]
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Form:
    """What an array of pictures is, found before any is written: its numbers, and the shape (C, H, W) of a picture."""

    numbers: NumberRange
    shape: tuple[int, int, int]


def npz_splits(
    path: Path,
    *,
    size: int | None = None,
    holdout: float | None = None,
    splits: Sequence[str] | None = None,
) -> Iterator[SourceSplit]:
    """Give uint8 [1 or 3, side, side] from arrays of pictures, with their labels.

    Arrays are called `train_images` and `train_labels`, `x_train` and `y_train` (likewise for val, valid and test), or
    `images` and `labels`, `x` and `y`. Pictures are uint8 [n, H, W], [n, H, W, 1 or 3] or [n, 1 or 3, H, W]; whole
    numbers to 255 and fractions from 0 to 1 are taken for what they say, and arrays of zeros and ones alone, as masks
    are, become 0 and 255. What was chosen is noted in the index of the first split. Labels are class numbers or words,
    [n] or [n, 1]; or zeros and ones [n, k]: classes if every row has a single one, else attributes. Where there is
    `train` alone, a share of it is held out as `test`, always the same and spread over the classes.

    Args:
        path: The file, or a folder that has one.
        size: Pixels of a side, to which pictures are resized; by default they stay as they are, and 28 pixels get a
            black frame of 2.
        holdout: Share of the pictures that is for testing, where all arrays are of `train` (by default a tenth).
        splits: The splits to write; by default all.

    Raises:
        InputError: The file cannot be read, has no arrays of these names and forms, or pictures of the splits differ in
            shape.
    """
    fit = SideFit(size)
    file = _find_file(path)
    image_keys, label_keys = _find_arrays(file)
    share = choose_share(holdout, image_keys)
    forms = {split: _find_form(file, key) for split, key in image_keys.items()}
    labels = _read_labels(file, {split: label_keys.get(split) for split in image_keys})

    @functools.lru_cache(maxsize=1)  # one, so that memory holds one array
    def read_pictures(split: str) -> Pictures:
        joined = forms[split].numbers.join([form.numbers for form in forms.values()])
        x, y = _read_pictures(file, image_keys[split], joined), labels.by_split[split]
        if y is not None and len(y) != len(x):
            raise InputError(
                f"{file} has {len(x)} pictures in {image_keys[split]} and {len(y)} labels in {label_keys[split]}, but "
                f"as many are needed."
            )
        return x

    parts: dict[str, tuple[str, Rows | None]] = {split: (split, None) for split in image_keys}
    if share:
        classes = labels.by_split["train"] if labels.classes else None
        train, test = hold_out_rows(len(read_pictures("train")), share, classes)
        parts = {"train": ("train", train), "test": ("train", test)} if len(test) else parts
    chosen = choose_splits(splits, tuple(parts))
    used = {whole: forms[whole].shape for whole, _ in (parts[name] for name in chosen)}
    require_same_shape({whole: fit.shape_of(*shape) for whole, shape in used.items()})
    notes = [*_note_pixels([forms[split] for split in used], list(forms.values())), *describe_cut(used.values())]
    notes += [labels.note] if labels.note else []
    for name in chosen:
        whole, rows = parts[name]
        x, y = read_pictures(whole), labels.by_split[whole]
        kept = np.arange(len(x)) if rows is None else rows
        yield SourceSplit(
            name=name,
            num_samples=len(kept),
            shape=fit.shape_of(*forms[whole].shape),
            select_samples=samples_from_pictures(x, y, fit, f"{image_keys[whole]}[{{}}]", kept),
            settings={
                "name": "npz",
                "size": size,
                "part": [name, share] if rows is not None else name,
                "input": fingerprint_content(x, *([] if y is None else [y]), "\n".join(labels.classes)),
            },
            classes=labels.classes,
            class_numbers=y[kept] if y is not None and labels.classes else None,
            attributes=labels.attributes,
            extra={"notes": notes} if notes and name == chosen[0] else {},
        )


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.npz")) if path.is_dir() else []
    if len(files) != 1:
        found = f"{len(files)} .npz files in {path}" if files else f"no .npz file in {path}"
        raise InputError(f"There {'are' if files else 'is'} {found}: give --from one file.")
    return files[0]


def _find_arrays(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The keys of the pictures and of the labels of each split, in the order of splits."""
    keys = _list_keys(file)
    found: dict[str, dict[str, str]] = {"images": {}, "labels": {}}
    for key in keys:
        split, role = _parse_key(key)
        if role:
            if split in found[role]:
                raise InputError(
                    f"{file} has {found[role][split]} and {key}, which could both be the {role} of {split}: "
                    f"leave one out."
                )
            found[role][split] = key
    if not found["images"]:
        raise InputError(
            f"{file} has no pictures: its arrays are {', '.join(keys[:8]) or 'none'}, but train_images, x_train, "
            f"images or x are needed."
        )
    return {split: found["images"][split] for split in _ORDER if split in found["images"]}, found["labels"]


def _parse_key(key: str) -> tuple[str, str]:
    """The split and the role (images, labels, or nothing) of an array by its name."""
    name = key.lower()
    if match := _SPLIT_FIRST.fullmatch(name):
        split, what = _SPLITS[match[1]], match[2]
    elif match := _SPLIT_LAST.fullmatch(name):
        what, split = match[1], _SPLITS[match[2]]
    else:
        split, what = "train", name
    return split, "images" if what in _IMAGES else "labels" if what in _LABELS else ""


def _list_keys(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        if _begins_as_npy(file):
            raise InputError(
                f"{file} is a single array (.npy), but npz takes a file of named arrays: write it with "
                f"numpy.savez_compressed('{file.stem}.npz', images=array), and with labels=... where there are any."
            ) from error
        raise InputError(f"{file} cannot be read as an .npz file ({error}): write or download it again.") from error


def _begins_as_npy(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(6) == b"\x93NUMPY"
    except OSError:
        return False


def _read_array(file: Path, key: str) -> NDArray[Any]:
    """Read one array; pickled objects are refused, because reading them can run any code."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[key])
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise InputError(
                f"{key} of {file} holds Python objects, which are not read: write it as an array of numbers."
            ) from error
        raise InputError(f"{key} of {file} cannot be read ({error}): write or download it again.") from error
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{key} of {file} cannot be read ({error}): write or download it again.") from error


def _find_form(file: Path, key: str) -> _Form:
    """Measure an array of pictures.

    Raises:
        InputError: It is none.
    """
    array, what = _read_array(file, key), f"{key} of {file}"
    if array.ndim and not len(array):
        raise InputError(f"{what} is empty (its shape is {array.shape}): at least one picture is needed.")
    shape = array.shape
    is_first, is_last = (array.ndim == 4 and shape[axis] in (1, 3) for axis in (1, 3))
    if not array.size or not (array.ndim == 3 or is_first != is_last):
        raise InputError(
            f"{what} has shape {shape}, but pictures must be (n, H, W), (n, H, W, 1 or 3) or (n, 1 or 3, H, W)."
        )
    of_picture = (1, *shape[1:]) if array.ndim == 3 else shape[1:] if is_first else (shape[3], *shape[1:3])
    return _Form(NumberRange.of(array, what), of_picture)


def _read_pictures(file: Path, key: str, joined: NumberRange) -> Pictures:
    """Read pictures, whose form was found before, as uint8 [n, 1 or 3, H, W]."""
    pixels = to_bytes(_read_array(file, key), joined, f"{key} of {file}")
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels if pixels.shape[1] in (1, 3) else pixels.transpose(0, 3, 1, 2)


def _note_pixels(forms: Sequence[_Form], all_forms: Sequence[_Form]) -> list[str]:
    is_binary = any(form.numbers.join([other.numbers for other in all_forms]).is_binary for form in forms)
    return ["The pictures hold zeros and ones only, which became 0 and 255."] if is_binary else []


def _read_labels(file: Path, keys: Mapping[str, str | None]) -> _Labels:
    """Read the labels of every split; they are all of one kind."""
    arrays = {split: None if key is None else _read_label_array(file, key) for split, key in keys.items()}
    there = [array for array in arrays.values() if array is not None]
    where = f"The labels of {file}"
    if not there:
        return _Labels((), (), arrays)
    if len({(array.shape[1:], array.dtype.kind == "U") for array in there}) > 1:
        raise InputError(f"{where} are of different kinds in different splits: give all the same.")
    if there[0].ndim == 1:
        return _number_classes(arrays, there, where)
    if not all(np.isin(array, (0, 1)).all() for array in there):
        raise InputError(f"{where} have shape {there[0].shape}, but only zeros and ones can be several to a picture.")
    width = there[0].shape[1]
    if all((array.sum(axis=1) == 1).all() for array in there):
        numbers = {split: None if array is None else array.argmax(axis=1) for split, array in arrays.items()}
        note = f"Every row of the labels has a single one: they are taken as {width} classes, not as attributes."
        return _Labels(tuple(str(number) for number in range(width)), (), numbers, note)
    vectors = {split: None if array is None else array.astype(np.float32) for split, array in arrays.items()}
    return _Labels((), tuple(f"label{number}" for number in range(width)), vectors)


def _read_label_array(file: Path, key: str) -> NDArray[Any]:
    """Read labels: whole numbers or words [n], or whole numbers [n, k]."""
    array = _read_array(file, key)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    is_whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
    if array.ndim not in (1, 2) or not (is_whole or (array.dtype.kind == "U" and array.ndim == 1)):
        raise InputError(
            f"{key} of {file} is {array.dtype} of shape {array.shape}, but labels must be whole numbers or words (n,), "
            f"or zeros and ones (n, k)."
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _number_classes(arrays: Mapping[str, NDArray[Any] | None], there: Sequence[NDArray[Any]], where: str) -> _Labels:
    if there[0].dtype.kind == "U":
        words = np.unique(np.concatenate(there))
        found = {split: None if array is None else np.searchsorted(words, array) for split, array in arrays.items()}
        return _Labels(tuple(words.tolist()), (), found)
    low, high = (int(function([function(array) for array in there])) for function in (np.min, np.max))
    if low < 0 or high >= _MAX_CLASSES:
        raise InputError(f"{where} go from {low} to {high}, but class numbers must be from 0 to {_MAX_CLASSES - 1}.")
    return _Labels(tuple(str(number) for number in range(high + 1)), (), arrays)
