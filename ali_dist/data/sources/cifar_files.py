"""The files of CIFAR-10 and CIFAR-100 as they are downloaded: a folder or an archive of either version."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from ali_dist.data.sources.original_files import first_existing
from ali_dist.errors import InputError


def read_version(
    path: Path, versions: Sequence[str], file_names: Sequence[str], needs: str
) -> tuple[Path, dict[str, bytes]]:
    """Read the files that are there, of whichever version is there.

    Args:
        path: The folder or archive of a version, or a folder that holds one.
        versions: Names of such folders and archives, the most wanted first.
        file_names: Names of the files, of any version.
        needs: What the message says where there is nothing.

    Returns:
        The folder or archive, and the content of those files that it has, by name.

    Raises:
        InputError: There is nothing, or it cannot be read.
    """
    if not path.exists():
        raise InputError(f"There is no {path}: {needs}.")
    version = path if path.is_file() else first_existing([path / name for name in versions]) or path
    return version, _read_archive(version, file_names) if version.is_file() else _read_folder(version, file_names)


def _read_folder(folder: Path, file_names: Sequence[str]) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in file_names if (folder / name).is_file()}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.") from error


def _read_archive(archive: Path, file_names: Sequence[str]) -> dict[str, bytes]:
    content = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in file_names and (file := tar.extractfile(member)) is not None:
                    content[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{archive} cannot be read as an archive ({error}): download it again.") from error
    return content
