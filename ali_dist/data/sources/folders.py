"""Folders of images: one's own, with or without classes, and ImageNet's."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ali_dist.data.sources.base import SourceSplit, fingerprint_content
from ali_dist.data.sources.images import SUFFIXES, CentreCrop, Listing, list_files, list_inputs, samples_from_images
from ali_dist.data.sources.original_files import choose_splits, first_existing
from ali_dist.errors import InputError

_IMAGENET = "the ILSVRC2012 images from the ImageNet site (train/<wnid>/*.JPEG and val/)"
_ANSWERS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")


@dataclass(frozen=True, slots=True)
class _ClassedFiles:
    """Images of one split: paths below the root, and a class name for each, or None."""

    names: tuple[str, ...]
    classes: tuple[str | None, ...]


def folder_splits(
    path: Path, *, size: int = 64, grey: bool = False, holdout: float = 0.1, splits: Sequence[str] | None = None
) -> Iterator[SourceSplit]:
    """uint8 [1 or 3, size, size] of any folder: images, or a sub-folder of images for each class.

    A folder with a sub-folder `train` (and `valid` or `val`, and `test`) has these splits. Of any other, a share is
    held out as `test`: spread over the classes, and drawn by the files' names, so that it is always the same.

    Args:
        path: the folder.
        size: pixels of a side.
        grey: one channel instead of three.
        holdout: share of the images that is for testing.
        splits: those to write; default all.

    Raises:
        InputError: there are no images, or they lie both in class folders and beside them.
    """
    if not path.is_dir():
        raise InputError(f"There is no folder {path}: give one of images, or of a sub-folder of images for each class.")
    sizes = {name: bytes_ for name, bytes_ in list_files(path).items() if name.lower().endswith(SUFFIXES)}
    given = _find_split_folders(path)
    found = {name: _find_classes(sizes, f"{folder}/", path) for name, folder in given.items()}
    if not given:
        found = _hold_out_images(_find_classes(sizes, "", path), holdout)
    classes = _class_names([files for files in found.values()], path)
    wanted = choose_splits(splits, tuple(found))
    settings = {"name": "folder", "size": size, "grey": grey}
    for name in wanted:
        yield _make_split(name, path, found[name], sizes, classes, CentreCrop(size, grey, upright=True), settings)


def imagenet_splits(path: Path, *, size: int = 64, splits: Sequence[str] | None = None) -> Iterator[SourceSplit]:
    """uint8 [3, size, size] of ILSVRC2012: the middle square of each image; classes are the sorted wnids.

    Args:
        path: a folder with train/<wnid>/ and val/, which is sorted into wnids too, or flat with a list of answers
            beside it (LOC_val_solution.csv, or imagenet_2012_validation_synset_labels.txt).
        size: pixels of a side.
        splits: those of `train` and `valid` to write; default both.

    Raises:
        InputError: a folder or the list of answers is missing, or a class of `valid` is not one of `train`.
    """
    wanted = choose_splits(splits, ("train", "valid"))
    root = first_existing([path / "train", path / "ILSVRC/Data/CLS-LOC/train", path / "Data/CLS-LOC/train"])
    if root is None:
        raise InputError(f"There is no folder train in {path}: imagenet64 needs {_IMAGENET}.")
    root = root.parent
    if "valid" in wanted and not (root / "val").is_dir():
        raise InputError(f"There is no folder val in {root}: imagenet64 needs {_IMAGENET}, or --splits train.")
    classes = tuple(sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir()))
    found = {split: _imagenet_files(root, split, [path, root]) for split in wanted}
    for split, (files, _) in found.items():
        odd = sorted({str(name) for name in files.classes} - set(classes))
        if odd:
            raise InputError(f"{root} has images of {odd[0]!r} in {split}, but train has no such class folder.")
    for split, (files, sizes) in found.items():
        yield _make_split(split, root, files, sizes, classes, CentreCrop(size), {"name": "imagenet64", "size": size})


def _imagenet_files(root: Path, split: str, places: Sequence[Path]) -> tuple[_ClassedFiles, Listing]:
    """Images of one split with their wnids, and their bytes by name."""
    folder = "train" if split == "train" else "val"
    listed = list_files(root / folder)
    sizes = {f"{folder}/{name}": listed[name] for name in listed if name.lower().endswith(SUFFIXES)}
    flat = split == "valid" and not any(name.count("/") > 1 for name in sizes)
    return (_read_validation_answers(sizes, places) if flat else _find_classes(sizes, f"{folder}/", root)), sizes


def _find_split_folders(path: Path) -> dict[str, str]:
    """Folder of each split, if the folder is divided into splits; else nothing."""
    there = {folder.name.lower(): folder.name for folder in path.iterdir() if folder.is_dir()}
    known = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
    return {known[low]: name for low, name in there.items() if low in known} if "train" in there else {}


def _find_classes(sizes: Listing, prefix: str, root: Path) -> _ClassedFiles:
    """The images below a prefix; a class is the name of a sub-folder."""
    names = tuple(name for name in sizes if name.startswith(prefix))
    if not names:
        raise InputError(
            f"There are no images in {root / prefix}: give a folder with files that end in {', '.join(SUFFIXES)}."
        )
    classes = tuple(_class_number(name.removeprefix(prefix)) for name in names)
    if None in classes and any(classes):
        loose = names[classes.index(None)]
        raise InputError(
            f"{root / prefix} has images in sub-folders and beside them (such as {loose}): put all into sub-folders, "
            f"one for each class, or none."
        )
    return _ClassedFiles(names, classes)


def _class_number(name: str) -> str | None:
    return name.split("/", 1)[0] if "/" in name else None


def _class_names(found: Sequence[_ClassedFiles], root: Path) -> tuple[str, ...]:
    names = {name for files in found for name in files.classes}
    if None in names and len(names) > 1:
        raise InputError(f"Some splits of {root} have class folders and some have none: give all the same.")
    return tuple(sorted(name for name in names if name is not None))


def _hold_out_images(files: _ClassedFiles, share: float) -> dict[str, _ClassedFiles]:
    """train and test; of each class in turn, as many to test as keep the share of all so far."""
    if not 0 <= share < 1:
        raise InputError(f"--holdout is {share:g}, but must be from 0 to less than 1.")
    rows = sorted(
        range(len(files.names)), key=lambda row: (files.classes[row] or "", fingerprint_content(files.names[row]))
    )
    goal = [round(share * count) for count in range(len(rows) + 1)]
    test = {row for count, row in enumerate(rows) if goal[count + 1] > goal[count]}
    parts = {"train": [row for row in range(len(rows)) if row not in test], "test": sorted(test)}
    return {
        name: _ClassedFiles(tuple(files.names[row] for row in part), tuple(files.classes[row] for row in part))
        for name, part in parts.items()
        if part
    }


def _read_validation_answers(sizes: Listing, places: Sequence[Path]) -> _ClassedFiles:
    """ImageNet's flat validation images, with the wnids that a list of answers gives."""
    answers = first_existing([place / name for place in places for name in _ANSWERS])
    if answers is None:
        raise InputError(
            f"The images of val lie in no class folders and there is neither {' nor '.join(_ANSWERS)} in {places[0]}: "
            f"sort them into val/<wnid>/, add one of these files, or use --splits train."
        )
    lines = answers.read_text(encoding="utf-8").splitlines()
    names = tuple(sizes)
    if answers.suffix == ".csv":
        by_name = {row[0]: row[1].split(" ")[0] for row in csv.reader(lines[1:]) if len(row) > 1}
        missing = [name for name in names if Path(name).stem not in by_name]
        if missing:
            raise InputError(f"{answers} has no line for {missing[0]}: fetch it again, or remove that image.")
        return _ClassedFiles(names, tuple(by_name[Path(name).stem] for name in names))
    if len(lines) != len(names):
        raise InputError(f"{answers} has {len(lines)} lines, but val has {len(names)} images: they must be as many.")
    return _ClassedFiles(names, tuple(line.strip() for line in lines))


def _make_split(
    name: str,
    root: Path,
    files: _ClassedFiles,
    sizes: Listing,
    classes: tuple[str, ...],
    crop: CentreCrop,
    settings: dict[str, object],
) -> SourceSplit:
    number = {class_: row for row, class_ in enumerate(classes)}
    labels = tuple(None if class_ is None else number[class_] for class_ in files.classes)
    return SourceSplit(
        name=name,
        size=len(files.names),
        shape=(1 if crop.grey else 3, crop.size, crop.size),
        classes=classes,
        part=samples_from_images(root, files.names, labels, crop),
        class_numbers=np.array([number[str(class_)] for class_ in files.classes]) if classes else None,
        settings={
            **settings,
            "input": fingerprint_content(list_inputs(files.names, sizes, labels), "\n".join(classes)),
        },
    )
