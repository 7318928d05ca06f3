"""Folders and zips of images: the user's own, with classes by folder or by table, or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.pictures import BACKGROUND
from ali_dist.data.sources.base import SourceSplit, fingerprint_content
from ali_dist.data.sources.folder_notes import note_class_folders, note_splits
from ali_dist.data.sources.holdout import check_share, measurable_share
from ali_dist.data.sources.image_files import (
    BROKEN,
    ImageListing,
    count_left_out,
    fingerprint_images,
    image_suffixes,
    is_zip_file,
    list_images,
    name_some,
)
from ali_dist.data.sources.images import CenterCrop, samples_from_images
from ali_dist.data.sources.metadata import TableLabels, describe_unused, find_tables, read_labels
from ali_dist.data.sources.original_files import choose_splits
from ali_dist.data.sources.split_folders import DividedImages, divide_images, look_through_top
from ali_dist.errors import InputError
from ali_dist.names import printable_name


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """The images of one split: their paths below the top of their listing, and the label of each.

    A label is the name of a class, a tuple with the 0 or 1 of each attribute, or None.
    """

    paths: tuple[str, ...]
    labels: tuple[str | tuple[float, ...] | None, ...]


def folder_splits(
    path: Path,
    *,
    size: int = 64,
    grey: bool = False,
    background: str = BACKGROUND,
    labels: str | None = None,
    holdout: float = 0.1,
    splits: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> Iterator[SourceSplit]:
    """Give uint8 [1 or 3, size, size] from a folder or zip of images, or of a sub-folder of images for each class.

    Folders that are called like splits (`train`, `val`, `test_set`) are splits; see `divide_images`. Of any other
    folder, a share of the images is held out as `test`: spread over the classes, and drawn by the files' names, so that
    it is always the same. A folder that holds all others is looked through.

    Args:
        path: The folder, or a .zip file.
        size: Pixels of a side.
        grey: Whether samples have one channel instead of three.
        background: Color under transparent images.
        labels: A column of metadata.csv or metadata.jsonl with the class, or several with attributes of 0 or 1,
            separated by commas; by default the folders are the classes.
        holdout: Share of the images that is for testing.
        splits: The splits to write; by default all.
        skip_bad: Whether folders that cannot be read are left out.

    Raises:
        InputError: There are no images, a folder cannot be read, images lie both in class folders and beside them, a
            table does not fit them, or the size is impossible.
    """
    crop = CenterCrop(size, grey, background)
    if not path.is_dir() and not is_zip_file(path):
        what = f"{path} is neither a folder nor a .zip file" if path.exists() else f"There is no folder {path}"
        raise InputError(f"{what}: give one of images, or of a sub-folder of images for each class.")
    divided = divide_images(look_through_top(_list_some_images(path, skip_bad=skip_bad)))
    columns = tuple(name.strip() for name in labels.split(",")) if labels is not None else ()
    tables = find_tables(divided.listing, list(divided.folders.values()))
    table = read_labels(divided.listing, tables, columns) if columns else None
    by_split = {name: _label_files(divided.listing, prefix, table) for name, prefix in divided.folders.items()}
    if not by_split:
        by_split = _hold_out_images(_label_files(divided.listing, "", table), holdout)
    classes = table.classes if table else _class_names(list(by_split.values()), path)
    settings: dict[str, Any] = {"name": "folder", "size": size, "grey": grey, "background": background}
    settings |= {"labels": list(columns)} if columns else {}
    notes = [*divided.notes, *([describe_unused(divided.listing, tables)] if tables and not columns else [])]
    notes += [] if table else note_class_folders(divided, classes)
    notes += note_splits(divided, {name: files.labels for name, files in by_split.items()}, holdout)
    chosen = choose_splits(splits, tuple(by_split))
    for name in chosen:
        extra = _describe_input(divided, name, notes, tables if columns else (), is_first=name == chosen[0])
        attributes = columns if table and not table.classes else ()
        yield make_split(name, divided.listing, by_split[name], classes, crop, settings, attributes, extra)


def _list_some_images(path: Path, *, skip_bad: bool) -> ImageListing:
    listing = list_images(path, skip_bad=skip_bad)
    if listing.images:
        return listing
    left_out = count_left_out(listing.left_out).to_json()
    if broken := left_out.get(BROKEN):
        others = f", and {len(listing.left_out) - broken['count']} other files" if len(left_out) > 1 else ""
        raise InputError(
            f"There are only broken links in {path} ({broken['count']}, such as {broken['first'][0]}{others}): fetch "
            f"the files that they point to (with `dvc pull` or `git annex get`, say), or give the folder that has them."
        )
    counts = sorted(((entry["count"], reason) for reason, entry in left_out.items()), key=lambda item: -item[0])
    found = ", ".join(f"{count} {reason}" for count, reason in counts[:8])
    raise InputError(
        f"There are no images in {path}{f' (only {found})' if found else ''}: give a folder with files that end in "
        f"{', '.join(image_suffixes())}."
    )


def _label_files(listing: ImageListing, prefix: str, table: TableLabels | None) -> LabelledFiles:
    if table is None:
        return classes_by_folder(listing, prefix)
    paths = tuple(path for path in listing.images if path.startswith(prefix))
    return LabelledFiles(paths, tuple((table.class_of or table.attributes_of)[path] for path in paths))


def classes_by_folder(listing: ImageListing, prefix: str) -> LabelledFiles:
    """Find the images below a prefix; the class of each is the first folder below it.

    Raises:
        InputError: There are none, or some lie in folders and others beside them.
    """
    where = printable_name(str(listing.root / listing.top / prefix))
    paths = tuple(path for path in listing.images if path.startswith(prefix))
    if not paths:
        raise InputError(
            f"There are no images in {where}: give a folder with files that end in {', '.join(image_suffixes())}."
        )
    classes = tuple(_class_folder(path.removeprefix(prefix)) for path in paths)
    if None in classes and any(classes):
        loose = [path for path, name in zip(paths, classes, strict=True) if name is None]
        raise InputError(
            f"{where} has images in sub-folders and beside them (such as {name_some(loose, 1)}): put all into "
            f"sub-folders, one for each class, or none."
        )
    return LabelledFiles(paths, classes)


def _class_folder(path: str) -> str | None:
    return printable_name(path.split("/", 1)[0]) if "/" in path else None


def _class_names(splits: Sequence[LabelledFiles], root: Path) -> tuple[str, ...]:
    names = {name for files in splits for name in files.labels}
    if None in names and len(names) > 1:
        raise InputError(f"Some splits of {root} have class folders and some have none: give all the same.")
    return tuple(sorted(str(name) for name in names if name is not None))


def _hold_out_images(files: LabelledFiles, share: float) -> dict[str, LabelledFiles]:
    """Divide images into train and test, going through the classes in turn so that every class keeps the share."""
    check_share(share)
    rows = sorted(
        range(len(files.paths)), key=lambda row: (str(files.labels[row]), fingerprint_content(files.paths[row]))
    )
    share = measurable_share(len(rows), share)
    num_held_out = [round(share * count) for count in range(len(rows) + 1)]  # among the first `count` images
    test = {row for count, row in enumerate(rows) if num_held_out[count + 1] > num_held_out[count]}
    parts = {"train": [row for row in range(len(rows)) if row not in test], "test": sorted(test)}
    return {
        name: LabelledFiles(tuple(files.paths[row] for row in part), tuple(files.labels[row] for row in part))
        for name, part in parts.items()
        if part
    }


def _describe_input(
    divided: DividedImages, split: str, notes: Sequence[str], used_tables: Sequence[str], *, is_first: bool
) -> dict[str, Any]:
    """What the index says of a split's input; what concerns all splits, the first one says."""
    left_out = [file for file in divided.left_out(split, is_first=is_first) if file.path not in used_tables]
    return {
        **({"left_out": count_left_out(left_out).to_json()} if left_out else {}),
        **({"notes": list(notes)} if notes and is_first else {}),
    }


def make_split(
    name: str,
    listing: ImageListing,
    files: LabelledFiles,
    classes: tuple[str, ...],
    crop: CenterCrop,
    settings: dict[str, Any],
    attributes: tuple[str, ...] = (),
    extra: dict[str, Any] | None = None,
) -> SourceSplit:
    """Make a split of images in a folder or zip.

    Args:
        name: Name of the split.
        listing: The images of all splits.
        files: Those of this split.
        classes: Names of the classes, or empty.
        crop: Makes samples of them.
        settings: Everything that decides what is written, but for the input.
        attributes: Names of the attributes, or empty.
        extra: Facts for the index.
    """
    numbers = {class_name: number for number, class_name in enumerate(classes)}
    labels: list[Label | None] = [numbers[name] if isinstance(name, str) else name for name in files.labels]
    fingerprint = fingerprint_images(files.paths, listing.images, labels)
    return SourceSplit(
        name=name,
        num_samples=len(files.paths),
        shape=(1 if crop.grey else 3, crop.size, crop.size),
        classes=classes,
        attributes=attributes,
        select_samples=samples_from_images(listing.root, listing.in_root(files.paths), labels, crop, files.paths),
        class_numbers=np.array(labels) if classes else None,
        settings={**settings, "input": fingerprint_content(fingerprint, "\n".join(classes))},
        extra=extra or {},
    )
