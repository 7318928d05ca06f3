"""Encode one sample as bytes, and decode it.

Plain PNG and JPEG files take the short way of `plain_images`; all others go through Pillow, which is imported only
where images are compressed. Both release the interpreter lock while they decode, and raise on truncated files.
(torchvision's decoders are deprecated since its 0.29.)
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.pictures import BACKGROUND, OtherSize, check_size, open_image, straighten_picture
from ali_dist.data.shards.plain_images import decode_plain

if TYPE_CHECKING:
    from PIL.Image import Image

Sample = NDArray[Any]
JPEG_QUALITY = 95
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What may be in the tars of others, as Pillow names it; it is told apart by content."""
_NPY = re.compile(
    rb"\x93NUMPY(\x01\x00..|[\x02\x03]\x00....)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((?P<shape>[\d, ]*)\), \} *\n",
    re.DOTALL,
)


def encode_sample(x: Sample, encoding: str) -> bytes:
    """Encode a sample as its little-endian bytes (raw), or a uint8 image [1 or 3, H, W] as PNG or JPEG."""
    if encoding == "raw":
        return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<")).tobytes()
    from PIL import Image as Images

    image = Images.fromarray(np.ascontiguousarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def make_decoder(encoding: str, out: Sample, background: str = BACKGROUND) -> Callable[[int, memoryview], None]:
    """Make a function that decodes a payload into a row of `out` [m, *shape].

    `background` is the color under transparent images.

    The function raises ValueError with the reason if the payload is not a sample of that shape and dtype.
    """
    shape = out.shape[1:]
    if encoding != "raw":

        def decode_image(row: int, payload: memoryview) -> None:
            if encoding == "npy":
                image = read_npy(payload, channels=shape[0])
            else:
                image, _ = read_image(payload, shape, background)
            if image.shape != shape:
                raise ValueError(f"its shape is {image.shape}, but it must be {shape}")
            out[row] = image

        return decode_image
    # Copying bytes is several times as fast as making an array of each sample.
    size = out.nbytes // len(out)
    target = out.reshape(-1).view(np.uint8).data

    def decode_raw(row: int, payload: memoryview) -> None:
        if len(payload) != size:
            raise ValueError(f"it holds {len(payload)} bytes, but {out.dtype} {shape} needs {size}")
        target[row * size : (row + 1) * size] = payload

    return decode_raw


def read_image(
    payload: bytes | memoryview, shape: tuple[int, ...] | None = None, background: str = BACKGROUND
) -> tuple[Sample, frozenset[str]]:
    """Decode an 8-bit image to uint8 [C, H, W], upright and opaque; of several frames, the first.

    Args:
        payload: A file in one of `IMAGE_FORMATS`.
        shape: The shape that is needed. Images of another size are refused before they are decoded, and gray ones are
            repeated where C is 3. By default any shape: C is 1 for gray images and 3 for others.
        background: Color under transparent images.

    Returns:
        The image, and what was done to it (see `OpenedPicture`).

    Raises:
        OtherSize: The image has another size or more channels than `shape`.
        ValueError: The image cannot be decoded; the message says why.
    """
    x, treatments = decode_plain(payload, None if shape is None else (shape[1], shape[2])), frozenset[str]()
    if x is None:
        with open_image(payload, IMAGE_FORMATS) as image:
            if shape is not None:
                check_size(image, *shape[1:])
            picture, treatments = straighten_picture(image, "RGB" if shape and shape[0] == 3 else "auto", background)
            x = channels_first(picture)
    elif len(x) == 1 and shape is not None and shape[0] == 3:
        x = np.repeat(x, 3, axis=0)
    if shape is not None and x.shape != shape:
        raise OtherSize(f"its shape is {x.shape}, but must be {shape}")
    return x, treatments


def channels_first(image: Image) -> Sample:
    """Return the pixels of a gray or RGB image as uint8 [1 or 3, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_npy(payload: bytes | memoryview, channels: int | None = None) -> Sample:
    """Decode an .npy file with a uint8 image to [C, H, W]: one of [H, W], [H, W, 1 or 3] or [1 or 3, H, W].

    With `channels` 3, a gray image is repeated. np.load will not do: it parses headers with `ast`, which fails at
    random when threads use it at the same time (CPython 3.11, gh-106905), and samples are read by threads.

    Raises:
        ValueError: It is not such a file; the message says why.
    """
    data = bytes(payload)
    match = _NPY.match(data)
    if match is None:
        raise ValueError("it is not an .npy file with uint8 numbers in C order")
    length_bytes = 2 if data[6] == 1 else 4  # size of the field with the header's length, by the format's version
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    shape = tuple(int(n) for n in match["shape"].split(b",") if n.strip())
    if len(data) - start != math.prod(shape):
        raise ValueError(f"it holds {len(data) - start} bytes, but uint8 {shape} needs {math.prod(shape)}")
    pixels = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    channels_are_first = len(shape) == 3 and shape[0] in (1, 3)
    channels_are_last = len(shape) == 3 and shape[-1] in (1, 3)
    if len(shape) == 2:
        image = pixels[None]
    elif channels_are_first != channels_are_last:
        image = pixels if channels_are_first else pixels.transpose(2, 0, 1)
    else:
        raise ValueError(f"its shape is {shape}, but must be (H, W), (H, W, 1 or 3) or (1 or 3, H, W)")
    return np.repeat(image, 3, axis=0) if len(image) == 1 and channels == 3 else image
