"""How well the aggregated posterior, z ~ q(z|x) over x from the data, matches the prior N(0, I)."""

from __future__ import annotations

import torch
from torch import Tensor

from ali_dist.evaluation.batched import make_generator

MOST_POINTS = 2000
"""Points of each side that the MMD compares: its cost is quadratic, and its error is below 1e-3 with fewer."""


def latent_match(z_hat: Tensor, seed: int) -> dict[str, float]:
    """Compare encoder samples `z_hat` [N, n_z], N >= 2, with the prior.

    Returns:
        latent_mmd2: Unbiased squared MMD to as many prior draws (0 for a perfect match; may fall below 0 by chance).
        latent_std_min, latent_std_max: Smallest and largest standard deviation of a latent variable (ideal: 1).
    """
    draws = make_generator(seed, "latent")
    chosen = z_hat[torch.randperm(len(z_hat), generator=draws)[:MOST_POINTS]]
    prior = torch.randn(chosen.shape, generator=draws)
    std = z_hat.double().std(dim=0)
    return {
        "latent_mmd2": squared_mmd(chosen, prior, squared_bandwidth=prior_median_squared_distance(z_hat.shape[1])),
        "latent_std_min": float(std.min()),
        "latent_std_max": float(std.max()),
    }


def squared_mmd(a: Tensor, b: Tensor, *, squared_bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of `a` [N, D] and `b` [M, D], N and M >= 2.

    The kernel is exp(-|u - v|^2 / (2 s^2)) with s^2 the squared bandwidth.
    Source: Gretton et al., JMLR 13 (2012), lemma 6 (MMD_u^2).
    """
    a, b = a.double(), b.double()

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(u, v).square() / (2 * squared_bandwidth))

    def within(u: Tensor) -> Tensor:  # mean over pairs of different points; the diagonal is exactly 1
        n = len(u)
        return (kernel(u, u).fill_diagonal_(0).sum()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def prior_median_squared_distance(latent_size: int) -> float:
    """Median of |z - z'|^2 for z, z' ~ N(0, I): the median heuristic, taken on the prior so that it never moves.

    |z - z'|^2 / 2 is chi-squared with n_z degrees of freedom; its median by Wilson and Hilferty's approximation,
    which is within 3 % from 1 degree on.
    """
    return 2 * latent_size * (1 - 2 / (9 * latent_size)) ** 3
