"""ImageNet of ILSVRC2012, as its authors distribute it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ali_dist.data.sources.base import SourceSplit
from ali_dist.data.sources.folders import LabelledFiles, classes_by_folder, make_split
from ali_dist.data.sources.image_files import ImageListing, count_left_out, list_images
from ali_dist.data.sources.images import CenterCrop
from ali_dist.data.sources.original_files import choose_splits, first_existing
from ali_dist.errors import InputError
from ali_dist.names import printable_name

_IMAGENET = "the ILSVRC2012 images from the ImageNet site (train/<wnid>/*.JPEG and val/)"
_ANSWERS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")


def imagenet_splits(
    path: Path, *, size: int = 64, splits: Sequence[str] | None = None, skip_bad: bool = False
) -> Iterator[SourceSplit]:
    """Give uint8 [3, size, size] from ILSVRC2012: the middle square of each image; classes are the sorted wnids.

    Args:
        path: A folder with train/<wnid>/ and val/, which is sorted into wnids too, or flat with a list of answers
            beside it (LOC_val_solution.csv, or imagenet_2012_validation_synset_labels.txt).
        size: Pixels of a side.
        splits: The splits of `train` and `valid` to write; by default both.
        skip_bad: Whether folders that cannot be read are left out.

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
    classes = tuple(sorted(printable_name(folder.name) for folder in (root / "train").iterdir() if folder.is_dir()))
    by_split = {split: _imagenet_files(root, split, [path, root], skip_bad=skip_bad) for split in chosen}
    for split, (files, _) in by_split.items():
        unknown = sorted({str(name) for name in files.labels} - set(classes))
        if unknown:
            raise InputError(f"{root} has images of {unknown[0]!r} in {split}, but train has no such class folder.")
    for split, (files, listing) in by_split.items():
        extra = {"left_out": count_left_out(listing.left_out).to_json()} if listing.left_out else {}
        yield make_split(split, listing, files, classes, crop, {"name": "imagenet64", "size": size}, extra=extra)


def _imagenet_files(
    root: Path, split: str, answer_folders: Sequence[Path], *, skip_bad: bool
) -> tuple[LabelledFiles, ImageListing]:
    """Find the images of one split with their wnids, and the listing that they are in."""
    folder = "train" if split == "train" else "val"
    listing = list_images(root / folder, skip_bad=skip_bad)
    images = {f"{folder}/{path}": size for path, size in listing.images.items()}
    listing = ImageListing(root, images, listing.left_out)
    if split == "valid" and not any(path.count("/") > 1 for path in images):
        return _read_validation_answers(tuple(images), answer_folders), listing
    return classes_by_folder(listing, f"{folder}/"), listing


def _read_validation_answers(paths: tuple[str, ...], answer_folders: Sequence[Path]) -> LabelledFiles:
    """Find the wnids of ImageNet's flat validation images in a list of answers."""
    answers = first_existing([folder / name for folder in answer_folders for name in _ANSWERS])
    if answers is None:
        raise InputError(
            f"The images of val lie in no class folders and there is neither {' nor '.join(_ANSWERS)} in "
            f"{answer_folders[0]}: sort them into val/<wnid>/, add one of these files, or use --splits train."
        )
    lines = answers.read_text(encoding="utf-8").splitlines()
    if answers.suffix == ".csv":
        by_name = {row[0]: row[1].split(" ")[0] for row in csv.reader(lines[1:]) if len(row) > 1}
        missing = [path for path in paths if Path(path).stem not in by_name]
        if missing:
            raise InputError(f"{answers} has no line for {missing[0]}: download it again, or remove that image.")
        return LabelledFiles(paths, tuple(by_name[Path(path).stem] for path in paths))
    if len(lines) != len(paths):
        raise InputError(f"{answers} has {len(lines)} lines, but val has {len(paths)} images: they must be as many.")
    return LabelledFiles(paths, tuple(line.strip() for line in lines))
