"""What is done to pictures before they are stored or learned from: upright, opaque, gray or RGB."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.shards.codec import read_image
from ali_dist.data.shards.pictures import open_image, straighten_picture
from ali_dist.data.shards.sample import NAMED, NamedCounts
from ali_dist.data.shards.sidecar import Sidecar

GARBAGE = (200, 30, 90)


def encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def transparent_picture(mode: str) -> Image.Image:
    """Left half opaque gray, right half garbage under alpha 0."""
    image = Image.new("RGBA", (4, 4), (100, 100, 100, 255))
    image.paste((*GARBAGE, 0), (2, 0, 4, 4))
    if mode != "P":
        return image.convert(mode)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([100, 100, 100, *GARBAGE])
    palette.paste(1, (2, 0, 4, 4))
    return palette


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("background", "value"), [("white", 255), ("#0a0a0a", 10)])
def test_what_lies_under_transparent_pixels_is_never_seen(mode: str, background: str, value: int) -> None:
    options = {"transparency": 1} if mode == "P" else {}
    x, treatments = read_image(encode(transparent_picture(mode), **options), background=background)
    assert (x[:, :, :2] == 100).all()
    assert (x[:, :, 2:] == value).all()
    assert treatments == {"background"}
    assert x.shape[0] == (1 if mode == "LA" else 3)


def encode_with_color(values: np.ndarray, bits: int, transparent: tuple[int, ...]) -> bytes:
    """A PNG of 16 bits [H, W] or [H, W, 3], or of fewer [H, W], that calls a color transparent; Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if values.ndim == 2 else 2, 0, 0, 0)
    all_bits = np.unpackbits(values.astype(">u2").reshape(height, -1, 1).view(np.uint8), axis=2)[..., 16 - bits :]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in all_bits)
    color = struct.pack(f">{len(transparent)}H", *transparent)
    chunks = ((b"IHDR", header), (b"tRNS", color), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


@pytest.mark.parametrize("color", [(0,), (300,), (0, 0, 0), (300, 5, 70)])
def test_a_transparent_color_of_16_bits_is_put_on_the_background(color: tuple[int, ...]) -> None:
    """Exactly that color: one that differs in the lower byte alone is opaque."""
    values = np.full((4, 4, len(color)), 40000, np.uint16)
    values[2] = color
    values[3] = np.array(color) + 1
    x, treatments = read_image(encode_with_color(values[..., 0] if len(color) == 1 else values, 16, color))
    assert x.shape == (len(color), 4, 4)
    assert (x[:, :2] == 156).all()
    assert (x[:, 2] == 255).all()
    assert (x[:, 3] <= 1).all()
    assert treatments == {"background", "16-bit"}


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_gray_of_few_bits_is_put_on_the_background(bits: int) -> None:
    values = np.array([[0, 1, 2, 3]] * 2) % 2**bits
    x, treatments = read_image(encode_with_color(values, bits, (1,)), background="#808080")
    expected = np.where(values == 1, 128, values * 255 // (2**bits - 1))
    assert np.array_equal(x, np.array([expected]))
    assert treatments == {"background"}


def test_half_transparent_pixels_are_mixed() -> None:
    x, _ = read_image(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert np.abs(x.astype(int) - 127).max() <= 1


def test_an_alpha_channel_without_transparent_pixels_changes_nothing() -> None:
    x, treatments = read_image(encode(Image.new("RGBA", (2, 2), (1, 2, 3, 255))))
    assert x[:, 0, 0].tolist() == [1, 2, 3]
    assert treatments == frozenset()


def test_a_photograph_is_turned_as_its_camera_noted() -> None:
    pixels, exif = np.arange(12, dtype=np.uint8).reshape(3, 4), Image.Exif()
    exif[0x0112] = 6
    x, treatments = read_image(encode(Image.fromarray(pixels), exif=exif))
    assert np.array_equal(x[0], np.rot90(pixels, -1))
    assert treatments == {"orientation"}


def test_a_picture_of_too_many_pixels_says_so_before_it_is_decoded() -> None:
    payload = encode(Image.new("1", (14_000, 14_000)))  # more than Pillow itself would open
    with pytest.raises(ValueError, match="14000x14000 pixels, but at most 128 million"):
        read_image(payload)


def test_counts_name_the_first_of_each_word_and_survive_json() -> None:
    first, second = NamedCounts(), NamedCounts()
    for number in range(NAMED - 1):
        first.add("background", f"{number}.png")
    second.add_all({"orientation", "background"}, "x.png")
    second.add("background", "y.png")
    first.merge(second)
    content = first.to_json()
    assert content["background"]["count"] == NAMED + 1
    assert content["background"]["first"][-1] == "x.png"
    assert content["orientation"] == {"count": 1, "first": ["x.png"]}


@pytest.mark.parametrize("origins", [None, ("a/b.png", "", "straße\udcff.jpg")])
def test_a_sidecar_keeps_the_names_of_its_samples(origins: tuple[str, ...] | None) -> None:
    numbers = np.arange(3)
    sidecar = Sidecar(numbers, numbers, numbers.astype(np.uint32), None, origins)
    again = Sidecar.from_bytes(sidecar.to_bytes())
    assert again.origins == origins
    assert again.content_sha256() == sidecar.content_sha256()
    without = Sidecar(numbers, numbers, numbers.astype(np.uint32), None)
    assert (sidecar.content_sha256() == without.content_sha256()) == (origins is None)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_become_8_by_scale(kind: str) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
    picture, treatments = straighten(Image.fromarray(values), kind)
    assert picture.tolist() == [[0, 0, 1, 1], [128, 254, 255, 255]]
    assert treatments == {"16-bit"}


def test_16_bits_of_which_12_are_used_are_told_to_be_dark() -> None:
    _, treatments = straighten(Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)), "PNG")
    assert treatments == {"16-bit", "dark-16-bit"}


def test_numbers_of_no_known_range_are_refused() -> None:
    for dtype, words in ((np.float32, "floating-point numbers"), (np.int32, "32-bit numbers")):
        with pytest.raises(ValueError, match=f"its pixels are {words}, whose range is not known"):
            straighten(Image.fromarray(np.ones((4, 4), dtype=dtype)), "TIFF")


def test_printing_colors_become_rgb() -> None:
    picture, treatments = straighten(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", "RGB")
    assert np.abs(picture[4, 4].astype(int) - (255, 0, 0)).max() <= 3
    assert treatments == {"cmyk"}


def test_a_broken_exif_block_costs_its_orientation_and_not_the_image() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 7).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x03garbage")
    with open_image(buffer.getvalue(), ("JPEG",)) as image:
        picture, treatments = straighten_picture(image, "L")
    assert np.asarray(picture)[0, 0] == 7
    assert treatments == frozenset()


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "JPEG"])
def test_every_format_is_turned_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((32, 64), dtype=np.uint8)
    pixels[:16] = 255  # the upper half becomes the right one
    picture, treatments = straighten(Image.fromarray(pixels), kind, exif=exif)
    assert picture.shape == (64, 32)
    assert picture[:, :8].max() < 40
    assert picture[:, -8:].min() > 215
    assert treatments == {"orientation"}


def straighten(image: Image.Image, kind: str, mode: str = "L", **options: Any) -> tuple[np.ndarray, frozenset[str]]:
    """Save an image and read it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    with open_image(buffer.getvalue(), (kind,)) as opened:
        picture, treatments = straighten_picture(opened, mode)
        return np.asarray(picture), treatments
