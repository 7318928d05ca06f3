"""Where the tars of a split are, if not beside its index: they may lie on a place that cannot be written to.

The index then has `tars` in its `extra`: a url as `open_store` takes it, or a path relative to the index's folder. Tars
are named relatively where both lie in one folder tree of a machine, so that the tree can be moved.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ali_dist.errors import InputError
from ali_dist.storage import is_local, open_store, scheme_of
from ali_dist.storage.base import Store


def open_tars(store: Store, extra: Mapping[str, Any]) -> Store:
    """Open the store of a split's tars.

    Args:
        store: The split's own folder, which is also the answer unless the index says otherwise.
        extra: The index's extra.

    Raises:
        InputError: The index names a place that no backend serves, or a relative path from an object store.
    """
    url = extra.get("tars")
    if url is None:
        return store
    if is_local(url) and not os.path.isabs(url):
        if not is_local(store.url):
            raise InputError(
                f"The index in {store.url} says that its tars are in {url!r}, which is a path relative to a folder: "
                "index the tars again."
            )
        return open_store(os.path.normpath(os.path.join(store.url, url)))
    target = open_store(url, endpoint_url=extra.get("tars_endpoint_url"), anonymous=extra.get("tars_anonymous", False))
    return _with_settings(target, store)


def name_tars(tars: Store, split: Store) -> str:
    """What `extra["tars"]` says of tars that are not in the split's own folder."""
    if not (is_local(tars.url) and is_local(split.url)):
        return tars.url
    shared = os.path.commonpath([tars.url, split.url])
    return tars.url if shared == os.path.sep else os.path.relpath(tars.url, split.url)


def _with_settings(target: Store, store: Store) -> Store:
    """The store `target`, reached as `store` is, if both are buckets."""
    if not (scheme_of(target.url) == scheme_of(store.url) == "s3"):
        return target
    from ali_dist.storage.cached import CachedStore
    from ali_dist.storage.s3 import S3Store

    if isinstance(store, CachedStore):
        return dataclasses.replace(store, inner=_with_settings(target, store.inner), _known={})
    if isinstance(store, S3Store) and isinstance(target, S3Store):
        return dataclasses.replace(store, bucket=target.bucket, prefix=target.prefix)
    return target
