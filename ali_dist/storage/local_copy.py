"""A file that a person names, wherever it lies: commands read a preset from S3 as they do from a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ali_dist.storage import open_store


@contextmanager
def copy_to_local(path: str) -> Iterator[str]:
    """`path` itself; of an s3:// url, the path of a copy that lasts as long as the block.

    Raises:
        InputError: There is no such object, or no access to it.
    """
    if "://" not in path:
        yield path
        return
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="ali-dist-copy-") as here:
        copy = Path(here) / name
        copy.write_bytes(open_store(folder).get(name))
        yield str(copy)
