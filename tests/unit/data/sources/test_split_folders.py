"""Folders that mean splits, in the spellings that people use, and folders that only look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.data.sources.image_files import OUTSIDE, ImageListing
from ali_dist.data.sources.split_folders import divide_images, look_through_top, split_meant_by
from ali_dist.errors import InputError


def listing_of(*paths: str) -> ImageListing:
    return ImageListing(Path("pictures"), dict.fromkeys(sorted(paths), 1), ())


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAIN training Training_Set train_set train-images traindata train2017 trainset"),
        ("valid", "valid val Validation validation_set dev eval val2017 val_images evaluation"),
        ("test", "test Testing test_set test-data test2017 testset TEST"),
        (None, "extra trainer trains cats latest test1 contrast devices value unlabeled labels"),
    ],
)
def test_the_usual_spellings_of_splits(split: str | None, names: str) -> None:
    assert {name: split_meant_by(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_splits_of_any_case_are_found_and_what_lies_beside_them_is_named() -> None:
    divided = divide_images(listing_of("Train/a.png", "Validation/b.png", "Test/c.png", "extra/d.png", "e.png"))
    assert divided.folders == {"train": "Train/", "valid": "Validation/", "test": "Test/"}
    assert list(divided.listing.images) == ["Test/c.png", "Train/a.png", "Validation/b.png"]
    assert [(file.path, file.reason) for file in divided.left_out("train", is_first=True)] == [
        ("e.png", OUTSIDE),
        ("extra/d.png", OUTSIDE),
    ]
    assert divided.left_out("test", is_first=False) == []


def test_two_folders_of_the_same_split_are_refused() -> None:
    with pytest.raises(InputError, match="folders Train and training_set, which both mean train: put"):
        divide_images(listing_of("Train/a.png", "training_set/b.png", "test/c.png"))


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train/a.png"], ["train"]),
        (["train/cats/a.png", "extra/b.png"], ["train"]),
        (["val/a.png", "test/b.png"], ["valid", "test"]),
        (["train/a.png", "car/b.png", "bus/c.png"], []),
        (["test/a.png", "control/b.png"], []),
        (["cats/a.png", "dogs/train/b.png"], []),
    ],
)
def test_a_class_that_is_called_like_a_split_is_a_class(paths: list[str], splits: list[str]) -> None:
    divided = divide_images(listing_of(*paths))
    assert list(divided.folders) == splits
    assert bool(divided.notes) == (not splits and split_meant_by(sorted(paths)[-1].split("/")[0]) is not None)


@pytest.mark.parametrize(
    ("paths", "top"),
    [
        (["birds/a/1.png", "birds/b/2.png"], "birds/"),
        (["data/birds/1.png"], "data/birds/"),
        (["birds-master/train/1.png", "birds-master/test/2.png"], "birds-master/"),
        (["train/a/1.png"], ""),
        (["birds/1.png", "2.png"], ""),
    ],
)
def test_one_folder_that_holds_all_is_looked_through(paths: list[str], top: str) -> None:
    listing = look_through_top(listing_of(*paths))
    assert listing.top == top
    assert list(listing.in_root(listing.images)) == sorted(paths)
