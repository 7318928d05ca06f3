"""Image files in a folder or a zip, read and cropped one by one by whoever writes their shard."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ali_dist.data.shards.codec import Sample, channels_first, open_image
from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.writer import LabelledSample
from ali_dist.data.sources.base import SampleNumbers, ShardSamples, fingerprint_content
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FACE = (178, 218)  # width and height of CelebA's aligned faces
Listing = dict[str, int]  # bytes of each file, by its path in the folder or zip; sorted


class ImageCrop(Protocol):
    """Makes a sample of a decoded image."""

    def __call__(self, image: Image) -> Sample:
        """uint8 [C, H, W]; ValueError if the image cannot be used."""


@dataclass(frozen=True, slots=True)
class CentreCrop:
    """The middle square, reduced to `size` pixels a side (smoothed; smaller images are enlarged).

    Attributes:
        size: pixels of a side.
        grey: one channel instead of three.
        upright: turn photographs as their camera noted.
    """

    size: int
    grey: bool = False
    upright: bool = False

    def __call__(self, image: Image) -> Sample:
        from PIL import Image as Images
        from PIL import ImageOps

        whole = ImageOps.exif_transpose(image) if self.upright else image
        side = min(whole.size)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        square = whole.convert("L" if self.grey else "RGB").crop((left, top, left + side, top + side))
        return channels_first(square.resize((self.size, self.size), Images.Resampling.LANCZOS))


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """An aligned CelebA face as the paper uses it: 64 wide and 78 high, of which rows 7 to 70 are kept.

    Source: the data set that the reference code reads.
    """

    def __call__(self, image: Image) -> Sample:
        from PIL import Image as Images

        if image.size != FACE:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels, but aligned and cropped faces have {FACE[0]}x{FACE[1]}"
            )
        return channels_first(image.convert("RGB").resize((64, 78), Images.Resampling.LANCZOS))[:, 7:71]


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """Image files by name, with their labels."""

    root: Path
    names: tuple[str, ...]
    labels: tuple[Label | None, ...]
    crop: ImageCrop

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        return f"{self.names[number]} in {self.root}"

    def read(self, number: int) -> LabelledSample:
        with open_image(self._content(self.names[number]), FORMATS) as image:
            return np.ascontiguousarray(self.crop(image)), self.labels[number]

    def _content(self, name: str) -> bytes:
        if not is_zip_file(self.root):
            try:
                return (self.root / name).read_bytes()
            except OSError as error:
                raise ValueError(f"it cannot be read ({str(error.strerror).lower()})") from error
        try:
            return _open_archive(self.root).read(name)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"it cannot be read ({error})") from error


def is_zip_file(root: Path) -> bool:
    """Whether a root of images is an archive; folders may be called anything."""
    return root.suffix.lower() == ".zip" and root.is_file()


@functools.lru_cache(maxsize=2)
def _open_archive(path: Path) -> zipfile.ZipFile:
    """An open zip, kept for the process: the list of 200,000 names takes a second to read."""
    return zipfile.ZipFile(path)


def samples_from_images(
    root: Path, names: Sequence[str], labels: Sequence[Label | None], crop: ImageCrop
) -> Callable[[SampleNumbers], ShardSamples]:
    """A split's `part`, for image files below `root` with their labels."""

    def part(numbers: SampleNumbers) -> ShardSamples:
        rows = numbers.tolist()
        return ImageSamples(root, tuple(names[row] for row in rows), tuple(labels[row] for row in rows), crop)

    return part


def list_files(root: Path) -> Listing:
    """Every file of a folder, at any depth, or of a zip; hidden ones are left out.

    Raises:
        InputError: it cannot be read.
    """
    if is_zip_file(root):
        try:
            found = {info.filename: info.file_size for info in _open_archive(root).infolist() if not info.is_dir()}
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{root} cannot be read as a zip ({error}): fetch it again.") from error
    else:
        found = {info.key: info.size for info in LocalStore(root).list()}
    hidden = (".", "__MACOSX")
    return {name: found[name] for name in sorted(found) if not any(part.startswith(hidden) for part in name.split("/"))}


def list_inputs(names: Sequence[str], sizes: Listing, labels: Sequence[object]) -> str:
    """Fingerprint of images: it changes with names, bytes and labels, not with where the folder is."""
    rows = (f"{name}\t{sizes[name]}\t{label}" for name, label in zip(names, labels, strict=True))
    return fingerprint_content("\n".join(rows))
