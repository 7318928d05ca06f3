"""Image files in a folder or a zip, which are read and cropped one by one where their shard is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ali_dist.data.shards.codec import Sample, channels_first
from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.pictures import BACKGROUND, open_image, straighten_picture
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.sources.base import SampleNumbers, ShardSamples
from ali_dist.data.sources.image_files import read_file, readable_formats
from ali_dist.errors import InputError
from ali_dist.names import printable_name

if TYPE_CHECKING:
    from PIL.Image import Image

FACE = (178, 218)  # width and height of CelebA's aligned faces
MAX_SIDE = 1024  # four times the largest networks; a hundred thousand pixels would fill memory and disk
_REDUCING_GAP = 3.0  # how many times larger than its crop an image stays when it is reduced fast at first


def check_side(size: int) -> None:
    """Refuse a size that no image can be brought to.

    Raises:
        InputError: It is not from 1 to `MAX_SIDE`.
    """
    if not 1 <= size <= MAX_SIDE:
        raise InputError(f"--size is {size}, but must be from 1 to {MAX_SIDE} pixels a side.")


class ImageCrop(Protocol):
    """Makes a sample out of a decoded image."""

    def __call__(self, image: Image) -> tuple[Sample, frozenset[str]]:
        """Return uint8 [C, H, W] and what was done to the image; ValueError if the image cannot be used."""


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle square, reduced to `size` pixels a side (smoothed; smaller images are enlarged).

    Attributes:
        size: Pixels of a side, from 1 to `MAX_SIDE`.
        grey: Whether samples have one channel instead of three.
        background: Color under transparent images.
    """

    size: int
    grey: bool = False
    background: str = BACKGROUND

    def __post_init__(self) -> None:
        check_side(self.size)

    def __call__(self, image: Image) -> tuple[Sample, frozenset[str]]:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        scale = self._draft_photograph(image)
        box = (left * scale, top * scale, (left + side) * scale, (top + side) * scale)
        mode = "L" if self.grey else "RGB"
        small, treatments = straighten_picture(image, mode, self.background, lambda whole: self._reduce(whole, box))
        changes = {"cropped": width != height, "resized": side != self.size, "enlarged": side < self.size}
        return channels_first(small), treatments | {word for word, is_true in changes.items() if is_true}

    def _draft_photograph(self, image: Image) -> float:
        """Have a JPEG decoded at 1/2, 1/4 or 1/8 if twice our size is left; returns the scale."""
        if image.format not in ("JPEG", "MPO"):
            return 1.0
        width = image.width
        drafted = image.draft("RGB", (2 * self.size, 2 * self.size))
        return 1.0 if drafted is None else drafted[1][2] / width  # the image itself is rounded up to whole pixels

    def _reduce(self, image: Image, box: tuple[float, float, float, float]) -> Image:
        from PIL import Image as Images

        size, smooth = (self.size, self.size), Images.Resampling.LANCZOS
        left, top, right, bottom = map(int, box)
        if (left, top, right, bottom) == box:  # cut first, because the edges of a box mix with what is outside
            whole = (left, top, right, bottom) == (0, 0, *image.size)
            middle = image if whole else image.crop((left, top, right, bottom))
            return middle.resize(size, smooth, reducing_gap=_REDUCING_GAP)
        return image.resize(size, smooth, box, _REDUCING_GAP)


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """An aligned CelebA face as the paper uses it: 64 wide and 78 high, of which rows 7 to 70 are kept.

    Source: the data set that the reference code reads.
    """

    def __call__(self, image: Image) -> tuple[Sample, frozenset[str]]:
        from PIL import Image as Images

        if image.size != FACE:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels, but aligned and cropped faces have {FACE[0]}x{FACE[1]}"
            )
        face = channels_first(image.convert("RGB").resize((64, 78), Images.Resampling.LANCZOS))
        return face[:, 7:71], frozenset()


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """Image files below a folder or in a zip, with their labels and the names by which they are known."""

    root: Path
    paths: tuple[str, ...]
    labels: tuple[Label | None, ...]
    origins: tuple[str, ...]
    crop: ImageCrop

    def __len__(self) -> int:
        return len(self.paths)

    def describe_sample(self, number: int) -> str:
        return f"{printable_name(self.paths[number])} in {self.root}"

    def read_sample(self, number: int) -> PreparedSample:
        with open_image(read_file(self.root, self.paths[number]), readable_formats()) as image:
            x, treatments = self.crop(image)
        return PreparedSample(np.ascontiguousarray(x), self.labels[number], self.origins[number], treatments)


def samples_from_images(
    root: Path,
    paths: Sequence[str],
    labels: Sequence[Label | None],
    crop: ImageCrop,
    origins: Sequence[str] | None = None,
) -> Callable[[SampleNumbers], ShardSamples]:
    """A split's `select_samples` for image files below `root`, known by their paths or by `origins`."""
    names = paths if origins is None else origins

    def select_samples(numbers: SampleNumbers) -> ShardSamples:
        rows = numbers.tolist()
        return ImageSamples(
            root,
            tuple(paths[row] for row in rows),
            tuple(labels[row] for row in rows),
            tuple(names[row] for row in rows),
            crop,
        )

    return select_samples
