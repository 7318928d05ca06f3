"""How close reconstructions G(z), z from q(z|x), come to x."""

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
    """What `mean_squared_error` gives a model that answers the training set's mean image to everything."""
    return mean_squared_error(holdout, train.double().mean(dim=0).expand_as(holdout))
