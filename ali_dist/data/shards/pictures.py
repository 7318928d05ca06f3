"""Bring a decoded image into the form that is stored and learned from: upright, opaque, 8 bits, gray or RGB.

What lies under transparent pixels is garbage in many real files (icons, cut-outs), and nobody sees it: transparent
images are put on a background. Photographs are turned as their camera noted. 16 bits a channel become 8.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = "white"
_ORIENTATION = 0x0112  # the Exif tag
MAX_PIXELS = 128_000_000  # of one decoded image: 512 MB, and thrice that where it is transparent
_DARK = 4096  # 16-bit images that stay below are nearly black at 8 bits: cameras and scanners of 12 bits write them
# Of Pillow's decoders.
_READ_ERRORS = (OSError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error, RuntimeError)


class OtherSize(ValueError):  # noqa: N818  (it reads better where it is caught)
    """An image has not the size that is needed."""


class OpenedPicture(NamedTuple):
    """An image and what was done to it.

    Attributes:
        image: Its pixels, of mode L or RGB.
        treatments: Some of `background` (it had transparent pixels, which were put on one), `orientation` (it was
            turned), `16-bit` (it had 16 bits a channel, of which 65535 became 255), `dark-16-bit` (and all of them were
            below 4096), `cmyk` (it had printing colors), and `first-frame` (it had more frames or pages).
    """

    image: Image
    treatments: frozenset[str]


@contextlib.contextmanager
def open_image(payload: bytes | memoryview, formats: tuple[str, ...]) -> Iterator[Image]:
    """Open an image in one of Pillow's formats; it is decoded when its pixels are first used.

    Raises:
        ValueError: The image cannot be decoded, which may come out within the block; the message says why.
    """
    from PIL import Image as Images

    if not len(payload):
        raise ValueError("it is empty (0 bytes)")
    Images.MAX_IMAGE_PIXELS = None  # it counts the pixels of the file; `straighten_picture` those that are decoded
    names = " or ".join(", ".join(formats).rsplit(", ", 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on files that it reads nevertheless
            image = Images.open(io.BytesIO(payload), formats=formats)
        with image:
            yield image
    except _READ_ERRORS as error:
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
    return (1 if _is_gray(image) else 3, height, width)


def straighten_picture(
    image: Image, mode: str, background: str = BACKGROUND, crop: Callable[[Image], Image] = lambda image: image
) -> OpenedPicture:
    """Turn an image upright, put it on a background if it is transparent, and convert it.

    Args:
        image: An opened image, as its file has it or reduced by `draft`.
        mode: `L`, `RGB`, or `auto`: L for images without color, and RGB for others.
        background: A color as Pillow names it, `white` or `#ffffff`.
        crop: Applied when all is done but the turning.

    Raises:
        ValueError: It has too many pixels, or pixels of no known range; the message says so.
    """
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, but at most {MAX_PIXELS // 1_000_000} million are decoded: "
            f"make it smaller"
        )
    treatments = _describe_file(image)
    _scale_transparent_gray(image)
    is_transparent = _find_transparent_color(image)
    orientation = 1 if image.format == "TIFF" else _read_orientation(image)  # Pillow turns TIFFs itself
    if orientation != 1:
        treatments.add("orientation")
    image.load()  # here, while its file is open and errors are explained
    if mode == "auto":
        mode = "L" if _is_gray(image) else "RGB"
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image, treatments)
    elif is_transparent is not None:
        image = _add_alpha(image, is_transparent)
    if image.mode == "CMYK":
        treatments.add("cmyk")
    if image.has_transparency_data:
        image = _lay_on_background(image, background, treatments)
    image = crop(image if image.mode == mode else image.convert(mode))
    return OpenedPicture(_turn(image, orientation), frozenset(treatments))


def _is_gray(image: Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")


def _describe_file(image: Image) -> set[str]:
    """What only a file that is not decoded yet can tell."""
    treatments = set()
    if image.format != "MPO" and getattr(image, "is_animated", False):  # cameras store previews as further frames
        treatments.add("first-frame")
    tiles = getattr(image, "tile", None)
    if tiles and ";16" in str(tiles[0].args):
        treatments.add("16-bit")
    if image.format == "TIFF" and _read_orientation(image) != 1:
        treatments.add("orientation")
    return treatments


def _read_orientation(image: Image) -> int:
    """The number in the Exif tag, 1 to 8; 1 where there is none or the tag cannot be read."""
    if image.format == "PNG":
        image.load()  # reading its Exif does that, too, but would hide that the image is cut short
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (*_READ_ERRORS, ValueError, TypeError, KeyError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turn(image: Image, orientation: int) -> Image:
    if orientation == 1:
        return image
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation])


def _scale_to_8_bits(image: Image, treatments: set[str]) -> Image:
    """Map the whole range of 16 bits to that of 8; nothing says which part of it an image was meant to use."""
    from PIL import Image as Images

    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit numbers"
        raise ValueError(f"its pixels are {kind}, whose range is not known: save it with 8 or 16 bits a channel")
    values = np.asarray(image)
    treatments.add("16-bit")
    transparent = image.info.get("transparency") if image.format == "PNG" else None
    seen = values if transparent is None else values[values != transparent]
    if seen.size and seen.max() < _DARK:
        treatments.add("dark-16-bit")
    scaled = Images.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    return scaled if transparent is None else _add_alpha(scaled, values == transparent)


def _scale_transparent_gray(image: Image) -> None:
    """Bring the gray that a PNG of 2 or 4 bits calls transparent to 8 bits, as Pillow does with its pixels only."""
    gray, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format == "PNG" and isinstance(gray, int) and tiles:
        image.info["transparency"] = gray * {"L;2": 85, "L;4": 17}.get(tiles[0].args, 1)


def _find_transparent_color(image: Image) -> NDArray[np.bool_] | None:
    """Where an RGB PNG of 16 bits has the color that it calls transparent, [H, W]; None if it is no such file.

    Pillow keeps the upper bytes of such pixels alone, but compares them with all 16 bits. The lower bytes are decoded,
    too, because other colors may have the same upper ones.
    """
    color = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if image.format != "PNG" or not isinstance(color, tuple) or not tiles or tiles[0].args != "RGB;16B":
        return None
    low, high = (np.asarray(_decode_again(image, order)) for order in ("RGB;16L", "RGB;16B"))
    found: NDArray[np.bool_] = ((high.astype(np.uint16) << 8 | low) == np.array(color, np.uint16)).all(axis=-1)
    return found


def _decode_again(image: Image, order: str) -> Image:
    """Decode the file of a PNG that is not loaded, taking pixels for stored in another order of their bytes."""
    from PIL import Image as Images

    file = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    file.seek(0)
    other = Images.open(file, formats=("PNG",))
    other.tile = [tile._replace(args=order) for tile in other.tile]
    other.load()
    file.seek(position)
    return other


def _add_alpha(image: Image, is_transparent: NDArray[np.bool_]) -> Image:
    """Give an image of mode L or RGB an alpha channel, from where it is transparent [H, W]."""
    from PIL import Image as Images

    image.info.pop("transparency", None)
    image.putalpha(Images.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8)))
    return image


def _lay_on_background(image: Image, background: str, treatments: set[str]) -> Image:
    from PIL import Image as Images

    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:  # files have an alpha channel for no reason, too
        return rgba
    whole = Images.new("RGBA", image.size, background)
    whole.alpha_composite(rgba)
    treatments.add("background")
    return whole
