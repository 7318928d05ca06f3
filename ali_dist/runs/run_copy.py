"""Bringing the files of a run that a report shows from an object store to this machine."""

from __future__ import annotations

from pathlib import Path

from ali_dist.runs.run_reader import find_galleries
from ali_dist.storage import is_local
from ali_dist.storage.base import Store

_FILES = ("config.json", "summary.json", "metrics.jsonl")


def copy_report_files(store: Store, folder: Path) -> Path:
    """Copy config, summary, records and the newest picture of each kind.

    Args:
        store: The run's folder.
        folder: An empty folder of this machine.

    Returns:
        A folder with these files: `folder`, or the run's own one where that is on this machine.

    Raises:
        InputError: There is no access to the store.
        StorageError: The store fails.
    """
    if is_local(store.url):
        return Path(store.url)
    for name in _FILES:
        if store.stat(name) is not None:
            (folder / name).write_bytes(store.get(name))
    images = folder / "images"
    images.mkdir()
    for info in store.list("images/"):
        name = info.key.removeprefix("images/")
        if name.endswith(".png") and "/" not in name:
            (images / name).touch()  # names alone say which is the newest
    for files in find_galleries(images).values():
        *older, newest = files.values()
        for path in older:
            path.unlink()
        newest.write_bytes(store.get(f"images/{newest.name}"))
    return folder
