"""How many modes of a Gaussian mixture a decoder covers, and how well.

All components have equal weight and covariance std^2 I, so that the component of highest responsibility is the one
with the nearest mean. Two families of definitions are in use, and they do not agree:
- with a quality threshold: a sample is of high quality within 3 std of its nearest mean, and only those count;
  source: Lin et al., PacGAN (arXiv 1712.04086), and its public code.
- without: any sample counts for its nearest component; source: Dumoulin et al. (arXiv 1606.00704), 2-D experiment.
The first can be gamed by scatter (each of 25 discs catches something), so it is never read without the share of
high-quality samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUALITY_RADIUS = 3.0


def nearest_mode(points: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `points` [N, D], the index of the nearest of `means` [K, D], int64 [N], and its distance [N]."""
    distance, mode = torch.cdist(points.double(), means.double()).min(dim=1)
    return mode, distance


def mode_coverage(samples: Tensor, means: Tensor, std: float) -> dict[str, float]:
    """Measure how decoder samples [N, D] cover K modes with means [K, D].

    Returns:
        modes: Modes with at least one sample of high quality (0 to K).
        high_quality: Share of samples within 3 std of their nearest mean (0 to 1; a perfect 2-D sampler: 0.989).
        reverse_kl: KL(modes of high-quality samples || uniform), nats (0 to ln K; ln K if none is of high quality).
        modes_assigned: Modes that are nearest to at least one sample, whatever its distance (0 to K).
    """
    mode, distance = nearest_mode(samples, means)
    is_good = distance < QUALITY_RADIUS * std
    counts = torch.bincount(mode[is_good], minlength=len(means)).double()
    return {
        "modes": float((counts > 0).sum()),
        "high_quality": float(is_good.double().mean()),
        "reverse_kl": kl_to_uniform(counts) if bool(is_good.any()) else math.log(len(means)),
        "modes_assigned": float(len(mode.unique())),
    }


def kl_to_uniform(counts: Tensor) -> float:
    """KL divergence (nats) of a histogram [K], with at least one count, from the uniform distribution over its bins."""
    return max(0.0, math.log(len(counts)) - histogram_entropy(counts))


def histogram_entropy(counts: Tensor) -> float:
    """Entropy (nats) of a histogram [K] with at least one count."""
    share = counts.double() / counts.sum()
    return float(-torch.xlogy(share, share).sum())


def right_mode_share(x: Tensor, x_rec: Tensor, means: Tensor) -> float:
    """Share (0 to 1) of points [N, D] whose reconstruction is nearest to the same mode as the point itself."""
    is_same = nearest_mode(x, means)[0] == nearest_mode(x_rec, means)[0]
    return float(is_same.double().mean())
