"""Whole objects and byte ranges by key, from a local folder or an S3 bucket, behind one small protocol.

Keys are relative, '/'-separated paths below a store's url. A put is atomic: readers see the old object or the
new one, never half of one. A read returns exactly the bytes asked for or raises; nothing is cut short silently.
Stores are immutable, picklable and safe to use from threads and after a fork.
"""

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
from typing import BinaryIO, Protocol

from ali_dist.errors import InputError, StorageError

TEMPORARY = ".ali-dist-partial-"  # file name prefix of a put under way
_PUT_TRIES = 100
# What the user can put right: the rest (full disk, failing disk) is the machine's.
_USER_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: its key below the store's url, its bytes, and a tag that changes with its content."""

    key: str
    size: int
    etag: str


Listing = list[ObjectInfo]  # a name of its own, because `list` is also a method of stores


class MissingObject(InputError):  # noqa: N818  (reads better at the place it is caught)
    """There is no object of this key."""


class ChangedObject(InputError):  # noqa: N818
    """The object was replaced while it was in use."""


class Store(Protocol):
    """Objects by key. Every method raises `InputError` on a malformed key and `StorageError` when storage fails."""

    @property
    def url(self) -> str:
        """Where this is, for messages and for `open_store`: an absolute folder, or s3://bucket/prefix."""

    def list(self, prefix: str = "") -> Listing:
        """All objects, at any depth, whose key starts with the text `prefix`; sorted by key."""

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and etag of an object; None where there is none."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises `MissingObject`."""

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """Exactly `length` bytes from byte `start` on.

        Raises:
            MissingObject: there is no such object. InputError: it ends before `start + length`.
            ChangedObject: it is not the one of `etag`, or was replaced during the read.
        """

    def put(self, key: str, data: bytes | Path) -> None:
        """Store `data`, or the content of the file at that Path, atomically; an older object is replaced."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; absent ones are fine."""

    def child(self, prefix: str) -> Store:
        """The same store, one or more folders down."""


def clean_key(key: str, where: str, *, partial: bool = False) -> str:
    """`key` if it is a relative path that stays below its store; with `partial`, if it can begin such a path.

    Raises:
        InputError: empty, absolute, or with an empty, '.' or '..' part or a NUL character.
    """
    whole = f"{key}x" if partial else key
    if "\0" in key or any(part in ("", ".", "..") for part in whole.split("/")):
        raise InputError(f"{key!r} is not a path below {where}: give a relative path without empty, '.' or '..' parts.")
    return key


def missing(url: str, key: str) -> MissingObject:
    """The error for a key that is not there."""
    return MissingObject(f"There is no {key!r} in {url}: check the path, or write the data again.")


def changed(url: str, key: str) -> ChangedObject:
    """The error for an object that is not the one it was."""
    return ChangedObject(
        f"{key!r} in {url} was replaced while it was in use: start again, and leave data alone while it is being read."
    )


def too_short(url: str, key: str, size: int | None, stop: int) -> InputError:
    """The error for a range that reaches beyond the object's last byte."""
    holds = "ends early" if size is None else f"has {size} bytes"
    return InputError(
        f"{key!r} in {url} {holds}, but its first {stop} bytes are needed: it was cut short or is not the file its "
        f"index describes, so copy or prepare it again."
    )


def open_store(url: str, *, endpoint_url: str | None = None, timeout_seconds: float = 20.0, attempts: int = 6) -> Store:
    """Open a store; nothing is created or contacted yet.

    Args:
        url: a folder, or `s3://bucket` or `s3://bucket/prefix`.
        endpoint_url: S3 endpoint; default AWS_ENDPOINT_URL_S3, then AWS_ENDPOINT_URL, then AWS itself.
        timeout_seconds, attempts: longest silence and tries of one S3 request.

    Raises:
        InputError: empty url, no bucket name, malformed endpoint, or a scheme other than s3.
    """
    if url.startswith("s3://"):
        from ali_dist.data.s3 import S3Store

        return S3Store.from_url(url, endpoint_url=endpoint_url, timeout_seconds=timeout_seconds, attempts=attempts)
    if not url or "://" in url or url.startswith("s3:"):
        raise InputError(f"{url!r} is not a place for data: give a folder or s3://bucket/prefix.")
    return LocalStore(Path(os.path.abspath(os.path.expanduser(url))))


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder. It need not exist before the first put; links to files and folders below it are followed.

    A put writes a temporary file beside its target, flushes it to disk and renames it. What a killed put leaves
    behind is never listed, and goes with the last object of its folder.
    """

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def list(self, prefix: str = "") -> Listing:
        folder = clean_key(prefix, self.url, partial=True).rpartition("/")[0]
        with self._reading(folder):
            if self.root.exists() and not self.root.is_dir():
                raise InputError(f"{self.url} is a file, but a folder is needed: give the folder that holds it.")
            found = [
                _info(key, status)
                for key, status in _walk(str(self.root / folder), f"{folder}/" if folder else "", frozenset())
                if key.startswith(prefix)
            ]
        return sorted(found, key=lambda info: info.key)

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with suppress(MissingObject), self._reading(key):
            return None if path.is_dir() else _info(key, path.stat())
        return None

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._reading(key):
            return path.read_bytes()

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        assert start >= 0 <= length, (start, length)
        path = self._path(key)
        with self._reading(key), path.open("rb") as file:
            info = _info(key, os.fstat(file.fileno()))
            if etag is not None and info.etag != etag:
                raise changed(self.url, key)
            file.seek(start)
            data = file.read(min(length, info.size))
        if len(data) < length or start > info.size:
            raise too_short(self.url, key, info.size, start + length)
        return data

    def put(self, key: str, data: bytes | Path) -> None:
        path = self._path(key)
        with open_source(data) as source, _writing(path):
            for _ in range(_PUT_TRIES):
                with suppress(FileNotFoundError, FileExistsError):  # a delete took the folder away as empty meanwhile
                    return _replace(path, source)
            return _replace(path, source)

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            with _writing(path), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
                folders.add(path.parent)
        for folder in folders:
            self._drop_empty(folder)

    def child(self, prefix: str) -> LocalStore:
        return LocalStore(self.root / clean_key(prefix.rstrip("/"), self.url))

    def _path(self, key: str) -> Path:
        name = clean_key(key, self.url)
        if name.rpartition("/")[2].startswith(TEMPORARY):
            raise InputError(f"{key!r} is a name kept for unfinished files in {self.url}: choose another one.")
        return self.root / name

    def _drop_empty(self, folder: Path) -> None:
        """Remove folders without objects, upwards to the root (a put under way there starts its file again)."""
        while folder != self.root and self.root in folder.parents:
            with suppress(OSError):  # not empty, or gone already: both are fine
                names = os.listdir(folder)
                if all(name.startswith(TEMPORARY) for name in names):
                    for name in names:
                        (folder / name).unlink(missing_ok=True)
                    folder.rmdir()
            folder = folder.parent

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise missing(self.url, key) from error
        except OSError as error:
            raise _explain("read", self.root / key, error) from error


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, etag=f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below `folder` as (prefix + relative path, status); a link back to a folder above is not followed."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    here = (status.st_dev, status.st_ino)
    for entry in entries if here not in above else ():
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file() and not entry.name.startswith(TEMPORARY):
            with suppress(FileNotFoundError):  # deleted since the scan
                yield prefix + entry.name, entry.stat()


def open_source(data: bytes | Path) -> BinaryIO:
    """`data` as an open file."""
    try:
        return data.open("rb") if isinstance(data, Path) else io.BytesIO(data)
    except OSError as error:
        raise InputError(f"{data!s} cannot be read ({error.strerror}): give a file that exists.") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explain("written", path, error) from error


def _explain(done: str, path: Path, error: OSError) -> Exception:
    reason = (error.strerror or str(error)).lower()
    if error.errno in _USER_ERRNOS:
        return InputError(f"{path} cannot be {done} ({reason}): check its permissions, or choose another folder.")
    return StorageError(f"{path} cannot be {done}: {reason}.")


def _replace(path: Path, source: BinaryIO) -> None:
    """Give `path` the content of `source`, so that a crash at any moment leaves the old or the new file."""
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
        os.fsync(folder)  # the rename itself must outlive a power cut
    finally:
        os.close(folder)
