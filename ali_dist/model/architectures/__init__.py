"""Layer tables of every architecture, as data.

Columns follow the paper's appendix and the authors' code: op, kernel, stride, channels, batch norm, bias, dropout
on the layer's input, activation. Channels of maxout layers count before the maxout. `out=OUTPUT` stands for what
the network has to produce: the latent parameters (encoder), the image's channels (decoder), one logit (D).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ali_dist.model.architectures import paper, points, residual, stabilised
from ali_dist.model.architectures.schema import OUTPUT, Architecture

__all__ = ["ARCHITECTURES", "OUTPUT", "SIZED_ARCHITECTURES", "Architecture"]

ARCHITECTURES = {
    "celeba": paper.make_celeba(),
    "celeba-table": paper.make_celeba_table(),
    "cifar10": paper.make_cifar10(),
    "cifar10-table": paper.make_cifar10(widen=2),
    "cifar10-untied": paper.make_cifar10(bias="pixel"),
    "digits": stabilised.make_digits(),
    "imagenet64": paper.make_imagenet64(),
    "mixture": points.make_mixture(point_scale=2.83, decoder_layers=6),  # standard deviation of the grid
    "mixture-paper": points.make_mixture_paper(),
    "mixture-ring": points.make_mixture(point_scale=0.71, decoder_layers=4),  # of the ring
    "rgb32": stabilised.make_rgb32(),
    "svhn": paper.make_svhn(),
}
"""The tables of models that work at one size, or on points."""

SIZED_ARCHITECTURES: dict[str, Callable[[int, int], Architecture]] = {
    "residual": residual.make_residual,
    "residual-plain": partial(residual.make_residual, normalized=False),
}
"""What makes the tables of models for several sizes: of (side of the images, `model.depth`)."""
