"""Image files in a folder or a zip, which are read and cropped one by one where their shard is written."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ali_dist.data.shards.codec import Sample, channels_first
from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.pictures import BACKGROUND, open_image, straighten_picture
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.sources.base import SampleNumbers, ShardSamples, fingerprint_content
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FACE = (178, 218)  # width and height of CelebA's aligned faces
Listing = dict[str, int]  # size in bytes of each file, by its path in the folder or zip; sorted


class ImageCrop(Protocol):
    """Makes a sample out of a decoded image."""

    def __call__(self, image: Image) -> tuple[Sample, frozenset[str]]:
        """Return uint8 [C, H, W] and what was done to the image; ValueError if the image cannot be used."""


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle square, reduced to `size` pixels a side (smoothed; smaller images are enlarged).

    Attributes:
        size: Pixels of a side, at least 1.
        grey: Whether samples have one channel instead of three.
        background: Color under transparent images.
    """

    size: int
    grey: bool = False
    background: str = BACKGROUND

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"--size is {self.size}, but must be at least 1.")

    def __call__(self, image: Image) -> tuple[Sample, frozenset[str]]:
        from PIL import Image as Images

        whole, treatments = straighten_picture(image, "L" if self.grey else "RGB", self.background)
        side = min(whole.size)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        square = whole.crop((left, top, left + side, top + side))
        return channels_first(square.resize((self.size, self.size), Images.Resampling.LANCZOS)), treatments


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
        return f"{self.paths[number]} in {self.root}"

    def read_sample(self, number: int) -> PreparedSample:
        with open_image(self._read_file(self.paths[number]), FORMATS) as image:
            x, treatments = self.crop(image)
        return PreparedSample(np.ascontiguousarray(x), self.labels[number], self.origins[number], treatments)

    def _read_file(self, path: str) -> bytes:
        if not is_zip_file(self.root):
            try:
                return (self.root / path).read_bytes()
            except OSError as error:
                raise ValueError(f"it cannot be read ({str(error.strerror).lower()})") from error
        try:
            return _open_archive(self.root).read(path)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"it cannot be read ({error})") from error


def is_zip_file(root: Path) -> bool:
    """Whether a root of images is an archive; folders may be called anything."""
    return root.suffix.lower() == ".zip" and root.is_file()


@functools.lru_cache(maxsize=2)
def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip and keep it open for the process: a list of 200,000 names takes a second to read."""
    return zipfile.ZipFile(path)


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


def list_files(root: Path) -> Listing:
    """List every file of a folder, at any depth, or of a zip; hidden ones are left out.

    Raises:
        InputError: The zip or folder cannot be read.
    """
    if is_zip_file(root):
        try:
            sizes = {info.filename: info.file_size for info in _open_archive(root).infolist() if not info.is_dir()}
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{root} cannot be read as a zip ({error}): download it again.") from error
    else:
        sizes = {info.key: info.size for info in LocalStore(root).list()}
    hidden = (".", "__MACOSX")
    return {path: sizes[path] for path in sorted(sizes) if not any(part.startswith(hidden) for part in path.split("/"))}


def fingerprint_images(paths: Sequence[str], sizes: Listing, labels: Sequence[object]) -> str:
    """A fingerprint that changes with the images' paths, sizes and labels, but not with where their folder is."""
    rows = (f"{path}\t{sizes[path]}\t{label}" for path, label in zip(paths, labels, strict=True))
    return fingerprint_content("\n".join(rows))
