"""How close reconstructions G(z), z ~ q(z|x), come to x.

Everything is computed in float64 on a part of the samples at a time, so that a split in memory is enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ImageMap = Callable[[Tensor], Tensor]

_VALUES_AT_ONCE = 2**22


def keep_as_is(x: Tensor) -> Tensor:
    """Compare images as they are given."""
    return x


def mean_squared_error(x: Tensor, x_rec: Tensor, convert: ImageMap = keep_as_is) -> float:
    """Mean over samples and values of (x - x_rec)^2, for images [N, C, H, W] in [0, 1].

    Args:
        x: Images.
        x_rec: Their reconstructions.
        convert: What both become before they are compared, such as another size; it maps every image by itself.

    Raises:
        ValueError: They have different shapes.
    """
    if x.shape != x_rec.shape:
        raise ValueError(
            f"Images and reconstructions must have one shape, not {tuple(x.shape)} and {tuple(x_rec.shape)}."
        )
    error = 0.0
    for rows in _parts(x):
        gap = convert(x[rows]).double() - convert(x_rec[rows]).double()
        error += float(gap.square().mean()) * (len(gap) / len(x))
    return error


def mean_squared_distance(x: Tensor, x_rec: Tensor) -> float:
    """Mean over samples of |x - x_rec|^2, summed over coordinates, for points [N, D]; in squared data units."""
    return mean_squared_error(x, x_rec) * x.shape[1]


def mean_image(x: Tensor, convert: ImageMap = keep_as_is) -> Tensor:
    """The mean, float64 [C, H, W], of images [N, C, H, W] after `convert`."""
    mean = torch.zeros_like(convert(x[:1])[0], dtype=torch.float64)
    for rows in _parts(x):
        part = convert(x[rows]).double()
        mean += part.mean(dim=0) * (len(part) / len(x))
    return mean


def constant_image_error(x: Tensor, image: Tensor, convert: ImageMap = keep_as_is) -> float:
    """The `mean_squared_error` on `x` of answering everything with one image, which is not converted."""
    error = 0.0
    for rows in _parts(x):
        gap = convert(x[rows]).double() - image.double()
        error += float(gap.square().mean()) * (len(gap) / len(x))
    return error


def _parts(x: Tensor) -> list[slice]:
    """Rows of `x` [N, ...], about `_VALUES_AT_ONCE` values in each part."""
    step = max(1, _VALUES_AT_ONCE // max(1, x[0].numel()))
    return [slice(start, start + step) for start in range(0, len(x), step)]
