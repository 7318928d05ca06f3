"""Which files of a folder or a zip are images, and which are left out, and why."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ali_dist.data.shards.sample import NamedCounts, printable_name
from ali_dist.data.sources.base import fingerprint_content
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore

Listing = dict[str, int]  # size in bytes of each file, by its path in the folder or zip; sorted

_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
"""How files of each of Pillow's formats are called. What a file is, its content decides."""

SYSTEM, HIDDEN, OUTSIDE = "of the system", "hidden", "outside of the splits"
_SYSTEM_NAMES = {
    *("@eadir", "#recycle", "__macosx", ".thumbnails", ".ipynb_checkpoints", "$recycle.bin", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"),
}


@dataclass(frozen=True, slots=True)
class LeftOutFile:
    """A file that is not read as an image.

    Attributes:
        path: Its path in the folder or zip.
        reason: The word it is counted under: its lower-case extension, or one of SYSTEM, HIDDEN and OUTSIDE.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageListing:
    """The files of a folder or a zip.

    Attributes:
        root: The folder or the zip.
        images: Size of each image file, by its path below `top`; sorted.
        left_out: All other files, by their paths below `root`; sorted.
        top: The one folder that holds all images, with a slash at its end; "" if there is none, or it was not looked
            through.
    """

    root: Path
    images: Listing
    left_out: tuple[LeftOutFile, ...]
    top: str = ""

    def in_root(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Paths below `top` as paths below `root`."""
        return tuple(self.top + path for path in paths)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """The formats that the installed Pillow decodes, as it names them."""
    from PIL import Image as Images
    from PIL import features

    Images.init()
    return tuple(name for name in _SUFFIXES if name in Images.OPEN and (name != "AVIF" or features.check("avif")))


def image_suffixes() -> tuple[str, ...]:
    """The extensions of files that are read as images, in lower case."""
    return tuple(suffix for name in readable_formats() for suffix in _SUFFIXES[name])


def list_images(root: Path) -> ImageListing:
    """List the images of a folder, at any depth, or of a zip.

    Raises:
        InputError: The zip or folder cannot be read.
    """
    suffixes = image_suffixes()
    images: Listing = {}
    left_out = []
    for path, size in sorted(_list_sizes(root).items()):
        reason = _reason_to_leave_out(path)
        if reason is None and path.lower().endswith(suffixes):
            images[path] = size
        else:
            left_out.append(LeftOutFile(path, reason or _extension(path)))
    return ImageListing(root, images, tuple(left_out))


def list_folders(root: Path, prefix: str) -> list[str]:
    """The names of the folders directly below a prefix of a folder or zip, but for those of the system; sorted.

    Raises:
        InputError: The folder cannot be read.
    """
    if is_zip_file(root):
        below = [name.removeprefix(prefix) for name in _open_archive(root).namelist() if name.startswith(prefix)]
        names = {name.split("/", 1)[0] for name in below if "/" in name}
    else:
        try:
            names = {entry.name for entry in os.scandir(root / prefix) if entry.is_dir()}
        except OSError as error:
            raise InputError(f"{root / prefix} cannot be read ({str(error.strerror).lower()}).") from error
    return sorted(name for name in names if _reason_to_leave_out(name) is None)


def _list_sizes(root: Path) -> Listing:
    if not is_zip_file(root):
        return {info.key: info.size for info in LocalStore(root).list()}
    try:
        return {info.filename: info.file_size for info in _open_archive(root).infolist() if not info.is_dir()}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{root} cannot be read as a zip ({error}): download it again.") from error


def _reason_to_leave_out(path: str) -> str | None:
    parts = path.split("/")
    if any(part.lower() in _SYSTEM_NAMES or part.startswith(("._", ".Trash")) for part in parts):
        return SYSTEM
    return HIDDEN if any(part.startswith(".") for part in parts) else None


def _extension(path: str) -> str:
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name else "without extension"


def count_left_out(files: Iterable[LeftOutFile]) -> NamedCounts:
    """Count files by the reason why they were left out."""
    counts = NamedCounts()
    for file in files:
        counts.add(file.reason, file.path)
    return counts


def read_file(root: Path, path: str) -> bytes:
    """Read a file of a folder or a zip.

    Raises:
        ValueError: It cannot be read; the message says why.
    """
    if not is_zip_file(root):
        try:
            return (root / path).read_bytes()
        except OSError as error:
            raise ValueError(f"it cannot be read ({str(error.strerror).lower()})") from error
    try:
        return _open_archive(root).read(path)
    except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"it cannot be read ({error})") from error  # RuntimeError: it is encrypted


def is_zip_file(root: Path) -> bool:
    """Whether a root of images is an archive; folders may be called anything."""
    return root.suffix.lower() == ".zip" and root.is_file()


@functools.lru_cache(maxsize=2)
def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip and keep it open for the process: a list of 200,000 names takes a second to read."""
    return zipfile.ZipFile(path)


def fingerprint_images(paths: Sequence[str], sizes: Listing, labels: Sequence[object]) -> str:
    """A fingerprint that changes with the images' paths, sizes and labels, but not with where their folder is."""
    rows = (f"{path}\t{sizes[path]}\t{label}" for path, label in zip(paths, labels, strict=True))
    return fingerprint_content("\n".join(rows))


def name_some(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, in a form that any terminal can show."""
    return ", ".join([*map(printable_name, names[:most]), *["..."] * (len(names) > most)])
