"""Folders of images: the user's own, with or without classes, and ImageNet's."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ali_dist.data.shards.pictures import BACKGROUND
from ali_dist.data.sources.base import SourceSplit, fingerprint_content
from ali_dist.data.sources.images import (
    SUFFIXES,
    CenterCrop,
    Listing,
    fingerprint_images,
    list_files,
    samples_from_images,
)
from ali_dist.data.sources.original_files import choose_splits, first_existing
from ali_dist.errors import InputError

_IMAGENET = "the ILSVRC2012 images from the ImageNet site (train/<wnid>/*.JPEG and val/)"
_ANSWERS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")


@dataclass(frozen=True, slots=True)
class _ClassedFiles:
    """The images of one split: their paths below the root, and the class name of each, or None."""

    paths: tuple[str, ...]
    classes: tuple[str | None, ...]


def folder_splits(
    path: Path,
    *,
    size: int = 64,
    grey: bool = False,
    background: str = BACKGROUND,
    holdout: float = 0.1,
    splits: Sequence[str] | None = None,
) -> Iterator[SourceSplit]:
    """Give uint8 [1 or 3, size, size] from a folder of images, or of a sub-folder of images for each class.

    A folder with a sub-folder `train` (and `valid` or `val`, and `test`) has these splits. Of any other folder, a share
    of the images is held out as `test`: spread over the classes, and drawn by the files' names, so that it is always
    the same.

    Args:
        path: The folder.
        size: Pixels of a side.
        grey: Whether samples have one channel instead of three.
        background: Color under transparent images.
        holdout: Share of the images that is for testing.
        splits: The splits to write; by default all.

    Raises:
        InputError: There are no images, they lie both in class folders and beside them, or the size is impossible.
    """
    crop = CenterCrop(size, grey, background)
    if not path.is_dir():
        raise InputError(f"There is no folder {path}: give one of images, or of a sub-folder of images for each class.")
    sizes = _only_images(list_files(path))
    split_folders = _find_split_folders(path)
    by_split = {name: _find_classes(sizes, f"{folder}/", path) for name, folder in split_folders.items()}
    if not split_folders:
        by_split = _hold_out_images(_find_classes(sizes, "", path), holdout)
    classes = _class_names(list(by_split.values()), path)
    settings = {"name": "folder", "size": size, "grey": grey, "background": background}
    for name in choose_splits(splits, tuple(by_split)):
        yield _make_split(name, path, by_split[name], sizes, classes, crop, settings)


def imagenet_splits(path: Path, *, size: int = 64, splits: Sequence[str] | None = None) -> Iterator[SourceSplit]:
    """Give uint8 [3, size, size] from ILSVRC2012: the middle square of each image; classes are the sorted wnids.

    Args:
        path: A folder with train/<wnid>/ and val/, which is sorted into wnids too, or flat with a list of answers
            beside it (LOC_val_solution.csv, or imagenet_2012_validation_synset_labels.txt).
        size: Pixels of a side.
        splits: The splits of `train` and `valid` to write; by default both.

    Raises:
        InputError: A folder or the list of answers is missing, a class of `valid` is not one of `train`, or the size is
            impossible.
    """
    crop = CenterCrop(size)
    chosen = choose_splits(splits, ("train", "valid"))
    root = first_existing([path / "train", path / "ILSVRC/Data/CLS-LOC/train", path / "Data/CLS-LOC/train"])
    if root is None:
        raise InputError(f"There is no folder train in {path}: imagenet64 needs {_IMAGENET}.")
    root = root.parent
    if "valid" in chosen and not (root / "val").is_dir():
        raise InputError(f"There is no folder val in {root}: imagenet64 needs {_IMAGENET}, or --splits train.")
    classes = tuple(sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir()))
    by_split = {split: _imagenet_files(root, split, [path, root]) for split in chosen}
    for split, (files, _) in by_split.items():
        unknown = sorted({str(name) for name in files.classes} - set(classes))
        if unknown:
            raise InputError(f"{root} has images of {unknown[0]!r} in {split}, but train has no such class folder.")
    for split, (files, sizes) in by_split.items():
        yield _make_split(split, root, files, sizes, classes, crop, {"name": "imagenet64", "size": size})


def _only_images(sizes: Listing) -> Listing:
    return {path: size for path, size in sizes.items() if path.lower().endswith(SUFFIXES)}


def _imagenet_files(root: Path, split: str, answer_folders: Sequence[Path]) -> tuple[_ClassedFiles, Listing]:
    """Find the images of one split with their wnids, and their sizes in bytes by path."""
    folder = "train" if split == "train" else "val"
    sizes = {f"{folder}/{path}": size for path, size in _only_images(list_files(root / folder)).items()}
    if split == "valid" and not any(path.count("/") > 1 for path in sizes):
        return _read_validation_answers(sizes, answer_folders), sizes
    return _find_classes(sizes, f"{folder}/", root), sizes


def _find_split_folders(path: Path) -> dict[str, str]:
    """Find the folder of each split, if the folder is divided into splits; else none."""
    folders = {folder.name.lower(): folder.name for folder in path.iterdir() if folder.is_dir()}
    known = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
    return {known[lower]: name for lower, name in folders.items() if lower in known} if "train" in folders else {}


def _find_classes(sizes: Listing, prefix: str, root: Path) -> _ClassedFiles:
    """Find the images below a prefix; a class is the name of a sub-folder."""
    paths = tuple(path for path in sizes if path.startswith(prefix))
    if not paths:
        raise InputError(
            f"There are no images in {root / prefix}: give a folder with files that end in {', '.join(SUFFIXES)}."
        )
    classes = tuple(_class_folder(path.removeprefix(prefix)) for path in paths)
    if None in classes and any(classes):
        loose = paths[classes.index(None)]
        raise InputError(
            f"{root / prefix} has images in sub-folders and beside them (such as {loose}): put all into sub-folders, "
            f"one for each class, or none."
        )
    return _ClassedFiles(paths, classes)


def _class_folder(path: str) -> str | None:
    return path.split("/", 1)[0] if "/" in path else None


def _class_names(splits: Sequence[_ClassedFiles], root: Path) -> tuple[str, ...]:
    names = {name for files in splits for name in files.classes}
    if None in names and len(names) > 1:
        raise InputError(f"Some splits of {root} have class folders and some have none: give all the same.")
    return tuple(sorted(name for name in names if name is not None))


def _hold_out_images(files: _ClassedFiles, share: float) -> dict[str, _ClassedFiles]:
    """Divide images into train and test, going through the classes in turn so that every class keeps the share."""
    if not 0 <= share < 1:
        raise InputError(f"--holdout is {share:g}, but must be from 0 to less than 1.")
    rows = sorted(
        range(len(files.paths)), key=lambda row: (files.classes[row] or "", fingerprint_content(files.paths[row]))
    )
    num_held_out = [round(share * count) for count in range(len(rows) + 1)]  # among the first `count` images
    test = {row for count, row in enumerate(rows) if num_held_out[count + 1] > num_held_out[count]}
    parts = {"train": [row for row in range(len(rows)) if row not in test], "test": sorted(test)}
    return {
        name: _ClassedFiles(tuple(files.paths[row] for row in part), tuple(files.classes[row] for row in part))
        for name, part in parts.items()
        if part
    }


def _read_validation_answers(sizes: Listing, answer_folders: Sequence[Path]) -> _ClassedFiles:
    """Find the wnids of ImageNet's flat validation images in a list of answers."""
    answers = first_existing([folder / name for folder in answer_folders for name in _ANSWERS])
    if answers is None:
        raise InputError(
            f"The images of val lie in no class folders and there is neither {' nor '.join(_ANSWERS)} in "
            f"{answer_folders[0]}: sort them into val/<wnid>/, add one of these files, or use --splits train."
        )
    lines = answers.read_text(encoding="utf-8").splitlines()
    paths = tuple(sizes)
    if answers.suffix == ".csv":
        by_name = {row[0]: row[1].split(" ")[0] for row in csv.reader(lines[1:]) if len(row) > 1}
        missing = [path for path in paths if Path(path).stem not in by_name]
        if missing:
            raise InputError(f"{answers} has no line for {missing[0]}: download it again, or remove that image.")
        return _ClassedFiles(paths, tuple(by_name[Path(path).stem] for path in paths))
    if len(lines) != len(paths):
        raise InputError(f"{answers} has {len(lines)} lines, but val has {len(paths)} images: they must be as many.")
    return _ClassedFiles(paths, tuple(line.strip() for line in lines))


def _make_split(
    name: str,
    root: Path,
    files: _ClassedFiles,
    sizes: Listing,
    classes: tuple[str, ...],
    crop: CenterCrop,
    settings: dict[str, object],
) -> SourceSplit:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = tuple(None if name is None else numbers[name] for name in files.classes)
    return SourceSplit(
        name=name,
        num_samples=len(files.paths),
        shape=(1 if crop.grey else 3, crop.size, crop.size),
        classes=classes,
        select_samples=samples_from_images(root, files.paths, labels, crop),
        class_numbers=np.array([numbers[str(name)] for name in files.classes]) if classes else None,
        settings={
            **settings,
            "input": fingerprint_content(fingerprint_images(files.paths, sizes, labels), "\n".join(classes)),
        },
    )
