"""One sample to bytes and back.

Images go through Pillow, imported only where they are compressed: it releases the interpreter lock while it
decodes, and it raises on truncated files. (torchvision's faster decoders are deprecated since its 0.29.)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sample = NDArray[Any]
JPEG_QUALITY = 95


def encode(x: Sample, encoding: str) -> bytes:
    """Payload of a sample: its little-endian bytes (raw), or a PNG or JPEG of a uint8 image [1 or 3, H, W]."""
    if encoding == "raw":
        return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<")).tobytes()
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decoder(encoding: str, out: Sample) -> Callable[[int, memoryview], None]:
    """A function that decodes a payload into a row of `out` [m, *shape].

    It raises ValueError with the reason if the payload is not a sample of that shape and dtype.
    """
    shape = out.shape[1:]
    if encoding != "raw":

        def decode_image(row: int, payload: memoryview) -> None:
            image = read_image(payload, channels=shape[0])
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
    from PIL import Image

    try:
        with Image.open(io.BytesIO(payload), formats=("PNG", "JPEG")) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have mode {image.mode}, but 8-bit ones are needed")
            grey = image.mode in ("1", "L", "LA") and channels != 3
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("it cannot be decoded as PNG or JPEG, or is cut short") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
