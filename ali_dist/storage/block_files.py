"""Blocks of remote objects as files of a local folder: bounded, checked, and shared by any number of processes.

A file is a block followed by its crc32. It is written under another name and renamed, so that it is seen whole or not
at all; nothing is flushed to disk, because what a power cut damages is noticed by the crc32 and fetched again. There
are no locks between processes: two that write the same block write equal files, and the later one replaces the other.

The least recently used blocks go first. A read renews the time of its file, which all processes see. A process knows
how much there is from a look at the folder, and looks again whenever it has written a 256th of the bound; so that
several may do this at once, each makes room from 31/32 of the bound on.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FOLDER = "ali-dist-blocks"  # below the folder that the user names, which may hold other things
_PARTIAL = ".partial-"
_CRC_BYTES = 4
_ABANDONED_SECONDS = 3600.0  # after which a file that is being written is one whose writer was killed


class BlockFiles:
    """The blocks in one folder; nothing here raises because of the disk. Safe to use from several threads.

    Args:
        folder: The folder that the user names; it need not exist.
        limit_bytes: The most that all files of it may occupy.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.damaged = 0  # files that did not verify, and were dropped
        self.is_writable = True
        self._folder = folder / _FOLDER
        self._most = limit_bytes - limit_bytes // 32
        self._look_after = limit_bytes // 256
        self._lock = threading.Lock()
        self._seen: int | None = None  # bytes at the last look
        self._written = 0  # since then, by this process
        self._pending = 0  # of these, by threads that are not done yet

    def read(self, name: str, size: int) -> memoryview | None:
        """The block of that name, which has `size` bytes; None if it is not here, or damaged and therefore dropped."""
        path = self._path(name)
        try:
            content = _read_regular_file(path, size + _CRC_BYTES)
        except OSError:
            return None  # not there, or not readable: both are fetched
        block = memoryview(content)[:size]
        if len(content) != size + _CRC_BYTES or content[size:] != _checksum(block):
            self.damaged += 1
            _LOG.warning("%s is damaged, so its block is fetched again (damaged so far: %d)", path, self.damaged)
            self.drop(name)
            return None
        with suppress(OSError):
            os.utime(path)
        return block

    def write(self, name: str, block: memoryview) -> None:
        """Keep a block. Where that cannot be done, it is said once, and no further block is kept by this process."""
        size = len(block) + _CRC_BYTES
        if not self.is_writable:
            return
        path = self._path(name)
        partial = path.parent / f"{_PARTIAL}{secrets.token_hex(8)}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            with self._room_for(size), partial.open("xb") as file:
                file.write(block)
                file.write(_checksum(block))
                file.flush()
                partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if self.is_writable:
                self.is_writable = False
                _LOG.warning(
                    "Nothing more is kept in data.cache_dir %s (%s); what it lacks is read from storage every time",
                    *(self._folder.parent, (error.strerror or str(error)).lower()),
                )

    def drop(self, name: str) -> bool:
        """Remove a block; returns whether it was there."""
        try:
            self._path(name).unlink()
        except OSError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Let the least recently used blocks make room for `size` bytes, which are written in the block."""
        if size > self._most:
            raise OSError(errno.ENOSPC, "data.cache_gb is less than one block")
        with self._lock:
            self._pending += size
            self._written += size
            if self._seen is None or self._written > self._look_after or self._seen + self._written > self._most:
                self._seen = self._evict(self._most - self._pending)
                self._written = self._pending
        try:
            yield
        finally:
            with self._lock:
                self._pending -= size

    def _evict(self, most: int) -> int:
        """If files have more than `most` bytes, remove those that were not used for longest; returns what is left.

        A little more than necessary is removed, so that the next look is not due at once.
        """
        files = sorted(self._look())
        total = sum(size for _, size, _ in files)
        if total <= most:
            return total
        for _, size, path in files:
            if total <= most - self._look_after:
                break
            with suppress(OSError):  # another process has just removed it, too
                os.unlink(path)
            total -= size
        return total

    def _look(self) -> Iterator[tuple[int, int, str]]:
        """Time of the last use, size and path of every file; what killed writers have left behind is removed."""
        abandoned = time.time() - _ABANDONED_SECONDS
        for folder in _scan(self._folder):
            for entry in _scan(folder.path):
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(_PARTIAL) and status.st_mtime < abandoned:
                        os.unlink(entry.path)
                    elif stat.S_ISREG(status.st_mode):
                        yield status.st_mtime_ns, status.st_size, entry.path


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _read_regular_file(path: Path, most: int) -> bytes:
    """The content of a file, or one byte more than `most` of it; neither a pipe nor a link in its place is opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return file.read(most + 1)


def _checksum(block: memoryview) -> bytes:
    return zlib.crc32(block).to_bytes(_CRC_BYTES, "little")
