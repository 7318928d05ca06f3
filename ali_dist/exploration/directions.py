"""Directions of latent space that an explorer moves along: principal components, and what a label adds to z."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.report.latent_map import principal_components

MOST_COMPONENTS = 10
MOST_LABELS = 12
FEWEST = 5
"""Samples with a label, and without it, of which a mean is taken."""
_LEAST_SHARE = 1e-6  # of all variance: along less there is nothing but rounding


@dataclass(frozen=True, slots=True)
class Components:
    """The principal components of the encoder's means.

    Attributes:
        center: The mean of the means, float32 [n_z].
        vectors: K components of length 1, float32 [K, n_z], the one of the greatest variance first.
        std: The standard deviation of the means along each, float32 [K].
        shares: The share of the variance that lies along each, 0 to 1, [K].
    """

    center: Tensor
    vectors: Tensor
    std: Tensor
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelDirection:
    """What a class or an attribute adds to z.

    Attributes:
        name: What it is called.
        count: Samples that have it.
        vector: The mean z of those that have it, less the mean z of those that do not, float32 [n_z].
    """

    name: str
    count: int
    vector: Tensor


def find_components(mu: Tensor, most: int = MOST_COMPONENTS) -> Components:
    """Find the principal components of `mu` [N, n_z], N >= 2; those without variance are left out."""
    directions, variances = principal_components(mu)
    shares = variances / variances.sum().clamp_min(1e-300)
    kept = slice(0, min(most, int((shares > _LEAST_SHARE).sum())))
    return Components(
        mu.double().mean(dim=0).float(),
        directions.T[kept].float(),
        variances[kept].sqrt().float(),
        tuple(shares[kept].tolist()),
    )


def find_label_directions(
    mu: Tensor, y: Tensor, names: Sequence[str], most: int = MOST_LABELS
) -> tuple[LabelDirection, ...]:
    """Find what the most frequent labels add to z, in the order of the labels.

    Labels of which fewer than 5 samples have it, or have it not, are left out: such a mean says nothing.

    Args:
        mu: The encoder's means [N, n_z].
        y: Labels of the same samples: classes int64 [N], or attributes float32 [N, A].
        names: Names of the classes or attributes; classes that have none are called by their number.
        most: How many are given at most.
    """
    classes = max(len(names), int(y.max()) + 1) if y.dim() == 1 and len(y) else len(names)
    has = torch.nn.functional.one_hot(y, classes).bool() if y.dim() == 1 else y > 0.5
    counts = has.sum(dim=0)
    by_count = counts.argsort(descending=True, stable=True).tolist()
    usable = [place for place in by_count if FEWEST <= counts[place] <= len(mu) - FEWEST]
    return tuple(
        LabelDirection(
            names[place] if place < len(names) else str(place),
            int(counts[place]),
            mu[has[:, place]].mean(dim=0) - mu[~has[:, place]].mean(dim=0),
        )
        for place in sorted(usable[:most])
    )
