"""A file that a person names, wherever it lies: commands read a preset from S3 as they do from a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ali_dist.storage import is_local, open_store


@contextmanager
def copy_to_local(path: str) -> Iterator[str]:
    """A local path of the file at `path`: itself, or a copy from an object store that lasts as long as the block.

    Raises:
        InputError: There is no such object, or no access to it.
    """
    if is_local(path):
        yield path
        return
    folder_url, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="ali-dist-copy-") as folder:
        copy = Path(folder) / name
        copy.write_bytes(open_store(folder_url).get(name))
        yield str(copy)
