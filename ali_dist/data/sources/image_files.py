"""Which files of a folder or a zip are images, and which are left out, and why."""

from __future__ import annotations

import functools
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ali_dist.data.shards.sample import NamedCounts
from ali_dist.data.sources.base import fingerprint_content
from ali_dist.errors import InputError
from ali_dist.names import printable_name
from ali_dist.storage.local import list_files

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
BROKEN, LOOPING, UNREADABLE = "broken link", "link to a folder around it", "unreadable"
ESCAPING, REPEATED = "outside of the zip", "of a name that comes twice"
_DRIVE = re.compile(r"^[A-Za-z]:(?=/)")
_SYSTEM_NAMES = {
    *("@eadir", "#recycle", "__macosx", ".thumbnails", ".ipynb_checkpoints", "$recycle.bin", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"),
}


@dataclass(frozen=True, slots=True)
class LeftOutFile:
    """A file that is not read as an image.

    Attributes:
        path: Its path in the folder or zip.
        reason: The word it is counted under: its lower-case extension, or one of the words above.
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


def list_images(root: Path, *, skip_bad: bool = False) -> ImageListing:
    """List the images of a folder, at any depth, or of a zip.

    Links to nothing are left out. So are folders that cannot be read and links that lead in a circle, if bad samples
    are.

    Raises:
        InputError: The zip or the folder, or one below it, cannot be read.
    """
    suffixes = image_suffixes()
    sizes, odd = _list_zip(root) if is_zip_file(root) else _list_folder(root, skip_bad=skip_bad)
    images: Listing = {}
    left_out = [LeftOutFile(path, reason) for path, reason in odd]
    for path, size in sorted(sizes.items()):
        reason = _reason_to_leave_out(path)
        if reason is None and path.lower().endswith(suffixes):
            images[path] = size
        else:
            left_out.append(LeftOutFile(path, reason or _extension(path)))
    return ImageListing(root, images, tuple(sorted(left_out, key=lambda file: file.path)))


def list_folders(root: Path, prefix: str) -> list[str]:
    """The names of the folders directly below a prefix of a folder or zip, but for those of the system; sorted.

    Raises:
        InputError: The folder cannot be read.
    """
    if is_zip_file(root):
        below = [name.removeprefix(prefix) for name in _archive_names(root).folders if name.startswith(prefix)]
        names = {name.split("/", 1)[0] for name in below if "/" in name}
    else:
        try:
            names = {entry.name for entry in os.scandir(root / prefix) if os.path.isdir(entry.path)}
        except OSError as error:
            raise InputError(f"{root / prefix} cannot be read ({str(error.strerror).lower()}).") from error
    return sorted(name for name in names if _reason_to_leave_out(name) is None)


def _list_folder(root: Path, *, skip_bad: bool) -> tuple[Listing, list[tuple[str, str]]]:
    """The files of a folder, and what is no file there with the reason to leave it out."""
    found = list_files(root)
    unreadable = {path: why for path, why in found.unreadable.items() if _reason_to_leave_out(path) is None}
    if unreadable and (not skip_bad or "" in unreadable):
        path, why = next(iter(unreadable.items()))
        below = f"{printable_name(path)} in {root}" if path else f"{root}"
        also = f" (nor can {len(unreadable) - 1} others)" if len(unreadable) > 1 else ""
        leave = ", or leave it out with --skip-bad" if path else ""
        raise InputError(f"{below} cannot be read ({why}){also}: repair it{leave}.")
    reasons = [(found.broken, BROKEN), (found.looping, LOOPING), (found.unreadable, UNREADABLE)]
    return found.sizes, [(path, _reason_to_leave_out(path) or reason) for paths, reason in reasons for path in paths]


def _list_zip(root: Path) -> tuple[Listing, list[tuple[str, str]]]:
    """The files of a zip, and the members that are none with the reason to leave them out."""
    names = _archive_names(root)
    return {path: info.file_size for path, info in names.files.items()}, names.left_out


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
        return _open_archive(root).read(_archive_names(root).files[path])
    except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"it cannot be read ({error})") from error  # RuntimeError: it is encrypted


def is_zip_file(root: Path) -> bool:
    """Whether a root of images is an archive; folders may be called anything."""
    return root.suffix.lower() == ".zip" and root.is_file()


@functools.lru_cache(maxsize=2)
def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip and keep it open for the process: a list of 200,000 names takes a second to read."""
    return zipfile.ZipFile(path)


class _ArchiveNames(NamedTuple):
    files: dict[str, zipfile.ZipInfo]  # by path with slashes, as below a folder
    folders: list[str]  # the paths of all members, folders too, with a slash at the end of the latter
    left_out: list[tuple[str, str]]  # what has no place below a folder, and the reason


@functools.lru_cache(maxsize=2)
def _archive_names(root: Path) -> _ArchiveNames:
    """The members of a zip by paths as they are unpacked: older Windows tools write backslashes, others a root.

    Raises:
        InputError: It cannot be read.
    """
    try:
        members = _open_archive(root).infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{root} cannot be read as a zip ({error}): download it again.") from error
    names = _ArchiveNames({}, [], [])
    for info in members:
        path = _DRIVE.sub("", info.filename.replace("\\", "/"))
        parts = [part for part in path.split("/") if part not in ("", ".")]
        clean = "/".join(parts)
        if ".." in parts:
            names.left_out.append((info.filename, ESCAPING))
        elif path.endswith("/"):
            names.folders.append(f"{clean}/")
        elif parts:
            if earlier := names.files.get(clean):  # unpacking replaces it
                names.left_out.append((earlier.filename, REPEATED))
            names.files[clean] = info
            names.folders.append(clean)
    return names


def fingerprint_images(paths: Sequence[str], sizes: Listing, labels: Sequence[object]) -> str:
    """A fingerprint that changes with the images' paths, sizes and labels, but not with where their folder is."""
    rows = (f"{path}\t{sizes[path]}\t{label}" for path, label in zip(paths, labels, strict=True))
    return fingerprint_content("\n".join(rows))


def name_some(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, in a form that any terminal can show, and how many there are beside them."""
    shown = ", ".join(map(printable_name, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
