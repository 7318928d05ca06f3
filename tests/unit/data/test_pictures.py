"""What is done to pictures before they are stored or learned from: upright, opaque, gray or RGB."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.shards.codec import read_image
from ali_dist.data.shards.pictures import open_image
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
    payload = encode(Image.new("1", (9000, 9000)))
    with pytest.raises(ValueError, match="9000x9000 pixels, but at most 64 million"), open_image(payload, ("PNG",)):
        pass


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
