"""What to do about a place without prepared shards: the sentence that looks at what lies there, with the command."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ali_dist.config.suggestions import did_you_mean
from ali_dist.data.shards.index import INDEX_KEY, find_split
from ali_dist.errors import InputError
from ali_dist.storage import is_local
from ali_dist.storage.base import Store

_PICTURES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SOURCES = {".zip": "folder", ".npz": "npz", ".parquet": "parquet"}  # what `prepare` reads files of an ending as
_MOST_LOOKED_AT = 2_000  # files; a folder of pictures shows itself in the first few


def find_prepared_split(root: Store, split: str) -> Store:
    """Find the store of one split, as `find_split` does.

    Raises:
        InputError: There is no such split; the message lists those that exist or, where there are none, says what lies
            there and which command makes shards of it.
    """
    if is_local(root.url) and Path(root.url).is_file():
        raise InputError(f"{root.url} is a file, but prepared shards lie in a folder: {_advise_on_file(root.url)}.")
    try:
        return find_split(root, split)
    except InputError as error:
        if list_splits(root):
            raise
        raise InputError(f"There are no prepared shards in {root.url}: {advise_on_unprepared(root.url)}.") from error


def list_splits(root: Store) -> list[str]:
    """Names of the prepared splits below a url, sorted."""
    ending = f"/{INDEX_KEY}"
    return sorted(info.key.removesuffix(ending) for info in root.list() if info.key.endswith(ending))


def advise_on_unprepared(url: str) -> str:
    """Say, as the end of a sentence, what lies in a place that has no index, and what to do.

    Args:
        url: A folder, or s3://bucket/prefix.
    """
    place = shlex.quote(url)
    write = _how_to_write(url)
    if not is_local(url):
        return f"{write}, or, if tars lie there, index them with `python -m ali_dist.prepare webdataset {place}`"
    folder = Path(url)
    if not folder.is_dir():
        hint = did_you_mean(folder.name, _prepared_siblings(folder)).removesuffix("?").removeprefix("; ")
        return f"there is no such folder{f' ({hint})' if hint else ''}; check its name, or {write}"
    endings = {Path(name).suffix.lower() for name in itertools.islice(_walk_files(url), _MOST_LOOKED_AT)}
    if ".tar" in endings:
        return f"it holds tars without an index, so index them with `python -m ali_dist.prepare webdataset {place}`"
    if endings & set(_PICTURES):
        shards = shlex.quote(f"{url.rstrip('/')}-shards")
        return (
            f"it holds pictures, so write them as shards with `python -m ali_dist.prepare folder {shards} --from "
            f"{place} --size 64`, and train on those with `python -m ali_dist.train --preset images --data.url "
            f"{shards}`"
        )
    return f"it holds nothing that could be trained on; {write}"


def _how_to_write(url: str) -> str:
    """Say with which command data come to a place: of a data set that has its name, else of pictures of one's own."""
    from ali_dist.data.sources.registry import SOURCES  # here, because a place that is prepared needs none of it

    place = shlex.quote(url)
    name = url.rstrip("/").rpartition("/")[2]
    if name not in SOURCES or SOURCES[name].lists_folder:
        return (
            f"write pictures of yours there with `python -m ali_dist.prepare folder {place} --from PICTURES --size 64`"
        )
    files = SOURCES[name].original_files
    command = f"python -m ali_dist.prepare {name} {place}"
    return f"write it with `{command} --from PATH`, where PATH is {files}" if files else f"write it with `{command}`"


def _advise_on_file(url: str) -> str:
    """Say, as the end of a sentence, what to do with a file that was given in place of a folder of shards."""
    path = Path(url)
    source = _SOURCES.get(path.suffix.lower())
    if source is None:
        return "give the folder that holds it, or --help of `python -m ali_dist.prepare` lists what can be read"
    shards = shlex.quote(str(path.with_name(f"{path.stem}-shards")))
    size = "" if source == "npz" else " --size 64"
    return (
        f"write them with `python -m ali_dist.prepare {source} {shards} --from {shlex.quote(url)}{size}`, and train on "
        f"those with `python -m ali_dist.train --preset images --data.url {shards}`"
    )


def _walk_files(folder: str) -> Iterator[str]:
    """Names of the files below a folder, one folder after another."""
    for _, _, names in os.walk(folder):
        yield from names


def _prepared_siblings(folder: Path) -> list[str]:
    """Names of the folders beside a missing one that hold prepared data."""
    if not folder.parent.is_dir():
        return []
    beside = [path for path in itertools.islice(folder.parent.iterdir(), _MOST_LOOKED_AT) if path.is_dir()]
    return [path.name for path in beside if any(path.glob(INDEX_KEY)) or any(path.glob(f"*/{INDEX_KEY}"))]


def holds_foreign_files(folder: Path) -> bool:
    """Whether a folder holds files at any depth, but for hidden ones such as .gitkeep."""
    return any(not name.startswith(".") for name in _walk_files(str(folder)))
