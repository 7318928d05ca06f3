"""CelebA: aligned faces with 40 attributes, from the files as its authors distribute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.base import SourceSplit
from ali_dist.data.sources.image_files import Listing, fingerprint_images, list_images
from ali_dist.data.sources.images import FaceCrop, samples_from_images
from ali_dist.data.sources.original_files import choose_splits, first_existing
from ali_dist.errors import InputError

_SPLITS = ("train", "valid", "test")  # in the order in which the partition file numbers them
_FROM = "the CelebA page (aligned and cropped images, list_attr_celeba.txt, list_eval_partition.txt)"
_FOLDERS = ("", "Img", "Anno", "Eval", "celeba", "CelebA/Img", "CelebA/Anno", "CelebA/Eval")  # as they are downloaded


def celeba_splits(path: Path, *, splits: Sequence[str] | None = None, skip_bad: bool = False) -> Iterator[SourceSplit]:
    """Give train, valid and test as CelebA's authors divide it: uint8 [3, 64, 64], with 40 attributes that are 0 or 1.

    Args:
        path: The folder with img_align_celeba/ (or .zip), list_attr_celeba.txt and list_eval_partition.txt, or with
            the folders Img, Anno and Eval that hold them.
        splits: The splits to write; by default all.
        skip_bad: Whether folders that cannot be read are left out.

    Raises:
        InputError: A file is missing or malformed, or names an image that is not there.
    """
    chosen_splits = choose_splits(splits, _SPLITS)
    attributes, values = _read_attributes(_find_file(path, "list_attr_celeba.txt"))
    partition = _read_partition(_find_file(path, "list_eval_partition.txt"))
    root = _find_file(path, "img_align_celeba", "img_align_celeba.zip")
    sizes = list_images(root, skip_bad=skip_bad).images
    paths = {name.rpartition("/")[2]: name for name in sizes}
    by_split = {
        split: [name for name, number in partition.items() if _SPLITS[number] == split] for split in chosen_splits
    }
    _check_known([name for files in by_split.values() for name in files], values, paths, root)
    for split, files in by_split.items():
        names = [paths[name] for name in files]
        labels = [values[name] for name in files]
        yield SourceSplit(
            name=split,
            num_samples=len(files),
            shape=(3, 64, 64),
            attributes=attributes,
            select_samples=samples_from_images(root, names, labels, FaceCrop(), origins=files),
            settings={"name": "celeba", "input": _image_input(files, names, sizes, labels)},
        )


def _find_file(path: Path, *names: str) -> Path:
    file = first_existing([path / folder / name for folder in _FOLDERS for name in names])
    if file is None:
        raise InputError(f"There is no {' or '.join(names)} in {path}: celeba needs the files from {_FROM}.")
    return file


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.float32]]]:
    """Read the names of the attributes and the vector of each image: 1 where the file says 1, 0 where it says -1."""
    count, names, *rows = [line.split() for line in _read_lines(path, at_least=3)]
    values = {}
    for row in rows:
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"1", "-1"}:
            raise InputError(
                f"{path} has a line for {row[0]} that is not {len(names)} times 1 or -1: download it again."
            )
        values[row[0]] = np.array([value == "1" for value in row[1:]], dtype=np.float32)
    if count != [str(len(rows))]:
        raise InputError(f"{path} says that it has {' '.join(count)} images, but has {len(rows)}: download it again.")
    return tuple(names), values


def _read_partition(path: Path) -> dict[str, int]:
    """Read the number of each image's split."""
    rows = [line.split() for line in _read_lines(path, at_least=1)]
    for row in rows:
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise InputError(f"{path} has the line {' '.join(row)!r}, but a name and 0, 1 or 2 are needed.")
    return {name: int(number) for name, number in rows}


def _read_lines(path: Path, at_least: int) -> list[str]:
    """Read the lines that are not blank."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): download it again.") from error
    if len(lines) < at_least:
        raise InputError(f"{path} has {len(lines)} lines, but needs at least {at_least}: download it again.")
    return lines


def _check_known(
    files: Sequence[str], values: dict[str, NDArray[np.float32]], paths: dict[str, str], root: Path
) -> None:
    missing = [name for name in files if name not in paths]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{root} lacks {missing[0]}{more}, which the partition names: unpack it again.")
    unlabelled = [name for name in files if name not in values]
    if unlabelled:
        raise InputError(f"list_attr_celeba.txt has no line for {unlabelled[0]}: download it again.")


def _image_input(
    files: Sequence[str], names: Sequence[str], sizes: Listing, labels: Sequence[NDArray[np.float32]]
) -> str:
    """A fingerprint of the input that is the same for the folder and the zip."""
    by_file = {file: sizes[name] for file, name in zip(files, names, strict=True)}
    return fingerprint_images(files, by_file, ["".join(str(int(value)) for value in label) for label in labels])
