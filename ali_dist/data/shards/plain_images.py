"""Decode plain PNG and JPEG files with little overhead: opening a small file takes Pillow as long as decoding it.

Plain are the files that need nothing but their pixels: 8 bits, gray or RGB, without palette, transparency, Exif and
other metadata that may matter. Their headers are read here, and their pixels by the same decoders of Pillow that it
uses itself, so that pixels are the same. Everything else, and whatever is damaged, is left to `read_image`.

Where the optional package `simplejpeg` is installed (`pip install 'ali-dist[jpeg]'`), it decodes JPEG in less than half
of the time. It wraps the same library as Pillow's decoder, and is used only if it gives the same pixels, which is tried
once in every process.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.pictures import MAX_PIXELS

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
JpegDecoder = Callable[[bytes, str], Pixels]
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_CHANNELS = {0: 1, 2: 3}  # by color type
_PNG_HARMLESS = {b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"tIME", b"sBIT"}  # Pillow converts no colors by these
_MODES = {
    1: ("L", "L"),
    3: ("RGB", "RGB;L"),
}  # by channels: the mode, and its layout with a row of each channel in turn
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive, with Huffman codes
_JPEG_TABLES = {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # Huffman and quantization tables, restarts, JFIF, comments
_JPEG_SCAN = 0xDA


def decode_plain(payload: bytes | memoryview, size: Size | None = None) -> Pixels | None:
    """Decode a plain PNG or JPEG to uint8 [1 or 3, H, W]; None if it is not one, or has anything wrong with it.

    Args:
        payload: The file.
        size: Height and width; an image of other ones is not decoded.
    """
    data = bytes(payload)
    if data.startswith(b"\xff\xd8"):
        return _decode_jpeg(data, size)
    return _decode_png(data, size) if data.startswith(_PNG_START) else None


def _decode_png(data: bytes, size: Size | None) -> Pixels | None:
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    channels = _PNG_CHANNELS.get(data[25]) if len(data) > 33 and data[24] == 8 and data[26:29] == b"\0\0\0" else None
    if channels is None or not _is_size_allowed(height, width, size):
        return None
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return None
    compressed = _join_png_data(data)
    if compressed is None:
        return None
    mode, _ = _MODES[channels]
    return _decode_with_pillow(compressed, (width, height), channels, "zip", (mode, False))


def _join_png_data(data: bytes) -> bytes | None:
    """The content of a PNG's data chunks; None if it has chunks that may change its pixels, or no end."""
    parts = []
    position = 33
    while True:
        kind = data[position + 4 : position + 8]
        start = position + 8
        position = start + int.from_bytes(data[position : position + 4], "big") + 4
        if kind == b"IDAT":
            parts.append(data[start : position - 4])
        elif kind == b"IEND":
            return b"".join(parts) if position == len(data) else None
        elif kind not in _PNG_HARMLESS:  # or the file is cut short
            return None


def _decode_jpeg(data: bytes, size: Size | None) -> Pixels | None:
    position = 2
    frame = b""
    while True:
        marker = data[position : position + 2]
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        start = position + 4
        position += 2 + int.from_bytes(data[position + 2 : start], "big")
        if marker[1] in _JPEG_FRAMES:
            frame = data[start:position]
        elif marker[1] == _JPEG_SCAN:
            break
        elif marker[1] not in _JPEG_TABLES:
            return None
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in _MODES:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    if not _is_size_allowed(height, width, size):
        return None
    channels = frame[5]
    mode, _ = _MODES[channels]
    decode = _find_jpeg_decoder()
    if decode is not None:
        try:
            return decode(data, "GRAY" if channels == 1 else "RGB").transpose(2, 0, 1)
        except ValueError:  # Pillow decides whether it can be read nevertheless
            return None
    return _decode_with_pillow(data, (width, height), channels, "jpeg", (mode, ""))


def _is_size_allowed(height: int, width: int, size: Size | None) -> bool:
    return 0 < width * height <= MAX_PIXELS and size in (None, (height, width))


def _decode_with_pillow(
    data: bytes, size: tuple[int, int], channels: int, decoder: str, arguments: tuple[Any, ...]
) -> Pixels | None:
    """Decode the pixels alone; None if Pillow refuses them."""
    from PIL import Image

    mode, layout = _MODES[channels]
    try:
        image = Image.frombytes(mode, size, data, decoder, *arguments)
        rows = image.tobytes("raw", layout)
    except (ValueError, OSError):
        return None
    return np.frombuffer(rows, dtype=np.uint8).reshape(size[1], channels, size[0]).transpose(1, 0, 2)


@functools.cache
def _find_jpeg_decoder() -> JpegDecoder | None:
    """simplejpeg's decoder, if the package is there and its pixels are Pillow's."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg if _gives_pillows_pixels(decode_jpeg) else None


def _gives_pillows_pixels(decode: JpegDecoder) -> bool:
    """Compare a decoder with Pillow on pictures of odd size: gray and color, in every subsampling."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for mode, subsampling, quality, progressive in (
        ("RGB", 0, 95, False),
        ("RGB", 1, 85, True),
        ("RGB", 2, 75, False),
        ("RGB", 2, 30, True),
        ("L", 0, 90, False),
    ):
        noise = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((67, 45), Image.Resampling.BICUBIC).convert(mode)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        file.seek(0)
        with Image.open(file) as opened:
            expected = np.atleast_3d(np.asarray(opened))
        try:
            found = decode(file.getvalue(), "GRAY" if mode == "L" else "RGB")
        except ValueError:
            return False
        if not np.array_equal(found, expected):
            return False
    return True
