"""Every source that writes shards, by the name it has on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ali_dist.data.sources.base import SourceSplit
from ali_dist.data.sources.celeba import celeba_splits
from ali_dist.data.sources.cifar10 import cifar10_splits
from ali_dist.data.sources.digits import digits_splits
from ali_dist.data.sources.folders import folder_splits, imagenet_splits
from ali_dist.data.sources.mixture import mixture_splits
from ali_dist.data.sources.shapes import shapes_splits
from ali_dist.data.sources.svhn import svhn_splits


class DataSource(NamedTuple):
    """A source.

    Attributes:
        summary: what it is, in a line.
        splits: its splits; options are keywords.
        options: names of these keywords. `path` is where the original files are, and must be given.
        files: what `path` must name.
    """

    summary: str
    splits: Callable[..., Iterator[SourceSplit]]
    options: tuple[str, ...]
    files: str = ""


SOURCES = {
    "digits": DataSource("scikit-learn's handwritten digits, 8x8", digits_splits, ()),
    "mixture": DataSource("points of a mixture of Gaussians", mixture_splits, ("layout", "samples")),
    "shapes": DataSource(
        "drawn shapes with classes or attributes", shapes_splits, ("labels", "size", "samples", "seed")
    ),
    "cifar10": DataSource(
        "CIFAR-10: 45,000 train, 5,000 valid, 10,000 test",
        cifar10_splits,
        ("path", "splits", "holdout"),
        "the folder or .tar.gz of CIFAR-10 from the CIFAR page, binary or Python version",
    ),
    "svhn": DataSource(
        "SVHN: 63,257 train, 10,000 valid, 531,131 extra, 26,032 test",
        svhn_splits,
        ("path", "splits", "holdout"),
        "the folder of train_32x32.mat, extra_32x32.mat and test_32x32.mat from the SVHN page",
    ),
    "celeba": DataSource(
        "CelebA faces, 64x64, 40 attributes",
        celeba_splits,
        ("path", "splits"),
        "the folder of img_align_celeba (or its .zip), list_attr_celeba.txt and list_eval_partition.txt",
    ),
    "imagenet64": DataSource(
        "ILSVRC2012, the middle square at 64x64",
        imagenet_splits,
        ("path", "splits", "size"),
        "the folder of train/<wnid>/*.JPEG and val/",
    ),
    "folder": DataSource(
        "your own images, flat or a sub-folder for each class",
        folder_splits,
        ("path", "splits", "size", "grey", "holdout"),
        "the folder of images",
    ),
}
