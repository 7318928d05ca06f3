"""Paths from one latent vector to another."""

from __future__ import annotations

import torch
from torch import Tensor


def lerp_path(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Walk along straight lines in equal steps.

    Args:
        first: Where the lines begin, [R, D].
        last: Where they end, [R, D].
        steps: Number S of points on each line, ends included.

    Returns:
        The points, [R, S, D].

    Source: arXiv 1606.00704, section 4.2.
    """
    t = torch.linspace(0, 1, steps).to(first)[None, :, None]
    return torch.lerp(first[:, None], last[:, None], t)


def slerp_path(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Walk along great circles in equal angles; arguments and result as in `lerp_path`.

    slerp(a, b; t) = (sin((1 - t) w) a + sin(t w) b) / sin w, with w the angle between a and b; a straight line where
    that is undefined (parallel or zero vectors). Straight lines between draws of a Gaussian in many dimensions pass
    through the middle, where it has no mass; these do not. Source: White, arXiv 1609.04468, section 2.1.
    """
    t = torch.linspace(0, 1, steps).to(first)[None, :, None]
    cosine = torch.nn.functional.cosine_similarity(first.double(), last.double(), dim=1)
    angle = torch.acos(cosine.clamp(-1, 1))[:, None, None]
    sine = angle.sin()
    a = (torch.sin((1 - t) * angle) / sine).to(first)
    b = (torch.sin(t * angle) / sine).to(first)
    line = lerp_path(first, last, steps)
    return torch.where(sine > 1e-6, a * first[:, None] + b * last[:, None], line)
