"""Where the samples of one shard are, and their labels: the .npz file beside it."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64] | NDArray[np.float32]

ORIGIN_BYTES = 1024
"""Most bytes that the origins of a shard may take for each of its samples, on average."""

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype><[iuf][48]|\|u1)', 'fortran_order': False, 'shape': \((?P<shape>[\d, ]*)\), \}\s*"
)
_HEADER_BYTES = 65536  # more than any .npy has before its numbers


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Where the samples of one shard are.

    Attributes:
        offsets: Where each payload begins in the tar, in bytes, ascending, int64 [n].
        sizes: Size of each payload in bytes, int64 [n].
        crc32: Checksum of each payload, uint32 [n].
        labels: Class numbers int64 [n], attribute vectors float32 [n, A], or None.
        origins: What the user knows each sample by, such as the path of its file, [n]; None where nobody noted it.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    labels: Labels | None
    origins: tuple[str, ...] | None = None

    def content_sha256(self) -> str:
        """Hash the content; unlike the file's own hash, this one does not depend on how numpy lays out an .npz."""
        digest = hashlib.sha256()
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Encode the sidecar as an .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **self._arrays())  # type: ignore[arg-type]  # numpy's stub takes an array for allow_pickle
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, samples: int | None = None, attributes: int = 0) -> Sidecar:
        """Parse an .npz file, and check that its arrays fit each other.

        Args:
            data: The file.
            samples: Samples of the shard; a file that unpacks to more than so many need is refused before it does.
            attributes: Attributes of a sample, likewise.

        Raises:
            ValueError: It is not the file of a sidecar.
        """
        limit = None if samples is None else samples * max(8, 4 * attributes, ORIGIN_BYTES) + _HEADER_BYTES
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                arrays = {
                    member.filename.removesuffix(".npy"): _parse_array(_unpack_member(file, member, limit))
                    for member in file.infolist()
                }
            offsets, sizes, crc32 = arrays["offsets"], arrays["sizes"], arrays["crc32"]
            labels, origins = arrays.get("labels"), None
            _check_positions(offsets, sizes, crc32)
            _check_labels(labels, len(offsets))
            if "origins" in arrays:
                origins = _split_texts(arrays["origins"], arrays["origin_ends"], len(offsets))
            return cls(offsets, sizes, crc32, labels, origins)
        # RuntimeError, NotImplementedError: encrypted, or compressed in a way that zipfile does not know.
        except (zipfile.BadZipFile, zlib.error, LookupError, OSError, EOFError, struct.error, RuntimeError) as error:
            raise ValueError(f"not a sidecar: {' '.join(str(error).split())}") from error

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"offsets": self.offsets, "sizes": self.sizes, "crc32": self.crc32}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.origins is not None:
            texts = [_to_bytes(origin) for origin in self.origins]
            arrays["origins"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
            arrays["origin_ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return arrays


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8


def _split_texts(joined: NDArray[np.uint8], ends: NDArray[np.int64], count: int) -> tuple[str, ...]:
    is_whole = joined.dtype == np.uint8 and joined.ndim == 1 and ends.dtype == np.int64 and ends.shape == (count,)
    begins = np.concatenate([[0], ends[:-1]]) if is_whole and count else np.zeros(0, dtype=np.int64)
    if not is_whole or (ends < begins).any() or (int(ends[-1]) if count else 0) != len(joined):
        raise ValueError("its origins do not fit its samples")
    data = joined.tobytes()
    return tuple(
        data[begin:end].decode("utf-8", "surrogateescape")
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    )


def _check_positions(offsets: NDArray[Any], sizes: NDArray[Any], crc32: NDArray[Any]) -> None:
    """Refuse positions that no tar has: ranges that overlap, go backwards or begin before the file does."""
    forms = {(array.dtype.str, array.ndim) for array in (offsets, sizes)} | {("<i8", 1)}
    if len(forms) > 1 or crc32.dtype != np.uint32 or not offsets.shape == sizes.shape == crc32.shape:
        raise ValueError("its arrays are not of one length, or have other types than those of a sidecar")
    ends = offsets + sizes  # which overflows to less than the offset
    if (offsets < 0).any() or (sizes < 0).any() or (ends < offsets).any() or (offsets[1:] < ends[:-1]).any():
        raise ValueError("its offsets and sizes are not those of samples one after the other")


def _check_labels(labels: NDArray[Any] | None, count: int) -> None:
    """Refuse labels that are neither class numbers [n] nor finite attributes [n, A]."""
    if labels is None:
        return
    if labels.shape[:1] != (count,) or (labels.dtype.str, labels.ndim) not in {("<i8", 1), ("<f4", 2)}:
        raise ValueError("its labels do not fit its samples")
    if labels.ndim == 2 and not np.isfinite(labels).all():
        raise ValueError(f"the labels of its sample {int((~np.isfinite(labels)).any(axis=1).argmax())} are not finite")


def _unpack_member(file: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int | None) -> bytes:
    """Unpack a member of a zip if it is not larger than it should be; zipfile unpacks no more than is announced."""
    if limit is not None and member.file_size > limit:
        raise ValueError(f"{member.filename!r} in it unpacks to {member.file_size} bytes, but at most {limit} are due")
    return file.read(member)


def _parse_array(data: bytes) -> NDArray[Any]:
    """Parse an .npy file of version 1 with numbers in C order, as an array that cannot be written to.

    np.load will not do: it parses headers with `ast`, which fails at random when threads use it at the same time
    (CPython 3.11, gh-106905), and sidecars are read by threads. This can go when support of 3.11 ends.
    """
    (length,) = struct.unpack_from("<H", data, len(_MAGIC))
    start = len(_MAGIC) + 2 + length
    header = _HEADER.fullmatch(data[len(_MAGIC) + 2 : start])
    if not data.startswith(_MAGIC) or header is None:
        raise ValueError("an array in it is of no known form")
    shape = [int(n) for n in header["shape"].split(b",") if n.strip()]
    return np.frombuffer(data, dtype=header["dtype"].decode(), offset=start).reshape(shape)
