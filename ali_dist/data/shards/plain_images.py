"""Decode plain PNG and JPEG files with little overhead: opening a small file takes Pillow as long as decoding it.

Plain are the files that need nothing but their pixels: 8 bits, gray or RGB, without palette, transparency, Exif and
other metadata that may matter. Their headers are read here, and their pixels by the same decoders of Pillow that it
uses itself, so that pixels are the same. Everything else, and whatever is damaged, is left to `read_image`.

`simplejpeg` decodes JPEG in less than half of the time, and `imagecodecs` PNG in little more than half (its decoder of
JPEG takes files that are cut short as whole). Each is used where it is installed and gives Pillow's pixels, which is
tried once in every process.
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
Decoder = Callable[[bytes, int], Pixels]
"""Decodes a plain file with so many channels to uint8 [H, W] or [H, W, 1 or 3]; raises if it cannot."""
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_IDAT_CRC = zlib.crc32(b"IDAT")
_PNG_CHANNELS = {0: 1, 2: 3}  # by color type
_PNG_HARMLESS = {b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"tIME", b"sBIT"}  # Pillow converts no colors by these
_MODES = {
    1: ("L", "L"),
    3: ("RGB", "RGB;L"),
}  # by channels: the mode, and its layout with a row of each channel in turn
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive, with Huffman codes
_JPEG_TABLES = {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # Huffman and quantization tables, restarts, JFIF, comments
_JPEG_SCAN = b"\xff\xda"
_JPEG_HEADERS = 64  # that are kept in mind, of some 600 bytes


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
    decode = _find_png_decoder()
    if decode is not None:
        return _decode_whole(decode, data, channels)
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
            content = data[start : position - 4]
            # libpng would print a line about damaged ones; Pillow decides whether they can be read nevertheless.
            if zlib.crc32(content, _IDAT_CRC) != int.from_bytes(data[position - 4 : position], "big"):
                return None
            parts.append(content)
        elif kind == b"IEND":
            return b"".join(parts) if position == len(data) else None
        elif kind not in _PNG_HARMLESS:  # or the file is cut short
            return None


def _decode_jpeg(data: bytes, size: Size | None) -> Pixels | None:
    frame = _read_jpeg_frame(data[: data.find(_JPEG_SCAN)])
    if frame is None:
        return None
    height, width, channels = frame
    if not _is_size_allowed(height, width, size):
        return None
    mode, _ = _MODES[channels]
    decode = _find_jpeg_decoder()
    if decode is not None:
        return _decode_whole(decode, data, channels)
    return _decode_with_pillow(data, (width, height), channels, "jpeg", (mode, ""))


@functools.lru_cache(maxsize=_JPEG_HEADERS)
def _read_jpeg_frame(header: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels by what precedes a file's first scan; None if there is anything that is not plain.

    Images that one program wrote begin alike, and reading this takes a fourth of decoding a small one. Where the marker
    of a scan stands within a segment, the header ends too early, and the file is not taken as plain.
    """
    position, frame = 2, b""
    while position < len(header):
        marker, start = header[position : position + 2], position + 4
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        position += 2 + int.from_bytes(header[position + 2 : start], "big")
        if marker[1] in _JPEG_FRAMES:
            frame = header[start:position]
        elif marker[1] not in _JPEG_TABLES:
            return None
    if position != len(header) or len(frame) < 6 or frame[0] != 8 or frame[5] not in _MODES:
        return None
    return int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), frame[5]


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


def _decode_whole(decode: Decoder, data: bytes, channels: int) -> Pixels | None:
    """Decode a file by another library; None if that refuses it, so that Pillow decides."""
    try:
        pixels = decode(data, channels)
    except (ValueError, RuntimeError):  # what simplejpeg and imagecodecs raise
        return None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@functools.cache
def _find_jpeg_decoder() -> Decoder | None:
    """simplejpeg's decoder, if the package is there and its pixels are Pillow's."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None

    def decode(data: bytes, channels: int) -> Pixels:
        return decode_jpeg(data, "GRAY" if channels == 1 else "RGB")

    examples = (
        ("RGB", {"subsampling": 0, "quality": 95}),
        ("RGB", {"subsampling": 1, "quality": 85, "progressive": True}),
        ("RGB", {"subsampling": 2, "quality": 75}),
        ("RGB", {"subsampling": 2, "quality": 30, "progressive": True}),
        ("L", {"quality": 90}),
    )
    return decode if all(_gives_pillows_pixels(decode, "JPEG", *example) for example in examples) else None


@functools.cache
def _find_png_decoder() -> Decoder | None:
    """imagecodecs' decoder, if the package is there and its pixels are Pillow's."""
    try:
        from imagecodecs import png_decode
    except ImportError:
        return None

    def decode(data: bytes, channels: int) -> Pixels:
        return png_decode(data)

    examples = [(mode, {"compress_level": level}) for mode in ("RGB", "L") for level in (1, 9)]
    return decode if all(_gives_pillows_pixels(decode, "PNG", *example) for example in examples) else None


def _gives_pillows_pixels(decode: Decoder, kind: str, mode: str, options: dict[str, Any]) -> bool:
    """Compare a decoder with Pillow on a picture of odd size with noise and smooth parts."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((67, 45), Image.Resampling.BICUBIC).convert(mode).save(file, kind, **options)
    with Image.open(file) as opened:
        expected = np.atleast_3d(np.asarray(opened))
    try:
        return np.array_equal(np.atleast_3d(decode(file.getvalue(), len(mode))), expected)
    except (ValueError, RuntimeError):
        return False
