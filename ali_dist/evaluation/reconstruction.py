"""How close reconstructions G(z), z ~ q(z|x), come to x."""

from __future__ import annotations

from torch import Tensor


def mean_squared_error(x: Tensor, x_rec: Tensor) -> float:
    """Mean over samples and values of (x - x_rec)^2, for images [N, C, H, W] in [0, 1]."""
    assert x.shape == x_rec.shape, f"{tuple(x.shape)} against {tuple(x_rec.shape)}"
    return float((x.double() - x_rec.double()).square().mean())


def mean_squared_distance(x: Tensor, x_rec: Tensor) -> float:
    """Mean over samples of |x - x_rec|^2, summed over coordinates, for points [N, D]; in squared data units."""
    return mean_squared_error(x, x_rec) * x.shape[1]


def mean_image_error(train: Tensor, holdout: Tensor) -> float:
    """The `mean_squared_error` on `holdout` of answering everything with the mean image of `train`, [N, C, H, W]."""
    return mean_squared_error(holdout, train.double().mean(dim=0).expand_as(holdout))
