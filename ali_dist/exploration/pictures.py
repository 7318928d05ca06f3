"""Pictures that a browser sends and is sent: files of any size in, small PNGs out."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from ali_dist.data.shards.codec import Sample, channels_first
from ali_dist.data.shards.pictures import OtherSize, check_size, open_image, straighten_picture
from ali_dist.data.sources.image_files import readable_formats
from ali_dist.data.sources.images import CenterCrop
from ali_dist.errors import InputError
from ali_dist.model.data_spec import DataSpec
from ali_dist.report.embedding import data_url

MOST_BYTES = 64_000_000
"""Bytes of a file that is taken; how many pixels are decoded, `data.shards.pictures` says."""


def read_picture(payload: bytes, spec: DataSpec) -> Sample:
    """Decode a file as `prepare` does: upright, opaque, in the data's channels, its middle square at their size.

    Args:
        payload: The file.
        spec: What the data are: images of 1 or 3 channels.

    Returns:
        uint8 [C, H, W].

    Raises:
        InputError: It is no picture, has too many pixels, or cannot be brought to the data's shape.
    """
    channels, height, width = spec.shape
    if len(payload) > MOST_BYTES:
        raise InputError(f"The picture has {len(payload):,} bytes, but at most {MOST_BYTES:,} are taken: reduce it.")
    try:
        with open_image(payload, readable_formats()) as image:
            if height == width:
                return np.array(CenterCrop(height, grey=channels == 1)(image)[0])
            check_size(image, height, width)
            x = channels_first(straighten_picture(image, "L" if channels == 1 else "RGB").image)
            if x.shape != spec.shape:
                raise OtherSize(f"it has {x.shape[2]}x{x.shape[1]} pixels, but must have {width}x{height}")
            return np.array(x)
    except ValueError as error:
        raise InputError(f"The picture cannot be used ({str(error).rstrip('.')}): give another one.") from error


def picture_url(x: Tensor, side: int) -> str:
    """An image [C, H, W] in [0, 1], of 1 or 3 channels, as a `data:` url of a PNG; values are never stretched.

    Small images are enlarged to about `side` pixels with a smooth kernel, as in the report.
    """
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    scale = max(1, round(side / max(image.size)))
    file = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(
        file, "PNG", compress_level=1
    )
    return data_url("png", file.getvalue())
