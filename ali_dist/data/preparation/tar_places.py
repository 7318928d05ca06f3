"""Where the index of somebody else's tars may be written: no file of others and no index of other tars is replaced."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ali_dist.data.shards.index import INDEX_KEY, Index
from ali_dist.data.shards.location import open_tars
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.errors import InputError
from ali_dist.storage import is_local
from ali_dist.storage.base import MissingObject, Store

WEBDATASET = "webdataset"
"""The source in an index of somebody else's tars."""

_FIELDS = frozenset(field.name for field in dataclasses.fields(Index))
_OWN_FIELDS = 3  # of an index; those of other programs share fewer with ours
_OWN_BEGIN = b'{\n "encoding": '


def check_index_place(store: Store, tars: Store, root: Store) -> None:
    """Refuse a place for an index that holds anything but an index of these tars.

    An index that is damaged, or of an earlier state of the tars, may be replaced.

    Args:
        store: Where the index goes.
        tars: The folder of its tars.
        root: The place of all tars of the data set.

    Raises:
        InputError: Its index.json is not of this program, or is that of other data or other tars.
    """
    record = _read_record(store)
    if not record:
        return
    extra = _find_object(record, "extra")
    if _find_object(extra, "source").get("name") != WEBDATASET:
        if store.url == tars.url:
            return  # shards that this program wrote, and whose index no longer fits them
        raise InputError(f"{store.url} already holds other data: choose another --out, or remove them.")
    if not _is_index_of(store, extra, root):
        raise InputError(f"{store.url} already holds the index of other tars: choose another --out, or remove it.")


def check_other_places(out: Store, tars: Store, places: Iterable[Store]) -> None:
    """Refuse a folder for indexes that already has splits of another data set, which would be mixed with these.

    Args:
        out: Parent folder of the indexes, which is not that of the tars.
        tars: The place of all tars.
        places: Where the indexes go; these are checked by themselves.

    Raises:
        InputError: There is such a split.
    """
    own = {store.url for store in places}
    for info in out.list():
        folder, _, name = info.key.rpartition("/")
        if name == INDEX_KEY and folder and "/" not in folder and out.child(folder).url not in own:
            check_index_place(out.child(folder), tars, tars)


def check_sidecars(store: Store, keys: Sequence[str]) -> None:
    """Refuse to write over files beside the tars, or in the place of the index, that are no sidecars of ours.

    A damaged sidecar may be replaced if an index lists it.

    Args:
        store: Where the sidecars go.
        keys: The tars.

    Raises:
        InputError: There is such a file; the message names it.
    """
    present = {info.key for info in store.list()}
    listed = set(_list_sidecars(_read_record(store)))
    for key in keys:
        name = f"{key.removesuffix('.tar')}.npz"
        if name not in present or name in listed:
            continue
        try:
            Sidecar.from_bytes(store.get(name))
        except ValueError as error:
            raise InputError(
                f"{store.url}/{name} is no sidecar of this program, and would be overwritten by that of {key}: move it "
                f"away, or give another folder for the index and the sidecars with --out."
            ) from error


def check_writable(store: Store, tars: Store) -> None:
    """Refuse a place that cannot be written to, as far as that can be known beforehand.

    Raises:
        InputError: It cannot.
    """
    if not is_local(store.url):
        return
    folder = store.url
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if os.path.isdir(folder) and os.access(folder, os.W_OK):
        return
    reason = f"{store.url} cannot be written to"
    if not os.path.isdir(folder):
        reason += f", because {folder} is a file"
    elif folder != store.url:
        reason += f", because {folder} cannot"
    if store.url == tars.url:
        remedy = "give a folder or s3://bucket/prefix for the index and the sidecars with --out"
    else:
        remedy = "choose another --out, or change the rights of the folder"
    raise InputError(f"{reason}: {remedy}; the tars stay where they are.")


def _read_record(store: Store) -> dict[str, Any] | None:
    """What index.json says, as far as it can be read: None without one, {} if it is ours and cut short.

    Raises:
        InputError: It is not of this program.
    """
    try:
        data = store.get(INDEX_KEY)
    except MissingObject:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        if data.startswith(_OWN_BEGIN) or not data.strip(b"\0 \r\n"):
            return {}
        content = None
    if isinstance(content, dict) and len(_FIELDS.intersection(content)) >= _OWN_FIELDS:
        return content
    raise InputError(
        f"{store.url}/{INDEX_KEY} is not an index of this program, but stands where one goes: move it away, or give "
        f"another folder for the index and the sidecars with --out."
    )


def _find_object(content: dict[str, Any], name: str) -> dict[str, Any]:
    """An object in a json object; {} if there is none."""
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _list_sidecars(record: dict[str, Any] | None) -> Iterator[str]:
    shards = (record or {}).get("shards")
    for shard in shards if isinstance(shards, list) else ():
        if isinstance(shard, dict) and isinstance(shard.get("key"), str):
            yield f"{shard['key'].removesuffix('.tar')}.npz"


def _is_index_of(store: Store, extra: dict[str, Any], root: Store) -> bool:
    """Whether an index is of tars that lie in `root` or below."""
    if extra.get("tars") is not None and not isinstance(extra["tars"], str):
        return True  # which is damaged
    try:
        url = open_tars(store, extra).url
    except InputError:
        return False
    return url == root.url or url.startswith(f"{root.url.rstrip('/')}/")
