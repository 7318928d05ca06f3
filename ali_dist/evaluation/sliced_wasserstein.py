"""Multi-scale sliced Wasserstein distance: how far the patches of two sets of images are apart, on every scale.

It needs neither labels nor a trained network. Each image is split into a Laplacian pyramid, whose levels hold detail
from fine to coarse; patches of 7x7 pixels are compared level by level, as two clouds of points, by the mean distance of
their sorted projections onto random directions.

Source: Karras et al., ICLR 2018 (arXiv 1710.10196), section 5 and appendix. What differs here, and why:
- Sizes are for CPUs: up to 2,000 images, 32 patches of each, 128 directions (there 16,384, 128 and 512).
- Patches are taken at the same places of every image, so that the order of images means nothing and equal sets are
  at distance 0; on small levels those are all places there are.
- Channels are normalized by the real patches' mean and standard deviation on both sides. With statistics of its own on
  either side, as there, a wrong color or contrast of the whole set would be invisible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.evaluation.batched import BATCH, make_generator

PATCH = 7
"""Side of a patch in pixels: images must be at least as large."""
PATCHES_PER_IMAGE = 32
DIRECTIONS = 128
SMALLEST_LEVEL = 16
"""Levels are halved while the result has at least so many pixels a side."""
UNIT = 1000.0
"""Distances are given in thousandths, as in the paper."""
_LEAST_STD = (
    1e-3  # of a channel of values in [0, 1]: a fourth of one of 256 levels, so that a constant one is not noise
)
_DIRECTIONS_AT_ONCE = 32


@dataclass(frozen=True)
class _RealLevel:
    """One level of the real images, prepared.

    Attributes:
        places: Flat indices of the patches' pixels, [patches, 49], in an image of this level.
        mean: Mean of each channel over the patches, [C, 1].
        std: Likewise.
        directions: Unit vectors [C * 49, directions].
        projections: Sorted projections of the real patches, [directions, N * patches].
    """

    places: Tensor
    mean: Tensor
    std: Tensor
    directions: Tensor
    projections: Tensor


@dataclass(frozen=True)
class SlicedWasserstein:
    """The sliced Wasserstein distance to one set of real images, which is prepared once.

    Attributes:
        count: Number of real images; what they are compared with has as many.
        levels: What is known of each level of the pyramid, from fine to coarse.
    """

    count: int
    levels: tuple[_RealLevel, ...]

    @classmethod
    def prepare(cls, real: Tensor, *, seed: int) -> Self:
        """Prepare the comparison with `real` [N, C, H, W] in [0, 1], H and W >= 7; `seed` draws places and directions.

        The distance is biased by the number of images (fewer: larger), so only figures of equal numbers compare.

        Raises:
            ValueError: The images have another shape, or fewer than 7 pixels a side.
        """
        if real.ndim != 4 or min(real.shape[2:]) < PATCH:
            raise ValueError(f"Images must be [N, C, H, W] of at least {PATCH} pixels a side, not {tuple(real.shape)}.")
        draws = make_generator(seed, "sliced Wasserstein distance")
        return cls(len(real), tuple(_prepare_level(level, draws) for level in laplacian_pyramid(real)))

    def distances(self, x: Tensor) -> list[float]:
        """The distance of images [N, C, H, W], as many as there are real ones, for each level from fine to coarse.

        Returns:
            In thousandths of the real patches' standard deviation, at least 0.

        Raises:
            ValueError: There are more or fewer images than real ones.
        """
        if len(x) != self.count:
            raise ValueError(f"{len(x)} images cannot be compared with {self.count}: give as many.")
        pairs = zip(self.levels, laplacian_pyramid(x), strict=True)
        return [_level_distance(real, level) for real, level in pairs]

    def distance(self, x: Tensor) -> float:
        """The mean of `distances` over the levels."""
        distances = self.distances(x)
        return sum(distances) / len(distances)


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Split images [N, C, H, W] into levels of detail, from fine to coarse; the last is the small image itself.

    Each level is half as large as the one before, and no smaller than 16 pixels a side; a smaller image is its own only
    level. The levels, each enlarged and added to the next finer one, give the image again.
    Source: Burt and Adelson, IEEE Transactions on Communications 31 (1983), with their 5x5 kernel.
    """
    levels = []
    while min(x.shape[2:]) >= 2 * SMALLEST_LEVEL:
        small = halve_images(x)
        levels.append(x - double_images(small, x.shape[2], x.shape[3]))
        x = small
    return [*levels, x]


def halve_images(x: Tensor) -> Tensor:
    """Blur images [N, C, H, W] and take every other pixel: [N, C, ceil(H / 2), ceil(W / 2)]."""
    return _blur(x)[:, :, ::2, ::2]


def double_images(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarge images by zeros between their pixels and a blur that fills them: what `halve_images` undoes, roughly."""
    sparse = x.new_zeros(len(x), x.shape[1], height, width)
    sparse[:, :, ::2, ::2] = x
    return 4 * _blur(sparse)


def _blur(x: Tensor) -> Tensor:
    """Convolve each channel with the binomial 5x5 kernel; images are mirrored at their edges."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype) / 16
    channels = x.shape[1]
    rows = line.view(1, 1, 1, 5).expand(channels, 1, 1, 5)
    columns = line.view(1, 1, 5, 1).expand(channels, 1, 5, 1)
    blurred = []
    for batch in x.split(BATCH):
        padded = F.pad(batch, (2, 2, 2, 2), mode="reflect")
        blurred.append(F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels))
    return torch.cat(blurred)


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of sorted projections [directions, N]: W1 in one dimension, over the directions."""
    total = sum(float((line.double() - other.double()).abs().sum()) for line, other in zip(a, b, strict=True))
    return total / a.numel()


def project_sorted(patches: Tensor, directions: Tensor) -> Tensor:
    """Project points [N, D] onto directions [D, K] and sort each projection: [K, N]."""
    parts = directions.split(_DIRECTIONS_AT_ONCE, dim=1)
    # NumPy sorts values alone, several times faster than torch, which also gives their order.
    return torch.cat([torch.from_numpy(np.sort((patches @ part).T.numpy(), axis=1)) for part in parts])


def _prepare_level(level: Tensor, draws: torch.Generator) -> _RealLevel:
    channels, height, width = level.shape[1:]
    places = _draw_places(height, width, draws)
    directions = torch.randn(channels * PATCH**2, DIRECTIONS, generator=draws)
    directions /= directions.norm(dim=0)
    patches = _take_patches(level, places)
    values = patches.double().transpose(0, 1).flatten(1)
    mean = values.mean(dim=1).float().view(channels, 1)
    std = values.std(dim=1, correction=0).float().clamp(min=_LEAST_STD).view(channels, 1)
    return _RealLevel(places, mean, std, directions, project_sorted(_normalize(patches, mean, std), directions))


def _draw_places(height: int, width: int, draws: torch.Generator) -> Tensor:
    """Draw where patches lie, without replacement; flat indices [patches, 49] of their pixels."""
    rows, columns = height - PATCH + 1, width - PATCH + 1
    corners = torch.randperm(rows * columns, generator=draws)[:PATCHES_PER_IMAGE]
    offsets = torch.arange(PATCH)
    inside = (offsets[:, None] * width + offsets).flatten()
    starts = torch.div(corners, columns, rounding_mode="floor") * width + corners % columns
    return starts[:, None] + inside


def _take_patches(level: Tensor, places: Tensor) -> Tensor:
    """The patches of a level [N, C, H, W]: [N * patches, C, 49]."""
    patches = level.flatten(2)[:, :, places.flatten()]
    patches = patches.view(len(level), level.shape[1], *places.shape).transpose(1, 2)
    return patches.reshape(-1, level.shape[1], PATCH**2)


def _normalize(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale patches in place, because they are the largest thing here; returns them flat, [N * patches, C * 49]."""
    return patches.sub_(mean).div_(std).flatten(1)


def _level_distance(real: _RealLevel, level: Tensor) -> float:
    patches = _normalize(_take_patches(level, real.places), real.mean, real.std)
    return UNIT * sliced_distance(project_sorted(patches, real.directions), real.projections)
