"""How a folder of images is divided: one folder that holds all, folders of splits, or folders of classes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ali_dist.data.sources.image_files import OUTSIDE, ImageListing, LeftOutFile, name_some
from ali_dist.errors import InputError

_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validate", "validation", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}
# What may follow: train_set, val-images, test2017.
_ENDING = re.compile(r"[-_ .]?(set|split|data|dataset|images|imgs)$|[-_ .]?(19|20)\d\d$")


@dataclass(frozen=True, slots=True)
class DividedImages:
    """Images that are divided into splits by their folders, or not.

    Attributes:
        listing: The images, of which those outside of all splits are left out.
        folders: Where each split's images are: a path with a slash at its end, by the name of the split; empty if the
            images are not divided.
        notes: Sentences on what may surprise.
    """

    listing: ImageListing
    folders: dict[str, str]
    notes: tuple[str, ...] = ()

    def left_out(self, split: str, *, is_first: bool) -> list[LeftOutFile]:
        """The files that are left out of a split's folder; those of no split's folder belong to the first split."""
        prefixes = {name: self.listing.top + folder for name, folder in self.folders.items()}
        owners = [
            (file, next((name for name, prefix in prefixes.items() if file.path.startswith(prefix)), None))
            for file in self.listing.left_out
        ]
        return [file for file, owner in owners if owner == split or (owner is None and is_first)]


def split_meant_by(folder: str) -> str | None:
    """The split that a folder's name stands for: `train`, `valid`, `test`, or None."""
    name = folder.lower()
    return _SPLITS.get(name) or _SPLITS.get(_ENDING.sub("", name))


def look_through_top(listing: ImageListing) -> ImageListing:
    """Take a folder that holds all images, as archives have it, for the whole; the folder of a split it is not."""
    tops = _first_folders(listing.images)
    if len(tops) != 1 or None in tops:
        return listing
    (top,) = tops
    if top is None or split_meant_by(top) is not None:
        return listing
    images = {path.removeprefix(f"{top}/"): size for path, size in listing.images.items()}
    inner = dataclasses.replace(listing, images=images, top=f"{listing.top}{top}/")
    return look_through_top(inner)


def divide_images(listing: ImageListing) -> DividedImages:
    """Find the folders of splits.

    Names alone do not decide: `train` may be a class of vehicles. Folders are splits if nothing else is there, if
    there is one to train on and another one, or if there is one to train on that is divided into classes.

    Raises:
        InputError: Two folders mean the same split.
    """
    tops = _first_folders(listing.images)
    split_folders = sorted(top for top in tops if top is not None and split_meant_by(top))
    found = {str(split_meant_by(top)) for top in split_folders}
    has_others = len(split_folders) < len(tops)
    is_nested = any(split_meant_by(path.split("/")[0]) == "train" and path.count("/") > 1 for path in listing.images)
    if not found:
        return DividedImages(listing, {})
    if has_others and not ("train" in found and (len(found) > 1 or is_nested)):
        note = (
            f"{name_some(split_folders)} is a class like the folders beside it; it would be a split with a folder "
            f"{'valid or test' if 'train' in found else 'train'} beside it."
        )
        return DividedImages(listing, {}, (note,))
    folders: dict[str, str] = {}
    for name in ("train", "valid", "test"):
        same = [folder for folder in split_folders if split_meant_by(folder) == name]
        if len(same) > 1:
            raise InputError(
                f"{listing.root / listing.top} has the folders {' and '.join(same)}, which both mean {name}: put their "
                f"images into one, or rename one."
            )
        if same:
            folders[name] = f"{same[0]}/"
    inside = {path: size for path, size in listing.images.items() if path.startswith(tuple(folders.values()))}
    outside = [LeftOutFile(path, OUTSIDE) for path in listing.in_root(listing.images.keys() - inside.keys())]
    left_out = sorted([*listing.left_out, *outside], key=lambda file: file.path)
    return DividedImages(dataclasses.replace(listing, images=inside, left_out=tuple(left_out)), folders)


def _first_folders(paths: Iterable[str]) -> set[str | None]:
    """The first part of each path that has several, and None if there is one without."""
    return {path.split("/", 1)[0] if "/" in path else None for path in paths}
