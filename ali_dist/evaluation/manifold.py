"""How many samples look real, and how much of the real data is covered: by neighbors in a space of features.

The manifold of a set is the union of balls around its points, each of which reaches to the point's k-th neighbor.
Source: precision and recall, Kynkäänniemi et al., NeurIPS 2019 (arXiv 1904.06991), section 2; density and coverage,
Naeem et al., ICML 2020 (arXiv 2002.09797), section 3, with its k = 5.

Images with labels are compared in the features of a classifier of theirs; for others there is `fit_random_features`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ali_dist.evaluation.batched import in_batches, make_generator
from ali_dist.evaluation.classifiers import fill_weights

NEIGHBORS = 5
"""The k of k-th neighbors."""
FEWEST = NEIGHBORS + 1
"""Points of a set whose manifold is defined."""
MOST = 2000
"""Points of either side, at most: the cost grows with their square."""
_ROWS_AT_ONCE = 500
_LEAST_STD = 1e-3  # of a feature, relative to the largest: one that hardly varies is not blown up
_WIDTHS = (32, 64, 128)
_EQUAL = 1e-10
"""Squared distance, relative to the points' own squares, below which they count as equal."""


@dataclass(frozen=True)
class RealManifold:
    """The manifold of real features, which is prepared once.

    Attributes:
        points: Real features [N, F].
        radii: Distance of each to its k-th neighbor among the others, [N].
    """

    points: Tensor
    radii: Tensor

    @classmethod
    def fit(cls, points: Tensor) -> Self:
        """Take the manifold of `points` [N, F], N from 6 to 2,000.

        Raises:
            ValueError: They have another shape.
        """
        if points.ndim != 2 or not FEWEST <= len(points) <= MOST:
            raise ValueError(f"Points must be [{FEWEST} to {MOST}, F], not {tuple(points.shape)}.")
        return cls(points, _neighbor_radii(points))

    def measure(self, generated: Tensor) -> dict[str, float]:
        """Measure generated features [M, F], M from 6 to 2,000.

        Figures of equal N and M compare. With N = M large and equal distributions, density is 1 and coverage is
        1 - 2^-5 = 0.969; the ideal values of precision and recall depend on the features.

        Returns:
            precision: Share of generated points within the real manifold.
            recall: Share of real points within the generated manifold.
            density: Mean number of real balls that a generated point lies in, over k; may exceed 1.
            coverage_real: Share of real points whose ball holds a generated point.
        """
        fake_radii = RealManifold.fit(generated).radii
        is_real = torch.zeros(len(generated), dtype=torch.bool)
        balls = 0
        recalled, covered = 0, 0
        for points, radii in zip(self.points.split(_ROWS_AT_ONCE), self.radii.split(_ROWS_AT_ONCE), strict=True):
            distances = _distances(points, generated)
            is_inside = distances <= radii[:, None]
            is_real |= is_inside.any(dim=0)
            balls += int(is_inside.sum())
            covered += int(is_inside.any(dim=1).sum())
            recalled += int((distances <= fake_radii).any(dim=1).sum())
        return {
            "precision": float(is_real.double().mean()),
            "recall": recalled / len(self.points),
            "density": balls / (NEIGHBORS * len(generated)),
            "coverage_real": covered / len(self.points),
        }


def fit_random_features(real: Tensor, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Make a map of images [N, C, H, W] in [0, 1] to features [N, 448] that needs neither labels nor training.

    Three convolutions with random weights that are always the same, each followed by a rectifier; of every layer, the
    mean and the standard deviation of each channel over the image, standardized by those of the real images `real`.
    The evidence: Naeem et al., section 4, find that a random network ranks models more sensibly than one trained on
    ImageNet where the data are unlike photographs. On 600 drawn shapes of 32 pixels, where held-out images have a
    coverage of 0.97, images with a made fault have this one, in these features and in 8x8 thumbnails of the images:
    blur over 5 pixels 0.74 (thumbnails: 0.995), noise of 0.1 0.19 (0.96), color shifted by 0.1 0.53 (0.74), blends of
    two images 0.59 (0.94), no color 0.24 (0.81), one class of eight 0.38 (0.37).

    Args:
        real: Images whose features get mean 0 and standard deviation 1.
        device: Where the convolutions run.

    Returns:
        The map; it raises FloatingPointError where a feature is not finite.
    """
    network = _make_random_network(real.shape[1]).to(device)

    def raw_features(x: Tensor) -> Tensor:
        return in_batches(network, x, device, "random feature map")

    features = raw_features(real)
    mean, std = features.mean(dim=0), features.std(dim=0)
    std = std.clamp(min=_LEAST_STD * float(std.max()) or 1.0)
    return lambda x: (raw_features(x) - mean) / std


class _RandomConvolutions(nn.Module):
    """See `fit_random_features`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, *_WIDTHS)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in zip(widths, widths[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for layer in self.layers:
            x = layer(x).relu()
            features += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
        return torch.cat(features, dim=1)


def _make_random_network(channels: int) -> nn.Module:
    with torch.device("meta"):
        network = _RandomConvolutions(channels)
    fill_weights(network, make_generator(0, "random features"))
    return network.requires_grad_(False).eval()


def _neighbor_radii(points: Tensor) -> Tensor:
    """The distance of each point to its k-th nearest other point, [N]."""
    parts = [_distances(part, points).kthvalue(NEIGHBORS + 1, dim=1).values for part in points.split(_ROWS_AT_ONCE)]
    return torch.cat(parts)  # the nearest of all is the point itself


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances [N, M] in float64 by one matrix product; exactly 0 between equal points, whatever the rounding."""
    a, b = a.double(), b.double()
    sizes = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    squares = sizes - 2 * a @ b.T
    return squares.masked_fill(squares < _EQUAL * sizes, 0).sqrt()
