"""Where data and results lie: `open_store` finds the backend of a url by its scheme, and all backends behave alike.

A new backend is a module beside `local.py` and `s3.py` and a row in `OPENERS`. It has to pass the tests that every
store passes (`tests/helpers/store_contract.py`); `tests/helpers/memory_store.py` is a complete, small example.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol

from ali_dist.errors import InputError
from ali_dist.storage.base import Access, Store
from ali_dist.storage.local import LocalStore

__all__ = ["OPENERS", "Access", "Store", "StoreOpener", "is_local", "open_store", "scheme_of"]


class StoreOpener(Protocol):
    """Makes the store of a url without contacting anything; a backend ignores what it has no use for."""

    def __call__(self, url: str, access: Access) -> Store: ...


def _open_folder(url: str, access: Access) -> Store:
    del access
    return LocalStore(Path(os.path.abspath(os.path.expanduser(url))))


def _open_s3(url: str, access: Access) -> Store:
    from ali_dist.storage.s3 import S3Store

    return S3Store.from_url(url, access)


OPENERS: dict[str, StoreOpener] = {"": _open_folder, "s3": _open_s3}
"""How to open a url, by its scheme; a path has none."""


def scheme_of(url: str) -> str:
    """The scheme of a url, such as `s3`; empty for a path."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator else ""


def is_local(url: str) -> bool:
    """Whether a url names a folder of this machine (or one that it mounts), and not an object store."""
    return scheme_of(url) == ""


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    timeout_seconds: float = 20.0,
    attempts: int = 6,
    anonymous: bool = False,
    region: str | None = None,
    addressing: Literal["auto", "path", "virtual"] = "auto",
    request_payer: bool = False,
) -> Store:
    """Open a store; nothing is created or contacted yet.

    Args:
        url: A folder, or `s3://bucket` or `s3://bucket/prefix`.
        endpoint_url: S3 endpoint; by default AWS_ENDPOINT_URL_S3, then AWS_ENDPOINT_URL, then AWS itself.
        timeout_seconds: Longest silence of one S3 request.
        attempts: Tries of one S3 request.
        anonymous: Whether requests are unsigned; this and the others are those of `Access`.
        region: Region of the bucket.
        addressing: Where the bucket's name stands in addresses.
        request_payer: Whether the requester pays.

    Raises:
        InputError: The url is empty, has no bucket name, a malformed endpoint, or a scheme that no backend serves.
    """
    opener = OPENERS.get(scheme_of(url))
    if opener is None or not url or _lacks_a_slash(url):
        schemes = ", ".join(scheme for scheme in OPENERS if scheme)
        raise InputError(
            f"{url!r} is not a place for data: give a folder, or a url like s3://bucket/prefix (schemes: {schemes})."
        )
    access = Access(
        endpoint_url=endpoint_url,
        timeout_seconds=timeout_seconds,
        attempts=attempts,
        anonymous=anonymous,
        region=region,
        addressing=addressing,
        request_payer=request_payer,
    )
    return opener(url, access)


def _lacks_a_slash(url: str) -> bool:
    """Whether a path looks like a mistyped url, such as s3:/bucket, which nobody means as a folder."""
    scheme, separator, _ = url.partition(":/")
    return is_local(url) and bool(separator) and scheme != "" and scheme in OPENERS
