"""What a store is: whole objects and byte ranges by key, behind one small protocol, and the errors all stores raise.

Keys are relative, '/'-separated paths below a store's url. A put is atomic: readers see the old object or the
new one, never half of one. A read returns exactly the bytes asked for or raises; nothing is cut short silently.
Stores are immutable, picklable and safe to use from threads and after a fork.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How an object store is reached; a folder has no use for it. Credentials are never in here.

    Attributes:
        endpoint_url: Address of the server; None is the backend's usual one.
        timeout_seconds: Connect timeout, and longest silence of a connection.
        attempts: Most tries of one request.
        anonymous: Whether requests are sent without a signature, as public data allow.
        region: Region of the bucket; None: as the environment says.
        addressing: Where the bucket's name stands, in the path or the host name; `auto` as the endpoint needs it.
        request_payer: Whether the requester agrees to pay for the requests.
    """

    endpoint_url: str | None = None
    timeout_seconds: float = 20.0
    attempts: int = 6
    anonymous: bool = False
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    request_payer: bool = False


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: its key below the store's url, its size in bytes, and a tag that changes with its content."""

    key: str
    size: int
    etag: str


Listing = list[ObjectInfo]  # a name of its own, because `list` is also a method of stores


class MissingObject(InputError):  # noqa: N818  (it reads better where it is caught)
    """There is no object of this key."""


class ChangedObject(InputError):  # noqa: N818
    """The object was replaced while it was in use."""


class Store(Protocol):
    """Objects by key. Every method raises `InputError` on a malformed key and `StorageError` when storage fails."""

    @property
    def url(self) -> str:
        """Where the store is, as `open_store` takes it and messages show it: an absolute folder, or s3://bucket/prefix."""

    def list(self, prefix: str = "") -> Listing:
        """All objects, at any depth, whose key starts with the text `prefix`; sorted by key."""

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and etag of an object; None where there is none."""

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            MissingObject: There is no such object.
        """

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """Exactly `length` bytes from byte `start` on.

        Raises:
            MissingObject: There is no such object.
            ChangedObject: The object is not the one of `etag`, or was replaced during the read.
            InputError: The object ends before `start + length`.
        """

    def put(self, key: str, data: bytes | Path) -> None:
        """Store `data`, or the content of the file at that Path, atomically; an older object is replaced."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; keys that are not there are passed over."""

    def child(self, prefix: str) -> Store:
        """The same store, one or more folders down."""


def clean_key(key: str, where: str, *, partial: bool = False) -> str:
    """Return `key` if it is a relative path that stays below its store, or may begin one.

    Args:
        key: The key that a caller gave.
        where: The store's url, for the message.
        partial: Whether `key` need only be the beginning of a path, as in a listing.

    Raises:
        InputError: The key is empty or absolute, or has an empty, '.' or '..' part or a NUL character.
    """
    whole = f"{key}x" if partial else key
    if "\0" in key or any(part in ("", ".", "..") for part in whole.split("/")):
        raise InputError(f"{key!r} is not a path below {where}: give a relative path without empty, '.' or '..' parts.")
    return key


def check_range(start: int, length: int) -> None:
    """Refuse a byte range that cannot exist.

    Raises:
        ValueError: The start or the length is negative.
    """
    if start < 0 or length < 0:
        raise ValueError(f"A byte range has start {start} and length {length}, but neither may be negative.")


def not_found_error(url: str, key: str) -> MissingObject:
    """The error for a key that is not there."""
    return MissingObject(f"There is no {key!r} in {url}: check the path, or write the data again.")


def changed_error(url: str, key: str) -> ChangedObject:
    """The error for an object that is not the one it was."""
    return ChangedObject(
        f"{key!r} in {url} was replaced while it was in use: start again, and leave data alone while it is being read."
    )


def truncated_error(url: str, key: str, size: int | None, stop: int) -> InputError:
    """The error for a range that reaches beyond the object's last byte."""
    holds = "ends early" if size is None else f"has {size} bytes"
    return InputError(
        f"{key!r} in {url} {holds}, but its first {stop} bytes are needed: it was cut short or is not the file its "
        f"index describes, so copy or prepare it again."
    )


def open_source(data: bytes | Path) -> BinaryIO:
    """Open `data` for reading, whether it is bytes or a file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        return data.open("rb") if isinstance(data, Path) else io.BytesIO(data)
    except OSError as error:
        raise InputError(f"{data!s} cannot be read ({error.strerror}): give a file that exists.") from error
