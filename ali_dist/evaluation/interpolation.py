"""Ways from one latent vector to another."""

from __future__ import annotations

import torch
from torch import Tensor


def lerp_path(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Equal steps along straight lines, ends included: [R, D] twice -> [R, S, D].

    Source: arXiv 1606.00704, section 4.4.
    """
    at = torch.linspace(0, 1, steps).to(first)[None, :, None]
    return torch.lerp(first[:, None], last[:, None], at)


def slerp_path(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Equal angles along great circles, ends included: [R, D] twice -> [R, S, D].

    slerp(a, b; t) = (sin((1 - t) w) a + sin(t w) b) / sin w, with w the angle between a and b; a straight line where
    that is undefined (parallel or zero vectors). Straight lines between draws of a Gaussian in many dimensions pass
    through the middle, where it has no mass; these do not. Source: White, arXiv 1609.04468, section 2.1.
    """
    at = torch.linspace(0, 1, steps).to(first)[None, :, None]
    cosine = torch.nn.functional.cosine_similarity(first.double(), last.double(), dim=1)
    angle = torch.acos(cosine.clamp(-1, 1))[:, None, None]
    sine = angle.sin()
    a, b = (torch.sin((1 - at) * angle) / sine).to(first), (torch.sin(at * angle) / sine).to(first)
    line = lerp_path(first, last, steps)
    return torch.where(sine > 1e-6, a * first[:, None] + b * last[:, None], line)
