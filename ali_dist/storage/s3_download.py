"""One object, or a range of it, from S3: what breaks on the way is asked for again from where it broke.

An etag pins the content. A weak etag (W/"...") never matches an If-Match, by the standard of HTTP, so that condition is
sent with strong ones only, and in either case the reply's own etag is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ali_dist.errors import StorageError
from ali_dist.storage.base import changed_error, truncated_error
from ali_dist.storage.s3_errors import reply_status

_CHUNK_BYTES = 256 * 1024  # most that a broken connection can make us read twice
_LEAST_BYTES_PER_SECOND = 10_000  # a body that comes more slowly is as good as a silent one
_WEAK = "W/"


def clean_tag(raw: str | None) -> str:
    """An etag without its quotes; a weak one still begins with W/. Empty where a server gives none."""
    return (raw or "").replace('"', "").strip()


def is_same_content(tag: str, other: str) -> bool:
    """Whether two clean etags stand for the same content, be they weak or strong; a missing one contradicts nothing."""
    return "" in (tag, other) or tag.removeprefix(_WEAK) == other.removeprefix(_WEAK)


@dataclass
class Download:
    """A download; called again after a break, it continues where it was.

    Attributes:
        url: The store, as messages show it.
        key: The key in it.
        bucket: The bucket.
        name: The object's name there.
        position: The next byte that is needed.
        stop: Where the wanted bytes end; None: at the end of the object.
        etag: Clean etag of the content that is wanted; None: whatever there is.
        patience_seconds: Over how long a time the body must come at 10,000 bytes a second on average.
    """

    url: str
    key: str
    bucket: str
    name: str
    position: int = 0
    stop: int | None = None
    etag: str | None = None
    patience_seconds: float = 20.0
    _chunks: list[bytes] = field(default_factory=list)
    _is_conditional: bool = True

    def __post_init__(self) -> None:
        self._asked = (self.position, self.stop)

    def __call__(self, client: Any) -> bytes:
        """Read what is missing and return all of it.

        Raises:
            ConnectionError: The answer broke off, comes too slowly or contradicts itself; call again.
            ChangedObject, StorageError, InputError: Calling again would not help.
        """
        reply = self._ask(client)
        body = reply["Body"]
        try:  # not `with body`, which hands out the raw stream without boto3's own checks
            self._check_reply(reply)
            read = _reader_of(body)
            since, arrived = time.monotonic(), 0
            while self.stop is None or self.position < self.stop:
                wanted = _CHUNK_BYTES if self.stop is None else min(_CHUNK_BYTES, self.stop - self.position)
                chunk = read(wanted)
                if not chunk and self.stop is None:  # a reply without a length ends where it ends
                    break
                if not chunk:
                    raise ConnectionError(f"the answer ended at byte {self.position} instead of {self.stop}")
                self._chunks.append(chunk)
                self.position += len(chunk)
                arrived += len(chunk)
                seconds = time.monotonic() - since
                if seconds >= self.patience_seconds:
                    self._check_speed(arrived / seconds)
                    since, arrived = time.monotonic(), 0
        except BaseException:
            if self.stop is None or not self.etag:  # nothing says where it would go on, or with the same content
                self._begin_again()
            raise
        finally:
            body.close()
        return b"".join(self._chunks)

    def _ask(self, client: Any) -> dict[str, Any]:
        arguments = {"Bucket": self.bucket, "Key": self.name}
        if self.stop is not None:
            arguments["Range"] = f"bytes={self.position}-{self.stop - 1}"
        if self.etag and not self.etag.startswith(_WEAK) and self._is_conditional:
            arguments["IfMatch"] = f'"{self.etag}"'
        try:
            reply: dict[str, Any] = client.get_object(**arguments)
        except client.exceptions.ClientError as error:
            if reply_status(error) == 412 and "IfMatch" in arguments:
                self._is_conditional = False  # the listing may have called strong what is weak: look at the reply
                return self._ask(client)
            if reply_status(error) == 416 and self.stop is not None:
                raise self._too_short(None) from error
            raise
        return reply

    def _check_reply(self, reply: dict[str, Any]) -> None:
        """Take over where the answer ends; an answer of another range, or of a changed object, is refused."""
        etag = clean_tag(reply.get("ETag"))
        if not is_same_content(self.etag or "", etag):
            raise changed_error(self.url, self.key)
        self.etag = self.etag or etag
        length = reply.get("ContentLength")
        if self.stop is None:
            self.stop = None if length is None else int(length)
            return
        sent, _, total = reply.get("ContentRange", "").removeprefix("bytes ").partition("/")
        first, _, last = sent.partition("-")
        if first != str(self.position):
            raise StorageError(f"{self.url} does not answer byte range requests as S3 does, so it cannot be used.")
        if last != str(self.stop - 1):
            raise self._too_short(int(total) if total.isdigit() else None)
        if length not in (None, self.stop - self.position):
            raise ConnectionError(f"an answer of {self.stop - self.position} bytes says that it has {length}")

    def _check_speed(self, bytes_per_second: float) -> None:
        """A server may keep a connection alive with a byte now and then, which no timeout of silence ends."""
        if bytes_per_second < _LEAST_BYTES_PER_SECOND:
            raise ConnectionError(
                f"the answer came at {bytes_per_second:,.0f} bytes a second, where {_LEAST_BYTES_PER_SECOND:,} is the "
                "least that is waited for"
            )

    def _too_short(self, size: int | None) -> Exception:
        """The error for an object that has fewer bytes than are wanted.

        Of a whole object it is the server's own length that was wrong, which may pass.
        """
        if self._asked[1] is not None:
            assert self.stop is not None
            return truncated_error(self.url, self.key, size, self.stop)
        stop = self.stop
        self._begin_again()
        return ConnectionError(f"the answer said that it has {stop} bytes, but it ends before")

    def _begin_again(self) -> None:
        self.position, self.stop = self._asked
        self._chunks.clear()


def _reader_of(body: Any) -> Callable[[int], bytes]:
    """How to read at most so many bytes of a body, returning with what has arrived.

    The body's own `read` returns when all of them have, which at a byte now and then is never.
    """
    stream = getattr(body, "_raw_stream", None)
    return getattr(stream, "read1", None) or body.read  # urllib3 before 2.1 has no read1
