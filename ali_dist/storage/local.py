"""Objects in a local folder, written so that a crash at any moment leaves the old object or the new one."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ali_dist.errors import InputError, StorageError
from ali_dist.storage.base import (
    Listing,
    MissingObject,
    ObjectInfo,
    changed_error,
    check_range,
    clean_key,
    not_found_error,
    open_source,
    truncated_error,
)

TEMPORARY = ".ali-dist-partial-"  # how the name of a file begins while it is being written
_PUT_TRIES = 100
# These the user can put right; the others (a full or failing disk) are the machine's.
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_USER_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder. It need not exist before the first put; links to files and folders below it are followed.

    A put writes a temporary file beside its target, flushes it to disk and renames it. The temporary
    file that a killed put leaves behind is never listed, and is removed with the last object of its folder.
    """

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def list(self, prefix: str = "") -> Listing:
        folder = clean_key(prefix, self.url, partial=True).rpartition("/")[0]
        objects = []
        with self._explain_read_errors(folder):
            if self.root.exists() and not self.root.is_dir():
                raise _not_a_folder(self.root)
            for key, status in _walk_folder(str(self.root / folder), f"{folder}/" if folder else "", frozenset()):
                if isinstance(status, OSError):
                    raise _os_error("read", self.root / key, status) from status
                if isinstance(status, os.stat_result) and key.startswith(prefix):
                    objects.append(_object_info(key, status))
        return sorted(objects, key=lambda info: info.key)

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with suppress(MissingObject), self._explain_read_errors(key):
            return None if path.is_dir() else _object_info(key, path.stat())
        return None

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._explain_read_errors(key):
            return path.read_bytes()

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        check_range(start, length)
        path = self._path(key)
        with self._explain_read_errors(key), path.open("rb") as file:
            info = _object_info(key, os.fstat(file.fileno()))
            if etag is not None and info.etag != etag:
                raise changed_error(self.url, key)
            file.seek(start)
            data = file.read(min(length, info.size))
        if len(data) < length or start > info.size:
            raise truncated_error(self.url, key, info.size, start + length)
        return data

    def put(self, key: str, data: bytes | Path) -> None:
        path = self._path(key)
        with open_source(data) as source, _explain_write_errors(path):
            for _ in range(_PUT_TRIES):
                with suppress(FileNotFoundError, FileExistsError):  # a delete has just removed the folder as empty
                    return _replace_file(path, source)
            return _replace_file(path, source)

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            with _explain_write_errors(path), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
                folders.add(path.parent)
        for folder in folders:
            self._remove_empty_folders(folder)

    def child(self, prefix: str) -> LocalStore:
        return LocalStore(self.root / clean_key(prefix.rstrip("/"), self.url))

    def _path(self, key: str) -> Path:
        name = clean_key(key, self.url)
        if name.rpartition("/")[2].startswith(TEMPORARY):
            raise InputError(f"{key!r} is a name kept for unfinished files in {self.url}: choose another one.")
        return self.root / name

    def _remove_empty_folders(self, folder: Path) -> None:
        """Remove folders without objects, upwards to the root; a put that is writing there starts its file again."""
        while folder != self.root and self.root in folder.parents:
            with suppress(OSError):  # it is not empty, or is gone already: both are fine
                names = os.listdir(folder)
                if all(name.startswith(TEMPORARY) for name in names):
                    for name in names:
                        (folder / name).unlink(missing_ok=True)
                    folder.rmdir()
            folder = folder.parent

    @contextmanager
    def _explain_read_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise not_found_error(self.url, key) from error
        except OSError as error:
            raise _os_error("read", self.root / key, error) from error


def _object_info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, etag=f"{status.st_mtime_ns:x}-{status.st_size:x}")


class FolderFiles(NamedTuple):
    """What lies below a folder; keys are paths relative to it.

    Attributes:
        sizes: Bytes of every file, links to files included.
        broken: Links to what is not there.
        looping: Links to a folder that they lie in, which are not followed.
        unreadable: Folders that cannot be read and links that lead in a circle, each with the reason.
    """

    sizes: dict[str, int]
    broken: list[str]
    looping: list[str]
    unreadable: dict[str, str]


def list_files(folder: Path) -> FolderFiles:
    """List all that lies below a folder, also what cannot be read.

    Raises:
        InputError: The folder itself is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise _not_a_folder(folder)
    found = FolderFiles({}, [], [], {})
    for entry in _walk_folder(str(folder), "", frozenset()):
        if isinstance(entry.status, os.stat_result):
            found.sizes[entry.key] = entry.status.st_size
        elif isinstance(entry.status, OSError):
            found.unreadable[entry.key] = (entry.status.strerror or str(entry.status)).lower()
        elif entry.status == _BROKEN:
            found.broken.append(entry.key)
        else:
            found.looping.append(entry.key)
    return found


_BROKEN, _LOOPING = "broken", "looping"


class _Entry(NamedTuple):
    key: str
    status: os.stat_result | OSError | str  # of a file; why it cannot be read; or _BROKEN or _LOOPING, of a link


def _walk_folder(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[_Entry]:
    """Yield every file below `folder`, and what cannot be followed; keys are prefix + relative path."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield _Entry(prefix.removesuffix("/"), error)
        return
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        yield _Entry(prefix.removesuffix("/"), _LOOPING)
        return
    for entry in entries:
        key = prefix + entry.name
        try:
            if entry.is_dir():
                yield from _walk_folder(entry.path, f"{key}/", above | {identity})
            elif entry.is_file():
                if not entry.name.startswith(TEMPORARY):
                    yield _Entry(key, entry.stat())
            elif entry.is_symlink() and not os.path.exists(entry.path):
                yield _Entry(key, _BROKEN)
        except FileNotFoundError:
            continue  # deleted since the scan
        except OSError as error:
            yield _Entry(key, error)


def _not_a_folder(path: Path) -> InputError:
    return InputError(f"{path} is a file, but a folder is needed: give the folder that holds it.")


@contextmanager
def _explain_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _os_error("written", path, error) from error


def _os_error(action: str, path: Path, error: OSError) -> Exception:
    """The error for a file that could not be `action` (read, written): the user's, or the storage's."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _USER_ERRNOS:
        return InputError(f"{path} cannot be {action} ({reason}): check its permissions, or choose another folder.")
    remedy = "; free some space and run the same command again" if error.errno in _FULL_ERRNOS else ""
    return StorageError(f"{path} cannot be {action}: {reason}{remedy}.")


def write_file(path: Path, content: bytes) -> None:
    """Write a file that a person has named: in one step, so that what was there before stays whole until then.

    What is no file, such as a pipe or /dev/stdout, is written to directly.

    Raises:
        InputError: It cannot be written there.
        StorageError: It could not be written, as on a full disk.
    """
    with _explain_write_errors(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(content)
        else:
            _replace_file(path, io.BytesIO(content))


def _replace_file(path: Path, source: BinaryIO) -> None:
    """Replace the content of `path` by that of `source`; a crash at any moment leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    source.seek(0)
    try:
        with temporary.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the rename itself survives a power cut
    finally:
        os.close(folder)
