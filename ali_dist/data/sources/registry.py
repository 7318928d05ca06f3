"""Every data set that can be prepared, one row each.

A new data set is a module in this folder and a row in `SOURCES`. The row is all that the rest of the program knows of
it: `prepare` builds its options and its help from the rows, and `data.source` may name what a row says can be written
without any files.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ali_dist.data.sources.base import SourceSplit
from ali_dist.data.sources.celeba import celeba_splits
from ali_dist.data.sources.cifar10 import cifar10_splits
from ali_dist.data.sources.cifar100 import cifar100_splits
from ali_dist.data.sources.digits import digits_splits
from ali_dist.data.sources.folders import folder_splits
from ali_dist.data.sources.imagenet import imagenet_splits
from ali_dist.data.sources.mixture import mixture_splits
from ali_dist.data.sources.mnist import mnist_splits
from ali_dist.data.sources.npz import npz_splits
from ali_dist.data.sources.parquet import parquet_splits
from ali_dist.data.sources.shapes import shapes_splits
from ali_dist.data.sources.stl10 import stl10_splits
from ali_dist.data.sources.svhn import svhn_splits


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOption:
    """An option of `prepare` that is a keyword of a source's function.

    Attributes:
        keyword: The keyword; the flag is the same word, or `flag`.
        help: What it means for this source, with its default.
        value_type: Makes the value out of the text that was given; None for a switch, which takes no value.
        choices: The allowed values; empty if there is no list of them.
        metavar: What --help shows for the value.
        flag: The flag where it is not the keyword.
    """

    keyword: str
    help: str
    value_type: Callable[[str], Any] | None = str
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    flag: str = ""

    @property
    def command_flag(self) -> str:
        """The flag on the command line."""
        return self.flag or f"--{self.keyword}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A data set, or a kind of data set.

    Attributes:
        summary: What it is, in a line.
        make_splits: Gives its splits; takes the options as keywords.
        options: The options that it has.
        original_files: What `--from` must name; empty if the source needs no files.
        has_images: Whether its samples are images, which may be compressed (`--encoding`).
        lists_folder: Whether it takes whatever lies below `--from`, so that OUT has to be elsewhere.
        built_in: The values of `data.source` under which training writes it on first use, each with the options that
            it is then written with. The name is also the one in the `source` of the index.
    """

    summary: str
    make_splits: Callable[..., Iterator[SourceSplit]]
    options: tuple[SourceOption, ...] = ()
    original_files: str = ""
    has_images: bool = True
    lists_folder: bool = False
    built_in: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def parse_names(text: str) -> tuple[str, ...]:
    """The names in a list that is separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def parse_color(text: str) -> str:
    """A color that Pillow knows, as it was written.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    from PIL import ImageColor

    try:
        ImageColor.getrgb(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a color, such as white or #ff8800") from error
    return text


def _expand_path(text: str) -> Path:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    if scheme:  # the rest is not repeated, because urls may hold passwords
        remedy = "webdataset indexes tars there" if scheme[1] == "s3" else "webdataset-import reads tars from urls"
        raise argparse.ArgumentTypeError(
            f"is a url ({scheme[0]}...), but must be a path on this machine: download the files first ({remedy})"
        )
    return Path(os.path.expanduser(text))


_PATH = SourceOption(
    keyword="path", flag="--from", value_type=_expand_path, metavar="PATH", help="where the original files are"
)
_SPLITS = SourceOption(keyword="splits", value_type=parse_names, metavar="A,B", help="write these splits only")
_VALID_HOLDOUT = SourceOption(
    keyword="holdout", value_type=float, help="share of the training images held out as valid (default as in the paper)"
)
_ANY_SIZE = SourceOption(keyword="size", value_type=int, help="pixels of a side (default 64)")
_GREY = SourceOption(keyword="grey", value_type=None, help="one channel instead of three")
_BACKGROUND = SourceOption(
    keyword="background",
    value_type=parse_color,
    metavar="COLOR",
    help="what transparent images are put on, as a name or #rrggbb (default white)",
)
_SKIP_BAD = SourceOption(
    keyword="skip_bad", flag="--skip-bad", value_type=None, help="leave out, count and list what cannot be read"
)

SOURCES = {
    "digits": DataSource(
        summary="scikit-learn's handwritten digits, 8x8",
        make_splits=digits_splits,
        built_in={"digits": {}},
    ),
    "mixture": DataSource(
        summary="points of a mixture of Gaussians",
        make_splits=mixture_splits,
        options=(
            SourceOption(keyword="layout", choices=("grid", "ring"), help="25 Gaussians (default), or 8"),
            SourceOption(
                keyword="samples", value_type=int, help="samples to train on (default 100000); a tenth more to test on"
            ),
        ),
        has_images=False,
        built_in={
            "mixture-grid": {"layout": "grid", "samples": 25_000},
            "mixture-ring": {"layout": "ring", "samples": 25_000},
        },
    ),
    "shapes": DataSource(
        summary="drawn shapes with classes or attributes",
        make_splits=shapes_splits,
        options=(
            SourceOption(keyword="size", value_type=int, help="pixels of a side: 32 (default) or 64"),
            SourceOption(
                keyword="labels", metavar="LABELS", help="what they are labelled with: classes (default) or attributes"
            ),
            SourceOption(
                keyword="samples", value_type=int, help="samples to train on (default 20000); a tenth more to test on"
            ),
            SourceOption(keyword="seed", value_type=int, help="seed of everything that is drawn (default 0)"),
        ),
        built_in={"shapes": {"labels": "classes"}, "shapes-attributes": {"labels": "attributes"}},
    ),
    "cifar10": DataSource(
        summary="CIFAR-10: 45,000 train, 5,000 valid, 10,000 test",
        make_splits=cifar10_splits,
        options=(_PATH, _SPLITS, _VALID_HOLDOUT),
        original_files="the folder or .tar.gz of CIFAR-10 from the CIFAR page, binary or Python version",
    ),
    "cifar100": DataSource(
        summary="CIFAR-100: 45,000 train, 5,000 valid, 10,000 test",
        make_splits=cifar100_splits,
        options=(
            _PATH,
            _SPLITS,
            SourceOption(keyword="labels", metavar="LABELS", help="fine (100 classes, default) or coarse (20)"),
            SourceOption(
                keyword="holdout", value_type=float, help="share of the training images held out as valid (default 0.1)"
            ),
        ),
        original_files="the folder or .tar.gz of CIFAR-100 from the CIFAR page, binary or Python version",
    ),
    "svhn": DataSource(
        summary="SVHN: 63,257 train, 10,000 valid, 531,131 extra, 26,032 test",
        make_splits=svhn_splits,
        options=(_PATH, _SPLITS, _VALID_HOLDOUT),
        original_files="the folder of train_32x32.mat, extra_32x32.mat and test_32x32.mat from the SVHN page",
    ),
    "mnist": DataSource(
        summary="MNIST: 50,000 train, 10,000 valid, 10,000 test; also Fashion-MNIST, KMNIST, EMNIST",
        make_splits=mnist_splits,
        options=(
            _PATH,
            _SPLITS,
            SourceOption(
                keyword="variant", metavar="NAME", help="part of EMNIST, where there are several: letters, ..."
            ),
            SourceOption(
                keyword="names",
                value_type=parse_names,
                metavar="A,B",
                help="names of the classes, or fashion or kmnist (default by the folder's name, else numbers)",
            ),
            SourceOption(
                keyword="size",
                value_type=int,
                help="pixels of a side, resized (default 32: the 28 with a black frame of 2)",
            ),
            SourceOption(
                keyword="holdout",
                value_type=float,
                help="share of the training images held out as valid (default 1/6, 10,000 of 60,000)",
            ),
        ),
        original_files="the folder of train-images-idx3-ubyte and the other three files, packed or not",
    ),
    "stl10": DataSource(
        summary="STL-10: 5,000 train, 100,000 unlabeled, 8,000 test, at 64x64",
        make_splits=stl10_splits,
        options=(_PATH, _SPLITS, _ANY_SIZE),
        original_files="the unpacked folder stl10_binary",
    ),
    "celeba": DataSource(
        summary="CelebA faces, 64x64, 40 attributes",
        make_splits=celeba_splits,
        options=(_PATH, _SPLITS, _SKIP_BAD),
        original_files="the folder of img_align_celeba (or its .zip), list_attr_celeba.txt and list_eval_partition.txt",
    ),
    "imagenet64": DataSource(
        summary="ILSVRC2012, the middle square at 64x64",
        make_splits=imagenet_splits,
        options=(_PATH, _SPLITS, _ANY_SIZE, _SKIP_BAD),
        original_files="the folder of train/<wnid>/*.JPEG and val/",
    ),
    "folder": DataSource(
        summary="your own images in a folder or .zip, flat or a sub-folder for each class",
        make_splits=folder_splits,
        options=(
            _PATH,
            _SPLITS,
            _ANY_SIZE,
            _GREY,
            _BACKGROUND,
            SourceOption(
                keyword="labels",
                metavar="LABELS",
                help="column of metadata.csv or metadata.jsonl with the class, or A,B,... with attributes of 0 or 1",
            ),
            SourceOption(
                keyword="holdout", value_type=float, help="share of the images held out as test (default 0.1)"
            ),
            _SKIP_BAD,
        ),
        original_files="the folder or .zip of images",
        lists_folder=True,
    ),
    "parquet": DataSource(
        summary="an image data set of Hugging Face, as Parquet files",
        make_splits=parquet_splits,
        options=(
            _PATH,
            _SPLITS,
            _ANY_SIZE,
            _GREY,
            _BACKGROUND,
            SourceOption(
                keyword="image", metavar="COLUMN", help="column of the pictures (default the only one, or image or img)"
            ),
            SourceOption(
                keyword="labels",
                metavar="LABELS",
                help="column of the class, or A,B for attributes that are 0 or 1 (default the only one of declared "
                "classes, or label)",
            ),
            SourceOption(
                keyword="holdout",
                value_type=float,
                help="share held out as test, where all files are for training (default 0.1)",
            ),
        ),
        original_files="the folder of .parquet files, or one file",
    ),
    "npz": DataSource(
        summary="arrays of pictures and labels in an .npz file, as MedMNIST",
        make_splits=npz_splits,
        options=(
            _PATH,
            _SPLITS,
            SourceOption(
                keyword="size",
                value_type=int,
                help="pixels of a side, resized (default as they are, and 28 with a black frame of 2)",
            ),
            SourceOption(
                keyword="holdout",
                value_type=float,
                help="share held out as test, where all arrays are for training (default 0.1)",
            ),
        ),
        original_files="the .npz file",
    ),
}
"""Every source that is written as shards, by the name that it has on the command line."""


def built_in_sources() -> dict[str, tuple[DataSource, Mapping[str, Any]]]:
    """The source and its options for every value that `data.source` may have."""
    return {name: (source, options) for source in SOURCES.values() for name, options in source.built_in.items()}
