"""Index the tars of a data set: find its splits, and write an index for each, beside the tars or elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ali_dist.data.preparation.tar_places import (
    WEBDATASET,
    check_index_place,
    check_other_places,
    check_sidecars,
    check_writable,
)
from ali_dist.data.preparation.tar_split_checks import check_shapes, compare_labels, join_notes
from ali_dist.data.preparation.write_splits import WrittenSplits
from ali_dist.data.shards.index import INDEX_KEY, check_listing, load_index
from ali_dist.data.shards.location import name_tars
from ali_dist.data.shards.tar import is_hidden
from ali_dist.data.shards.tar_labels import FoundLabels
from ali_dist.data.shards.tar_scan import TarOptions, scan_split
from ali_dist.data.shards.webdataset import name_labels, write_tar_index
from ali_dist.data.sources.base import StartTracking, track_nothing
from ali_dist.errors import InputError
from ali_dist.storage import is_local
from ali_dist.storage.base import Store

_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""What others call the splits in names of tars and folders."""

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TarSplit:
    """The tars of one split, and where their index is or will be.

    Attributes:
        name: Name of the split.
        store: Folder of the index.
        tars: Folder of the tars.
        keys: The tars.
    """

    name: str
    store: Store
    tars: Store
    keys: tuple[str, ...]


class IndexedTars(NamedTuple):
    """The splits that are indexed, and what was left out.

    Attributes:
        written: The splits.
        left_out: The tars that belong to none of them.
        compressed: Compressed tars beside them, which cannot be read in place.
        hidden: Files that are named like tars, but are hidden, or companions that a Mac makes of files.
    """

    written: WrittenSplits
    left_out: tuple[str, ...]
    compressed: tuple[str, ...]
    hidden: tuple[str, ...]


def index_tars(
    tars: Store,
    out: Store,
    options: TarOptions,
    start_tracking: StartTracking = track_nothing,
    *,
    endpoint_url: str | None = None,
    anonymous: bool = False,
) -> IndexedTars:
    """Index every split of a place with tars, unless all of them are indexed already with the same options.

    Args:
        tars: Where the tars are.
        out: Where the index of each split goes; the same place for an index beside the tars.
        options: What is made of the tars.
        start_tracking: Shows progress, see `track_nothing`.
        endpoint_url: S3 endpoint of the tars, if the user named one.
        anonymous: Whether requests for the tars are not signed.

    Raises:
        InputError: There are no tars, one cannot be used or belongs to no split, or `out` holds other data or cannot
            be written to.
    """
    settings = {"name": WEBDATASET, **options.settings()}
    splits = find_tar_splits(tars, out, skip_unknown=options.skip_bad)
    left_out = _list_left_out(tars, splits)
    if all(_is_indexed(split, settings) for split in splits):
        return IndexedTars({split.name: (split.store, False) for split in splits}, *left_out)
    _check_places(tars, out, splits)
    has_stale_index = _has_stale_index(out, splits)
    scanned = [
        (split, scan_split(split.tars, split.keys, options, start_tracking(split.name, None))) for split in splits
    ]
    check_shapes({split.name: scan.tar_format.shape for split, scan in scanned})
    classes = name_labels([scan for _, scan in scanned])
    notes = compare_labels({split.name: scan.labels.choice for split, scan in scanned})
    for (_, scan), note in zip(scanned, notes, strict=True):
        scan.labels = FoundLabels(scan.labels.choice, join_notes(scan.labels.note, note))
    if has_stale_index:
        out.delete([INDEX_KEY])
    access: dict[str, Any] = {}
    if not is_local(tars.url):
        access = {"tars_endpoint_url": endpoint_url} if endpoint_url else {}
        access |= {"tars_anonymous": True} if anonymous else {}
    for split, scan in scanned:
        write_tar_index(split.store, scan, classes, settings, access)
    return IndexedTars({split.name: (split.store, True) for split in splits}, *left_out)


def split_of_name(name: str) -> str | None:
    """The split that the name of a tar or folder speaks of, as "cc3m-val-0001.tar" does; None if not of just one."""
    words = re.split(r"[^a-z]+", name.partition(".tar")[0].lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def find_tar_splits(tars: Store, out: Store, *, skip_unknown: bool = False) -> tuple[TarSplit, ...]:
    """Find the splits: each folder of tars is one, or several if the names of its tars speak of several.

    Args:
        tars: Where the tars are.
        out: Where their indexes go.
        skip_unknown: Whether tars are left out that belong to none of several splits.

    Raises:
        InputError: There are no tars, one belongs to no split, or two folders are the same split.
    """
    present = [info.key for info in tars.list()]
    keys = [key for key in present if _is_tar(key) and not is_hidden(key)]
    if not keys:
        compressed = next((key for key in present if _COMPRESSED.search(key) and not is_hidden(key)), None)
        remedy = (
            "give the folder or prefix that holds the shards"
            if compressed is None
            else f"compressed ones, such as {compressed!r}, are read with webdataset-import"
        )
        raise InputError(f"There are no .tar files in {tars.url}: {remedy}.")
    folders: dict[str, list[str]] = {}
    for key in keys:
        folder, _, name = key.rpartition("/")
        folders.setdefault(folder, []).append(name)
    splits: dict[str, TarSplit] = {}
    for folder in sorted(folders):
        for name, names in _divide_folder(folder, folders[folder], tars, skip_unknown):
            if name in splits:
                raise InputError(f"Two folders of {tars.url} are the split {name!r}: rename or move one of them.")
            place = out.child(name) if name else out
            splits[name] = TarSplit(name or "data", place, tars.child(folder) if folder else tars, tuple(sorted(names)))
    return tuple(splits.values())


def _divide_folder(folder: str, names: list[str], tars: Store, skip_unknown: bool) -> Iterator[tuple[str, list[str]]]:
    """Give the place of each split of a folder below the root ('' is the root itself), and its tars."""
    above, _, last = folder.rpartition("/")
    by_split = {name: split_of_name(name) for name in names}
    for split, members in divide_names(by_split, f"{tars.url}/{folder}".rstrip("/"), skip_unknown=skip_unknown).items():
        if split:
            yield "/".join(filter(None, (folder, split))), members
        else:
            yield "/".join(filter(None, (above, _SPLITS.get(last.lower(), last)))), members


def divide_names(
    split_of: Mapping[str, str | None], source_name: str, *, skip_unknown: bool = False
) -> dict[str, list[str]]:
    """Divide tars by the splits that their names speak of; those of fewer than two splits are one, named ''.

    Args:
        split_of: The split of each tar, by its name; None if it speaks of none.
        source_name: What the message calls their place.
        skip_unknown: Whether tars are left out that belong to none of several splits.

    Raises:
        InputError: A tar belongs to none of several splits.
    """
    by_split: dict[str, list[str]] = {}
    for name, split in split_of.items():
        if split is not None:
            by_split.setdefault(split, []).append(name)
    if len(by_split) < 2:
        return {"": list(split_of)}
    unknown = [name for name, split in split_of.items() if split is None]
    if unknown and not skip_unknown:
        raise InputError(
            f"The tars in {source_name} are those of {' and '.join(by_split)}, but {_list_some(unknown)} of none: move "
            f"such tars to another folder, or leave them out with --skip-bad."
        )
    return by_split


class _LeftOut(NamedTuple):
    """See `IndexedTars`."""

    tars: tuple[str, ...]
    compressed: tuple[str, ...]
    hidden: tuple[str, ...]


def _list_left_out(tars: Store, splits: Sequence[TarSplit]) -> _LeftOut:
    """The tars that belong to no split, compressed ones, and hidden files."""
    used = {f"{split.tars.url}/{key}" for split in splits for key in split.keys}
    keys = [info.key for info in tars.list() if _is_tar(info.key) or _COMPRESSED.search(info.key)]
    return _LeftOut(
        tuple(key for key in keys if _is_tar(key) and not is_hidden(key) and f"{tars.url}/{key}" not in used),
        tuple(key for key in keys if not _is_tar(key) and not is_hidden(key)),
        tuple(key for key in keys if is_hidden(key)),
    )


def _is_tar(key: str) -> bool:
    return key.endswith(".tar")


def _is_indexed(split: TarSplit, settings: dict[str, Any]) -> bool:
    """Whether there is an index of exactly these tars, made with these options or written with the shards."""
    if split.store.stat(INDEX_KEY) is None:
        return False
    try:
        index = load_index(split.store)
        check_listing(split.store, index)
    except InputError:
        return False  # the index is of an earlier state of the folder
    is_in_place = split.tars.url == split.store.url
    expected = None if is_in_place else name_tars(split.tars, split.store)
    source = index.extra.get("source", {})
    is_ours = is_in_place and source.get("name") != WEBDATASET  # shards that this program wrote with their index
    return (
        {shard.key for shard in index.shards} == set(split.keys)
        and index.extra.get("tars") == expected
        and (is_ours or source == settings)
    )


def _check_places(tars: Store, out: Store, splits: Sequence[TarSplit]) -> None:
    """Refuse places that hold something else or cannot be written to, before any tar is read."""
    check_index_place(out, tars, tars)
    for split in splits:
        check_index_place(split.store, split.tars, tars)
        check_sidecars(split.store, split.keys)
        check_writable(split.store, split.tars)
    if out.url != tars.url:
        check_other_places(out, tars, [split.store for split in splits])


def _has_stale_index(out: Store, splits: Sequence[TarSplit]) -> bool:
    """Whether all tars are indexed as one split, though there are several now: that would be found before theirs."""
    if any(split.store.url == out.url for split in splits) or out.stat(INDEX_KEY) is None:
        return False
    try:
        source = load_index(out).extra.get("source", {})
    except InputError:
        return True  # damaged, but ours
    if source.get("name") != WEBDATASET:
        raise InputError(f"{out.url} already holds other data: choose another --out, or remove them.")
    return True


def _list_some(names: Sequence[str]) -> str:
    others = "1 other" if len(names) == 2 else f"{len(names) - 1} others"
    return f"{names[0]!r}" + f" and {others}" * (len(names) > 1)
