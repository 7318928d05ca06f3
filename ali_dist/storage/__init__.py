"""Where data and results lie: `open_store` finds the backend of a url by its scheme, and all backends behave alike.

A new backend is a module beside `local.py` and `s3.py` and a row in `OPENERS`; it has to pass the contract tests of
stores (`tests/unit/storage/test_stores.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ali_dist.errors import InputError
from ali_dist.storage.base import Store
from ali_dist.storage.local import LocalStore

__all__ = ["OPENERS", "Store", "is_local", "open_store"]


def _open_folder(url: str, *, endpoint_url: str | None, timeout_seconds: float, attempts: int) -> Store:
    del endpoint_url, timeout_seconds, attempts
    return LocalStore(Path(os.path.abspath(os.path.expanduser(url))))


def _open_s3(url: str, *, endpoint_url: str | None, timeout_seconds: float, attempts: int) -> Store:
    from ali_dist.storage.s3 import S3Store

    return S3Store.from_url(url, endpoint_url=endpoint_url, timeout_seconds=timeout_seconds, attempts=attempts)


OPENERS: dict[str, Callable[..., Store]] = {"": _open_folder, "s3": _open_s3}
"""How to open a url, by its scheme; a path has none."""


def scheme_of(url: str) -> str:
    """The scheme of a url, such as `s3`; empty for a path."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator else ""


def is_local(url: str) -> bool:
    """Whether a url names a folder of this machine (or one that it mounts), and not an object store."""
    return scheme_of(url) == ""


def open_store(url: str, *, endpoint_url: str | None = None, timeout_seconds: float = 20.0, attempts: int = 6) -> Store:
    """Open a store; nothing is created or contacted yet.

    Args:
        url: A folder, or `s3://bucket` or `s3://bucket/prefix`.
        endpoint_url: S3 endpoint; default AWS_ENDPOINT_URL_S3, then AWS_ENDPOINT_URL, then AWS itself.
        timeout_seconds: Longest silence of one S3 request.
        attempts: Tries of one S3 request.

    Raises:
        InputError: The url is empty, has no bucket name, a malformed endpoint, or a scheme that no backend serves.
    """
    opener = OPENERS.get(scheme_of(url))
    if opener is None or not url or url.startswith("s3:/") != url.startswith("s3://"):
        raise InputError(f"{url!r} is not a place for data: give a folder or s3://bucket/prefix.")
    return opener(url, endpoint_url=endpoint_url, timeout_seconds=timeout_seconds, attempts=attempts)
