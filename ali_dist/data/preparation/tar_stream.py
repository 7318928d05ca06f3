"""Samples of tars that can only be read from beginning to end: at an http(s) url, or compressed.

webdataset expands the urls and groups members into samples, as its users expect. Its own reading is not used: it takes
a damaged header for the end of the tar, and a connection that breaks off for the end of the file, without a word.
"""

from __future__ import annotations

import glob
import io
import itertools
import lzma
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPException
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlsplit, urlunsplit

from ali_dist.data.shards.tar import is_hidden, split_name
from ali_dist.data.shards.tar_images import looks_like_image
from ali_dist.errors import InputError, StorageError

_TIMEOUT_SECONDS = 60.0  # longest silence of a server
_TRIES = 5
_WAIT_SECONDS = 0.5  # after the first failed try; it doubles each time
_REDIRECTIONS = range(300, 400)
_BUFFER = 1 << 20
_MAX_MEMBER = 1 << 29  # bytes of a field; larger ones would fill the memory
_MAX_URLS = 1_000_000
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class StreamedSample(NamedTuple):
    """A sample: its key, and the content of its fields; b"" for those that were not wanted."""

    key: str
    fields: dict[str, bytes]


def expand_urls(source: str, on_hidden: Callable[[str], None] = lambda name: None) -> tuple[str, ...]:
    """List the tars of a source: a path, a folder, a pattern, an http(s) url, with brace lists like {000..009}.

    Several are joined by `::`.

    Args:
        source: What the user gives.
        on_hidden: Called with each hidden file of a folder that is named like a tar; it is left out.

    Raises:
        InputError: A url has another scheme, such as `pipe:`, which would run a command; or there is no such file.
    """
    for part in source.split("::"):
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", part)
        if scheme is not None and scheme[1].lower() not in ("http", "https"):
            hint = " (tars in a bucket are indexed where they are, with webdataset)" if scheme[1] == "s3" else ""
            raise InputError(
                f"{_redact(part)!r} has the scheme {scheme[1]!r}, but tars are imported from files and from http(s) "
                f"alone{hint}: download them, or serve them over http."
            )
    from webdataset.shardlists import expand_urls as expand

    try:
        urls = list(itertools.islice(iter(expand(source)), _MAX_URLS + 1))
    except Exception as error:  # braceexpand raises its own on braces that do not fit
        raise InputError(f"{_redact(source)!r} cannot be expanded ({error}): check its braces.") from error
    found = [path for url in urls for path in ([url] if is_remote(url) else _find_files(url, on_hidden))]
    if not found or len(found) > _MAX_URLS:
        raise InputError(f"{_redact(source)!r} stands for {len(found)} tars, but must for 1 to {_MAX_URLS:,}.")
    return tuple(found)


def is_remote(url: str) -> bool:
    """Whether a url is to be fetched over http."""
    return url.lower().startswith(("http://", "https://"))


def show_url(url: str) -> str:
    """A url as messages and the index may have it: without user, password and query, which may be secrets."""
    return _redact(url) if is_remote(url) else url


def stream_samples(
    url: str, is_wanted: Callable[[str], bool], on_stray: Callable[[str], None], *, dotted: bool = False
) -> Iterator[StreamedSample]:
    """Read the samples of a tar in order; members of a sample must stand side by side.

    Args:
        url: A path or an http(s) url.
        is_wanted: Whether the content of a field is needed.
        on_stray: Called with the name of each member that belongs to no sample.
        dotted: See `split_name`.

    Raises:
        InputError: It is not a whole tar, is missing, or a sample has one field twice or its members apart.
        StorageError: The server failed, or the connection broke off.
    """
    from webdataset.tariterators import group_by_keys

    seen: dict[str, frozenset[str]] = {}
    kinds: dict[frozenset[str], frozenset[str]] = {}  # so that a million equal sets of fields take the room of one
    members = _read_members(url, is_wanted, on_stray, dotted)
    try:
        for sample in group_by_keys(members, keys=lambda name: split_name(name, dotted=dotted)):
            fields = {name: value for name, value in sample.items() if not name.startswith("__")}
            kind = frozenset(fields)
            _refuse_scattered(url, sample["__key__"], kinds.setdefault(kind, kind), seen, is_wanted)
            yield StreamedSample(sample["__key__"], fields)
    except InputError:
        raise
    except ValueError as error:  # webdataset's, on a field that comes twice
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"{show_url(url)} cannot be read ({reason}): write it again.") from error


def _refuse_scattered(
    url: str, key: str, fields: frozenset[str], seen: dict[str, frozenset[str]], is_wanted: Callable[[str], bool]
) -> None:
    """Refuse a sample whose members do not stand side by side: reading only once, its parts cannot be joined.

    A key that comes again with a field that it had is another sample, as it is to `scan_tar`.

    Args:
        url: The tar.
        key: Key of the members that stand side by side.
        fields: Their fields.
        seen: The fields of each key so far; these are added.
        is_wanted: Whether a field is needed; a README.md and a README.txt need no joining.
    """
    before = seen.get(key)
    seen[key] = fields
    if before is None or before & fields:
        return
    if any(is_wanted(name) or looks_like_image(name) for name in before | fields):
        raise InputError(
            f"Sample {key!r} of {show_url(url)} has its {min(before)} and its {min(fields)} apart, but a tar that is "
            f"read from beginning to end must have the members of a sample side by side: write it again in that order, "
            f"or have it on disk, unpacked, and index it with `python -m ali_dist.prepare webdataset`."
        )


class _StrictInfo(tarfile.TarInfo):
    """A header that ends the tar only if it is one of the zero blocks that end every tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


def _read_members(
    url: str, is_wanted: Callable[[str], bool], on_stray: Callable[[str], None], dotted: bool
) -> Iterator[dict[str, Any]]:
    """Give the members that belong to samples, as webdataset's functions take them."""
    where = show_url(url)
    try:
        with (
            _open_stream(url) as stream,
            tarfile.open(fileobj=stream, mode="r|*", bufsize=_BUFFER, tarinfo=_StrictInfo) as tar,
        ):
            for member in tar:
                if member.size < 0 or tar.offset < member.offset_data:
                    raise tarfile.ReadError(f"the size of {member.name!r} is {member.size:.6g}")
                names = split_name(member.name, dotted=dotted)
                if names is None or not member.isreg() or member.sparse is not None:
                    if not member.isdir():
                        on_stray(member.name)
                    continue
                data = b""
                if is_wanted(names[1]):
                    if member.size > _MAX_MEMBER:
                        raise tarfile.ReadError(f"{member.name!r} has {member.size:.6g} bytes, too many for a sample")
                    content = cast("IO[bytes]", tar.extractfile(member))
                    data = content.read()
                yield {"fname": member.name, "data": data, "__url__": where}
            rest = cast("Any", tar.fileobj)
            while block := rest.read(_BUFFER):
                if block.count(0) != len(block):
                    raise tarfile.ReadError("there is more after its end")
    except (InputError, StorageError, OSError) as error:
        if isinstance(error, InputError | StorageError):
            raise
        raise InputError(f"{where} cannot be read ({error.strerror or error}): check it.") from error
    except (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise _broken_error(where, error) from error
    except (zlib.error, lzma.LZMAError) as error:
        raise _broken_error(where, error) from error


def _broken_error(where: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()).removesuffix(".")
    return InputError(f"{where} is not a whole tar ({reason}): download or write it again.")


def _open_stream(url: str) -> IO[bytes]:
    if is_remote(url):
        return cast("IO[bytes]", _HttpBody(url))
    return open(url, "rb")  # noqa: SIM115  (the caller closes it)


class _HttpBody(io.RawIOBase):
    """A file at a url, read to its announced end; where a connection breaks off, reading goes on if the server can.

    Raises:
        InputError: The server refuses.
        StorageError: It failed, or cannot go on where it broke off.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._where = show_url(url)
        self._position = 0
        self._response = self._request({})
        length = self._response.headers.get("Content-Length", "")
        self._total = int(length) if length.isdecimal() else None
        headers = self._response.headers
        validator = headers.get("ETag", "") or headers.get("Last-Modified", "")
        can_resume = headers.get("Accept-Ranges") == "bytes" and not validator.startswith("W/")
        self._validator = validator if can_resume else ""

    def read(self, size: int = -1) -> bytes:
        for attempt in range(_TRIES):
            try:
                data: bytes = self._response.read(size if size >= 0 else None)
            except (OSError, HTTPException):
                data = b""
            else:
                if data or size == 0 or self._position == (self._total or self._position):
                    self._position += len(data)
                    return data
            self._resume(attempt)
        raise self._broken_error()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._response.close()
        super().close()

    def _resume(self, attempt: int) -> None:
        """Ask for the rest; If-Range gives the whole file instead, if it is another one now."""
        if not self._validator:
            raise self._broken_error()
        time.sleep(_WAIT_SECONDS * 2**attempt)
        self._response.close()
        self._response = self._request({"Range": f"bytes={self._position}-", "If-Range": self._validator})
        begins = self._response.headers.get("Content-Range", "").startswith(f"bytes {self._position}-")
        if self._response.status != HTTPStatus.PARTIAL_CONTENT or not begins:
            raise self._broken_error()

    def _request(self, headers: dict[str, str]) -> Any:
        for attempt in range(_TRIES):
            try:
                request = urllib.request.Request(self._url, headers=headers)
                return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
            except urllib.error.HTTPError as error:
                is_final = error.code < 500 and error.code not in (408, 429)
                reason = f"the server answers {error.code} {error.reason}"
                if error.code in _REDIRECTIONS:  # urllib follows them, and explains in three lines why it did not
                    reason = f"the server answers {error.code} and redirects in a circle, or to where it may not"
                kind = InputError if is_final else StorageError
            except (OSError, HTTPException, ValueError) as error:
                reason, kind = str(getattr(error, "reason", error)), StorageError
            if kind is InputError or attempt == _TRIES - 1:
                break
            time.sleep(_WAIT_SECONDS * 2**attempt)
        raise kind(f"{self._where} cannot be read ({reason}): check the url, and try again.")

    def _broken_error(self) -> StorageError:
        announced = "" if self._total is None else f" of its {self._total}"
        return StorageError(
            f"The connection to {self._where} broke off after {self._position}{announced} bytes: run the command again."
        )


def _find_files(path: str, on_hidden: Callable[[str], None]) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(_SUFFIXES))
        for name in filter(is_hidden, names):
            on_hidden(name)
        found = [os.path.join(path, name) for name in names if not is_hidden(name)]
        if not found:
            raise InputError(
                f"There are no tars in {path}: give a folder with files that end in {', '.join(_SUFFIXES)}."
            )
        return found
    if os.path.isfile(path):
        return [path]
    found = sorted(glob.glob(path))
    if not found:
        raise InputError(f"There is no file {path}: give tars, a folder of tars, or a pattern.")
    return found


def _redact(url: str) -> str:
    """A url without user, password, query and fragment."""
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
