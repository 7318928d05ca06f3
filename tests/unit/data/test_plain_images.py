"""The short way of decoding plain images gives the pixels of the long one, and leaves everything else to it."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import types
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from ali_dist.data.shards import codec, plain_images
from ali_dist.data.shards.codec import read_image
from ali_dist.data.shards.plain_images import decode_plain

RNG = np.random.default_rng(3)


@pytest.fixture(params=["fast", "pillow"])
def _decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed with the project, and Pillow's own decoders, which do where that is missing."""
    for name in ("_find_jpeg_decoder", "_find_png_decoder"):
        if request.param == "fast":
            assert getattr(plain_images, name)() is not None
        else:
            monkeypatch.setattr(plain_images, name, lambda: None)


def picture(width: int = 37, height: int = 21, mode: str = "RGB") -> Image.Image:
    small = RNG.integers(0, 256, (max(1, height // 3), max(1, width // 3), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode_the_long_way(
    payload: bytes, shape: tuple[int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode_plain", lambda payload, size: None)
        return read_image(payload, shape)[0]


PLAIN = [
    *[("PNG", mode, {"compress_level": level}) for mode in ("L", "RGB") for level in (0, 6, 9)],
    ("PNG", "RGB", {"optimize": True, "dpi": (72, 72)}),
    *[
        ("JPEG", "RGB", {"subsampling": subsampling, "quality": quality, "progressive": progressive})
        for subsampling in (0, 1, 2)
        for quality in (30, 95)
        for progressive in (False, True)
    ],
    ("JPEG", "L", {"quality": 80}),
    ("JPEG", "RGB", {"comment": "made up", "restart_marker_rows": 1}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), PLAIN)
@pytest.mark.usefixtures("_decoder")
def test_plain_images_have_the_pixels_of_the_long_way(
    kind: str, mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, height in ((1, 1), (8, 8), (37, 21), (64, 64)):
        payload = encode(picture(width, height, mode), kind, **options)
        plain = decode_plain(payload)
        assert plain is not None
        assert plain.shape == (len(mode), height, width)
        for shape in (None, (3, height, width)):
            expected = decode_the_long_way(payload, shape, monkeypatch)
            assert np.array_equal(read_image(memoryview(payload), shape)[0], expected)
        assert decode_plain(payload, (height, width + 1)) is None
        assert read_image(payload)[1] == frozenset()


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "made up")
    return info


NOT_PLAIN = [
    ("PNG", "RGBA", {}),
    ("PNG", "LA", {}),
    ("PNG", "P", {}),
    ("PNG", "1", {}),
    ("PNG", "RGB", {"transparency": (1, 2, 3)}),
    ("PNG", "RGB", {"exif": _rotated()}),
    ("PNG", "RGB", {"pnginfo": _text()}),
    ("PNG", "RGB", {"icc_profile": b"made up"}),
    ("JPEG", "RGB", {"exif": _rotated()}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"comment": b"what looks like a scan: \xff\xda, but is none"}),
    ("GIF", "P", {}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), NOT_PLAIN)
@pytest.mark.usefixtures("_decoder")
def test_what_may_need_more_than_its_pixels_is_left_to_the_long_way(
    kind: str, mode: str, options: dict[str, Any]
) -> None:
    assert decode_plain(encode(picture(mode=mode), kind, **options)) is None


@pytest.mark.usefixtures("_decoder")
def test_a_photograph_is_still_turned_upright() -> None:
    image = picture()
    x, treatments = read_image(encode(image, "PNG", exif=_rotated()))
    assert treatments == {"orientation"}
    image.getexif()[0x0112] = 6
    assert np.array_equal(x, np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.usefixtures("_decoder")
def test_a_file_that_is_cut_anywhere_is_never_taken_as_whole(kind: str) -> None:
    whole = encode(picture(), kind)
    for length in [*range(1, 60), *range(60, len(whole) - 20, 97)]:
        with pytest.raises(ValueError, match="cannot be decoded|cut short"):
            read_image(whole[:length])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_damaged_files_give_what_the_long_way_gives(kind: str, data: st.DataObject) -> None:
    """One byte of the file is another; Pillow, which reads some of these, and refuses others, decides."""
    payload = bytearray(encode(Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3)), kind))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    plain = decode_plain(bytes(payload))
    if plain is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        assert np.array_equal(plain, decode_the_long_way(bytes(payload), None, patch))


@pytest.mark.parametrize(
    ("package", "function", "find"),
    [
        ("simplejpeg", "decode_jpeg", plain_images._find_jpeg_decoder),
        ("imagecodecs", "png_decode", plain_images._find_png_decoder),
    ],
)
def test_a_decoder_with_other_pixels_is_not_used(
    package: str, function: str, find: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that differs in a single bit of a single pixel would make runs on two machines differ."""

    def decode(data: bytes, *colorspace: str) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.atleast_3d(np.asarray(image)).copy()
        if right is not True:
            pixels[-1, -1, -1] ^= 1
        return pixels

    monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(**{function: decode}))
    for right in (True, False):
        find.cache_clear()
        assert (find() is not None) == right
    find.cache_clear()


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.usefixtures("_decoder")
def test_notes_on_colors_and_significant_bits_change_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode(picture(), "PNG")
    notes = [
        _png_chunk(b"gAMA", struct.pack(">I", 100_000)),
        _png_chunk(b"sBIT", bytes([5, 6, 5])),
        _png_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    ]
    payload = whole[:33] + b"".join(notes) + whole[33:]
    plain, bare = decode_plain(payload), decode_plain(whole)
    assert plain is not None
    assert bare is not None
    assert np.array_equal(plain, bare)
    assert np.array_equal(plain, decode_the_long_way(payload, None, monkeypatch))


@pytest.mark.usefixtures("_decoder")
def test_a_damaged_png_is_refused_without_a_line_of_a_library(capfd: pytest.CaptureFixture[str]) -> None:
    payload = bytearray(encode(picture(), "PNG"))
    payload[len(payload) // 2] ^= 255
    with contextlib.suppress(ValueError):  # Pillow decides
        read_image(bytes(payload))
    assert capfd.readouterr().err == ""
