"""Where the samples of one shard are, and their labels: the .npz file beside it."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64] | NDArray[np.float32]

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype><[iuf][48]|\|u1)', 'fortran_order': False, 'shape': \((?P<shape>[\d, ]*)\), \}\s*"
)


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
    def from_bytes(cls, data: bytes) -> Sidecar:
        """Parse an .npz file.

        Raises:
            ValueError: It is not the file of a sidecar.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                arrays = {name.removesuffix(".npy"): _parse_array(file.read(name)) for name in file.namelist()}
            origins = _split_texts(arrays["origins"], arrays["origin_ends"]) if "origins" in arrays else None
            return cls(arrays["offsets"], arrays["sizes"], arrays["crc32"], arrays.get("labels"), origins)
        except (zipfile.BadZipFile, KeyError, OSError, EOFError, struct.error) as error:
            raise ValueError(f"not a sidecar: {error}") from error

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


def _split_texts(joined: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[str, ...]:
    data = joined.tobytes()
    begins = [0, *ends[:-1].tolist()]
    return tuple(
        data[begin:end].decode("utf-8", "surrogateescape") for begin, end in zip(begins, ends.tolist(), strict=True)
    )


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
