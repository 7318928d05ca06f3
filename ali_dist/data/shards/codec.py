"""One sample to bytes and back.

Images go through Pillow, imported only where they are compressed: it releases the interpreter lock while it
decodes, and it raises on truncated files. (torchvision's faster decoders are deprecated since its 0.29.)
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Sample = NDArray[Any]
JPEG_QUALITY = 95
_NPY = re.compile(
    rb"\x93NUMPY(\x01\x00..|[\x02\x03]\x00....)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((?P<shape>[\d, ]*)\), \} *\n",
    re.DOTALL,
)


def encode_sample(x: Sample, encoding: str) -> bytes:
    """Payload of a sample: its little-endian bytes (raw), or a PNG or JPEG of a uint8 image [1 or 3, H, W]."""
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


def make_decoder(encoding: str, out: Sample) -> Callable[[int, memoryview], None]:
    """A function that decodes a payload into a row of `out` [m, *shape].

    It raises ValueError with the reason if the payload is not a sample of that shape and dtype.
    """
    shape = out.shape[1:]
    if encoding != "raw":
        read = read_npy if encoding == "npy" else read_image

        def decode_image(row: int, payload: memoryview) -> None:
            image = read(payload, channels=shape[0])
            if image.shape != shape:
                raise ValueError(f"its shape is {image.shape}, but it must be {shape}")
            out[row] = image

        return decode_image
    # Bytes to bytes: several times as fast as by way of an array for each sample.
    size = out.nbytes // len(out)
    target = out.reshape(-1).view(np.uint8).data

    def decode_raw(row: int, payload: memoryview) -> None:
        if len(payload) != size:
            raise ValueError(f"it holds {len(payload)} bytes, but {out.dtype} {shape} needs {size}")
        target[row * size : (row + 1) * size] = payload

    return decode_raw


def read_image(payload: memoryview, channels: int | None = None) -> Sample:
    """Decode an 8-bit PNG or JPEG to uint8 [C, H, W].

    C is 1 for grey images and 3 for others; with `channels` 3, grey ones are repeated. Alpha is dropped.

    Raises:
        ValueError: it cannot be decoded; says why.
    """
    with open_image(payload, ("PNG", "JPEG")) as image:
        grey = image.mode in ("1", "L", "LA") and channels != 3
        return channels_first(image.convert("L" if grey else "RGB"))


@contextmanager
def open_image(payload: bytes | memoryview, formats: tuple[str, ...]) -> Iterator[Image]:
    """An image of 8 bits a channel, in one of Pillow's formats; it is decoded when its pixels are first used.

    Raises:
        ValueError: it cannot be decoded, in the block too; says why.
    """
    from PIL import Image as Images

    names = f"{', '.join(formats[:-1])} or {formats[-1]}"
    try:
        with Images.open(io.BytesIO(payload), formats=formats) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have mode {image.mode}, but 8-bit ones are needed")
            yield image
    except (OSError, SyntaxError, EOFError, IndexError, struct.error, Images.DecompressionBombError) as error:
        raise ValueError(f"it cannot be decoded as {names}, or is cut short") from error


def channels_first(image: Image) -> Sample:
    """Pixels of a grey or RGB image as uint8 [1 or 3, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_npy(payload: bytes | memoryview, channels: int | None = None) -> Sample:
    """Decode an .npy file with a uint8 image to [C, H, W]: one of [H, W], [H, W, 1 or 3] or [1 or 3, H, W].

    With `channels` 3, a grey image is repeated. Not np.load: it takes headers through `ast`, which fails at random
    when threads do so at the same time (CPython 3.11, gh-106905), and samples are read by threads.

    Raises:
        ValueError: it is none; says why.
    """
    data = bytes(payload)
    match = _NPY.match(data)
    if match is None:
        raise ValueError("it is not an .npy file with uint8 numbers in C order")
    width = 2 if data[6] == 1 else 4  # bytes of the header's length, by the format's version
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    shape = tuple(int(n) for n in match["shape"].split(b",") if n.strip())
    if len(data) - start != math.prod(shape):
        raise ValueError(f"it holds {len(data) - start} bytes, but uint8 {shape} needs {math.prod(shape)}")
    pixels = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    first, last = (shape[0] in (1, 3), shape[-1] in (1, 3)) if len(shape) == 3 else (False, False)
    if len(shape) == 2:
        image = pixels[None]
    elif first != last:
        image = pixels if first else pixels.transpose(2, 0, 1)
    else:
        raise ValueError(f"its shape is {shape}, but must be (H, W), (H, W, 1 or 3) or (1 or 3, H, W)")
    return np.repeat(image, 3, axis=0) if len(image) == 1 and channels == 3 else image
