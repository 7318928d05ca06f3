"""Find what is where in a WebDataset tar, with its members grouped into samples by key."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from ali_dist.errors import InputError

# Folders, then a name up to its first dot, then the field: a/b.seg.png is the field "seg.png" of the sample "a/b".
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
# The same with the name up to its last dot, for names like "0 Track 2.0.jpg".
_DOTTED_MEMBER = re.compile(r"((?:.*/)?[^./][^/]*)\.([^./]+)", re.DOTALL)
# What webdataset passes over, too, and what archives made on a Mac have beside the files.
_META = re.compile(r"__[^/]*__($|/)|(.*/)?__MACOSX/")
_GZIP = b"\x1f\x8b"


class ByteExtent(NamedTuple):
    """Where a member's bytes are in the tar."""

    offset: int
    size: int


class TarSample(NamedTuple):
    """One sample of a tar: its key, and where each of its fields is, by lower-case extension without the dot."""

    key: str
    fields: dict[str, ByteExtent]


class TarContent(NamedTuple):
    """What a tar holds.

    Attributes:
        samples: The samples, in the order of their first members.
        strays: Names of the members that belong to no sample: those without an extension or that begin with a dot, and
            those that are not plain files (folders are not counted).
        scattered: Keys of samples whose members do not stand side by side; stock webdataset would read each of them as
            several samples.
    """

    samples: list[TarSample]
    strays: list[str]
    scattered: list[str]


def split_name(name: str, *, dotted: bool = False) -> tuple[str, str] | None:
    """Split a member's name into key and field; None if it has none. "./" before a name says nothing and is left out.

    Args:
        name: Name of the member, with its folders.
        dotted: Whether the field begins at the last dot of the name, and not at the first one.
    """
    while name.startswith("./"):
        name = name[2:]
    match = (_DOTTED_MEMBER if dotted else _MEMBER).fullmatch(name)
    return None if match is None or _META.match(name) else (match[1], match[2].lower())


def is_hidden(path: str) -> bool:
    """Whether a file is hidden, or a Mac's companion of another, as `._0.tar` is of `0.tar`."""
    return path.rpartition("/")[2].startswith(".") or "__MACOSX" in path.split("/")[:-1]


def scan_tar(data: bytes, where: str, *, dotted: bool = False) -> TarContent:
    """Find the samples of an uncompressed tar.

    Members of one key are one sample wherever they stand, unless a field of it comes again: then a new sample begins.

    Args:
        data: The tar.
        where: What messages call it.
        dotted: See `split_name`.

    Raises:
        InputError: It is not a whole uncompressed tar, or a sample has one field twice.
    """
    if data.startswith(_GZIP):
        raise InputError(
            f"{where} is compressed, so its samples cannot be read one by one: write it as shards of our own with "
            f"`python -m ali_dist.prepare webdataset-import`."
        )
    samples: list[TarSample] = []
    strays: list[str] = []
    scattered: dict[str, None] = {}
    newest: dict[str, TarSample] = {}
    previous = None
    for member in _list_members(data, where):
        names = split_name(member.name, dotted=dotted)
        if names is None or not member.isreg() or member.sparse is not None:
            strays += [] if member.isdir() else [member.name]
            continue
        key, field = names
        sample = newest.get(key)
        if sample is not None and field in sample.fields:
            if previous == key:
                raise InputError(f"{where} has {member.name!r} twice: write the shard again with one of each.")
            sample = None
        if sample is None:
            sample = newest[key] = TarSample(key, {})
            samples.append(sample)
        elif previous != key:
            scattered[key] = None
        sample.fields[field] = ByteExtent(member.offset_data, member.size)
        previous = key
    return TarContent(samples, strays, list(scattered))


def _list_members(data: bytes, where: str) -> Iterator[tarfile.TarInfo]:
    """Give the members of a tar; sizes are checked before tarfile moves on by them."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                # A negative size would lead tarfile back and round for ever, a huge one beyond what seek can do.
                end_of_content = member.offset_data + (member.size if member.isreg() else 0)
                if member.size < 0 or end_of_content > len(data) or tar.offset < member.offset_data:
                    raise tarfile.ReadError(f"the size of {member.name!r} is {member.size:.6g}")
                yield member
            end = tar.offset
    # The last ones are what tarfile makes of headers that are damaged in the right places.
    except (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not a whole, uncompressed tar ({reason}): write the shard again.") from error
    # tarfile takes a damaged header for the end of the tar, so what follows the last member must be zeros.
    if len(data) < end + tarfile.BLOCKSIZE or data.count(0, end) != len(data) - end:
        raise InputError(f"{where} is cut short or damaged after byte {end}: write the shard again.")
