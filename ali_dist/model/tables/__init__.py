"""Layer tables of every architecture, as data.

Columns follow the paper's appendix and the authors' code: op, kernel, stride, channels, batch norm, bias, dropout
on the layer's input, activation. Channels of maxout layers count before the maxout. `out=OUTPUT` stands for what
the network has to produce: the latent parameters (encoder), the image's channels (decoder), one logit (D).
"""

from __future__ import annotations

from ali_dist.model.tables import paper, points, stabilised
from ali_dist.model.tables.schema import OUTPUT, Architecture, Layer, Table

__all__ = ["ARCHITECTURES", "OUTPUT", "Architecture", "Layer", "Table"]

ARCHITECTURES = {
    "celeba": paper.celeba(),
    "celeba-table": paper.celeba_table(),
    "cifar10": paper.cifar10(),
    "cifar10-table": paper.cifar10(widen=2),
    "digits": stabilised.digits(),
    "imagenet64": paper.imagenet64(),
    "mixture": points.mixture(point_scale=2.83, decoder_layers=6),  # standard deviation of the grid
    "mixture-paper": points.mixture_paper(),
    "mixture-ring": points.mixture(point_scale=0.71, decoder_layers=4),  # of the ring
    "rgb32": stabilised.rgb32(),
    "svhn": paper.svhn(),
}
