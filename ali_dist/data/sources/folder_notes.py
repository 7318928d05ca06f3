"""Sentences on how a folder of images was read, where that may surprise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from ali_dist.data.sources.image_files import LOOPING, OUTSIDE, UNREADABLE, list_folders, name_some
from ali_dist.data.sources.split_folders import DividedImages
from ali_dist.names import printable_name


def note_class_folders(divided: DividedImages, classes: Sequence[str]) -> list[str]:
    """Sentences on class folders: deeper ones, empty ones, ones of nearly the same name."""
    listing = divided.listing
    prefixes = list(divided.folders.values()) or [""]
    notes = []
    if listing.top and not classes and not divided.folders:
        notes.append(f"All images lie in the one folder {printable_name(listing.top)}, which is therefore no class.")
    deep = [path for path in listing.images if path.count("/") > (2 if divided.folders else 1)]
    if deep and classes:
        where = name_some(list(divided.folders.values())) or "the one given"
        notes.append(
            f"A class is a folder directly in {where}; the images of deeper folders (such as {name_some(deep, 1)}) "
            f"belong to the class that they lie in."
        )
    unfollowed = {file.path for file in listing.left_out if file.reason in (LOOPING, UNREADABLE)}
    outside = [file for file in listing.left_out if file.reason == OUTSIDE]
    empty = [
        prefix + name
        for prefix in sorted({"", *prefixes})
        for name in list_folders(listing.root, listing.top + prefix)
        if not any(path.startswith(f"{prefix}{name}/") for path in listing.images)
        and not any(file.path.startswith(f"{listing.top}{prefix}{name}/") for file in outside)
        and f"{listing.top}{prefix}{name}" not in unfollowed
    ]
    if empty:
        notes.append(
            f"{len(empty)} {'folder has' if len(empty) == 1 else 'folders have'} no images: {name_some(empty)}."
        )
    for folded, count in Counter(name.casefold() for name in classes).items():
        if count > 1:
            same = [name for name in classes if name.casefold() == folded]
            names = " and ".join(map(printable_name, same))
            notes.append(f"{names} are {count} classes, though only the case of their names differs.")
    return notes


def note_splits(divided: DividedImages, labels: Mapping[str, Sequence[Hashable]], holdout: float) -> list[str]:
    """Sentences on splits: nothing held out, classes of one image, classes that cannot be learned.

    Args:
        divided: The images.
        labels: The label of each image, by split.
        holdout: Share of images that was to be held out, unless folders divide them.
    """
    notes = []
    if set(labels) == {"train"} and (divided.folders or holdout):
        reason = (
            "there is no valid or test folder beside that of train"
            if divided.folders
            else f"{_count_images(len(labels['train']))} {'is' if len(labels['train']) == 1 else 'are'} too few for "
            f"--holdout {holdout:g}"
        )
        notes.append(f"No image is held out, because {reason}: nothing can be measured on images that were not seen.")
    if "train" not in labels:
        names = " and ".join(labels)
        notes.append(
            f"There is no train folder, only {names}: `train` finds nothing to train on, unless --data.split names one "
            f"of them."
        )
    counts = Counter(label for of_split in labels.values() for label in of_split if isinstance(label, str))
    if single := sorted(str(name) for name, count in counts.items() if count == 1):
        classes = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        notes.append(f"{classes} one image only: {name_some(single)}.")
    known = set(labels.get("train", ()))
    for name, of_split in labels.items():
        unknown = sorted({str(label) for label in of_split if isinstance(label, str) and label not in known})
        if unknown and known:
            notes.append(f"{name} has classes that train lacks: {name_some(unknown)}.")
    return notes


def _count_images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
