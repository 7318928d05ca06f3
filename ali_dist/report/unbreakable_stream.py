"""A text stream that training never ends for: closed terminals, readers that went away, letters that a log lacks."""

from __future__ import annotations

from typing import TextIO


class UnbreakableStream:
    """A text stream whose failures are swallowed: after the first one, nothing more is written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None under pythonw and some daemons

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                # Encoded and decoded, so that a Latin-1 log gets a question mark where it lacks a character.
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError):  # broken pipe; closed file
                self._stream = None
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is gone")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "ascii"
