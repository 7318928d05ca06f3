"""Find what is where in a WebDataset tar, with its members grouped into samples as webdataset groups them."""

from __future__ import annotations

import io
import re
import tarfile
from typing import NamedTuple

from ali_dist.errors import InputError

# Folders, then a name up to its first dot, then the field: a/b.seg.png is the field "seg.png" of the sample "a/b".
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class ByteExtent(NamedTuple):
    """Where a member's bytes are in the tar."""

    offset: int
    size: int


class TarSample(NamedTuple):
    """One sample of a tar: its key, and where each of its fields is, by lower-case extension without the dot."""

    key: str
    fields: dict[str, ByteExtent]


def scan_tar(data: bytes, where: str) -> list[TarSample]:
    """Find the samples of an uncompressed tar, in order.

    Members that are not files, and names without a dot or with one at the start, belong to no sample (webdataset
    passes over them too).

    Args:
        data: The tar.
        where: What messages call it.

    Raises:
        InputError: It is not a whole uncompressed tar, or a sample has one field twice.
    """
    samples: list[TarSample] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if not member.isreg() or match is None:
                    continue
                key, name = match[1], match[2].lower()
                if not samples or samples[-1].key != key:
                    samples.append(TarSample(key, {}))
                if name in samples[-1].fields:
                    raise InputError(f"{where} has {member.name} twice: write the shard again with one of each.")
                samples[-1].fields[name] = ByteExtent(member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{where} is not a whole, uncompressed tar ({error}): write the shard again.") from error
    # tarfile takes a damaged header for the end of the tar, so what follows the last member must be zeros.
    if len(data) < end + tarfile.BLOCKSIZE or data.count(0, end) != len(data) - end:
        raise InputError(f"{where} is cut short or damaged after byte {end}: write the shard again.")
    return samples
