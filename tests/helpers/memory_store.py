"""A store in the memory of this process: the smallest backend that passes the contract of all stores.

It shows what a new backend takes: a class with the methods of `Store`, an opener, and a row in `OPENERS`. It serves
urls of the form memory://NAME/prefix.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ali_dist.storage.base import (
    Access,
    Listing,
    ObjectInfo,
    changed_error,
    clean_key,
    not_found_error,
    open_source,
    truncated_error,
)

SCHEME = "memory"
_OBJECTS: dict[str, bytes] = {}
"""The content of every object by its url. A dictionary replaces a value as a whole, so a put is atomic."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryStore:
    """The objects below a url. A pickled store finds them again in the same process only."""

    url: str

    def list(self, prefix: str = "") -> Listing:
        start = f"{self.url}/{clean_key(prefix, self.url, partial=True)}"
        urls = sorted(url for url in list(_OBJECTS) if url.startswith(start))
        return [_object_info(url.removeprefix(f"{self.url}/"), _OBJECTS[url]) for url in urls]

    def stat(self, key: str) -> ObjectInfo | None:
        content = _OBJECTS.get(self._url_of(key))
        return None if content is None else _object_info(key, content)

    def get(self, key: str) -> bytes:
        try:
            return _OBJECTS[self._url_of(key)]
        except KeyError as error:
            raise not_found_error(self.url, key) from error

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        content = self.get(key)
        if etag not in (None, _object_info(key, content).etag):
            raise changed_error(self.url, key)
        if start + length > len(content):
            raise truncated_error(self.url, key, len(content), start + length)
        return content[start : start + length]

    def put(self, key: str, data: bytes | Path) -> None:
        with open_source(data) as source:
            _OBJECTS[self._url_of(key)] = source.read()

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            _OBJECTS.pop(self._url_of(key), None)

    def child(self, prefix: str) -> MemoryStore:
        return MemoryStore(self._url_of(prefix.rstrip("/")))

    def _url_of(self, key: str) -> str:
        return f"{self.url}/{clean_key(key, self.url)}"


def _object_info(key: str, content: bytes) -> ObjectInfo:
    return ObjectInfo(key, len(content), hashlib.sha256(content).hexdigest())


def open_memory(url: str, access: Access) -> MemoryStore:
    """The opener that goes into `OPENERS` under `SCHEME`; there is no server to reach."""
    del access
    return MemoryStore(url.rstrip("/"))
