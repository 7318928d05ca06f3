"""Bring a decoded image into the form that is stored and learned from: upright, opaque, gray or RGB.

What lies under transparent pixels is garbage in many real files (icons, cut-outs), and nobody sees it: transparent
images are put on a background. Photographs are turned as their camera noted.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = "white"
_ORIENTATION = 0x0112  # the Exif tag
_GRAY_MODES = ("1", "L", "LA", "La")
_MAX_PIXELS = 64_000_000  # of one image; a few of 180 million fill a machine's memory


class OtherSize(ValueError):  # noqa: N818  (it reads better where it is caught)
    """An image has not the size that is needed."""


class OpenedPicture(NamedTuple):
    """An image and what was done to it.

    Attributes:
        image: Its pixels, of mode L or RGB.
        treatments: Some of `background` (it had transparent pixels, which were put on one) and `orientation` (it was
            turned).
    """

    image: Image
    treatments: frozenset[str]


@contextlib.contextmanager
def open_image(payload: bytes | memoryview, formats: tuple[str, ...]) -> Iterator[Image]:
    """Open an image of 8 bits a channel in one of Pillow's formats; it is decoded when its pixels are first used.

    Raises:
        ValueError: The image cannot be decoded, which may come out within the block; the message says why.
    """
    from PIL import Image as Images

    names = " or ".join(", ".join(formats).rsplit(", ", 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on files that it reads nevertheless
            image = Images.open(io.BytesIO(payload), formats=formats)
        with image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have mode {image.mode}, but 8-bit ones are needed")
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(
                    f"it has {image.width}x{image.height} pixels, but at most {_MAX_PIXELS // 1_000_000} million are "
                    "read: make it smaller"
                )
            yield image
    except Images.DecompressionBombError as error:
        raise ValueError(f"it is too large ({' '.join(str(error).split())})") from error
    except (OSError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error) as error:
        raise ValueError(f"it cannot be decoded as {names}, or is cut short") from error


def check_size(image: Image, height: int, width: int) -> None:
    """Refuse an image of another size, before it is decoded; it may still have to be turned.

    Raises:
        OtherSize: It cannot have that height and width, upright or turned.
    """
    if {image.size, image.size[::-1]} != {(width, height), (height, width)}:
        raise OtherSize(f"it has {image.width}x{image.height} pixels, but must have {width}x{height}")


def upright_shape(image: Image) -> tuple[int, int, int]:
    """The shape (C, H, W) that an opened image will have, as far as its header tells; it is not decoded."""
    width, height = image.size
    knows_exif = image.format != "PNG" or "exif" in image.info  # Pillow would decode a PNG to look for it at the end
    if knows_exif and image.getexif().get(_ORIENTATION, 1) in range(5, 9):
        width, height = height, width
    return (1 if image.mode in _GRAY_MODES else 3, height, width)


def straighten_picture(image: Image, mode: str, background: str = BACKGROUND) -> OpenedPicture:
    """Turn an image upright, put it on a background if it is transparent, and convert it.

    Args:
        image: An opened image.
        mode: `L`, `RGB`, or `auto`: L for images without color, and RGB for others.
        background: A color as Pillow names it, `white` or `#ffffff`.
    """
    from PIL import Image as Images
    from PIL import ImageOps

    treatments = set()
    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        treatments.add("orientation")
    if mode == "auto":
        mode = "L" if image.mode in _GRAY_MODES else "RGB"
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] != 255:  # files have an alpha channel for no reason, too
            whole = Images.new("RGBA", image.size, background)
            whole.alpha_composite(rgba)
            image = whole
            treatments.add("background")
        else:
            image = rgba
    return OpenedPicture(image.convert(mode), frozenset(treatments))
