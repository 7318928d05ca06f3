"""Standard output and error that never end a command: readers may go away, and terminals may lack characters.

`train | head` takes the reader away in the middle, `>&-` leaves no stream at all, and a terminal of the C locale has
ASCII alone. None of that is a reason to stop training, or for a traceback. A full disk is: that is raised, once.
"""

from __future__ import annotations

import codecs
import errno
import io
import sys
from typing import Any, TextIO

_NOBODY_READS = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ESHUTDOWN}  # EIO: the terminal has hung up
_ERRORS = "ali_dist.show_anyway"


class _UnbreakableFile(io.RawIOBase):
    """A raw file that swallows what nobody reads.

    Args:
        file: What is written to; None: nothing is there.
        is_told: Whether other failures, such as a full disk, are raised; there is nowhere to say those of stderr.
    """

    def __init__(self, file: Any, *, is_told: bool) -> None:
        super().__init__()
        self._file = file
        self._is_told = is_told

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._file is None:
            raise OSError(errno.EBADF, "the stream is gone")
        number: int = self._file.fileno()
        return number

    def isatty(self) -> bool:
        return self._file is not None and bool(self._file.isatty())

    def write(self, data: Any) -> int | None:
        if self._file is None:
            return len(data)
        try:
            written: int | None = self._file.write(data)
            return written
        except OSError as error:
            self._file = None  # what is still in a buffer would fail again when Python ends
            if error.errno in _NOBODY_READS or not self._is_told:
                return len(data)
            raise


def protect_streams() -> None:
    """Replace this process's own standard output and error by ones that never break; a test's are left alone."""
    codecs.register_error(_ERRORS, _show_anyway)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _occupy_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protect(sys.stdout, is_told=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protect(sys.stderr, is_told=False)


def _protect(stream: TextIO | None, *, is_told: bool) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    if stream is not None and buffer is None:
        return stream  # somebody's replacement, which knows itself what to do
    file = _UnbreakableFile(getattr(buffer, "raw", buffer), is_told=is_told)
    is_line_buffered = getattr(stream, "line_buffering", True) or getattr(stream, "write_through", False)  # python -u
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding if stream is not None else "ascii",
        errors=_ERRORS,
        line_buffering=is_line_buffered,
    )


def _show_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of a file's name as they are, and escape other characters that the terminal lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is no text
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return character.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1


def _occupy_descriptors() -> None:
    """Put /dev/null where standard streams are closed: else the next file opened would receive what they are given."""
    while True:
        file = open("/dev/null", "r+b", buffering=0)  # noqa: SIM115  (it stays open for as long as the process)
        if file.fileno() > 2:
            file.close()
            return
        _OCCUPANTS.append(file)


_OCCUPANTS: list[Any] = []
