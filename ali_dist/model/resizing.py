"""How maps change their side without checkerboards: means of 2x2 pixels down, bilinear up.

Both can be differentiated twice, keep the memory format and copy nothing between host and device.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Resize = Literal["none", "down", "up"]


def halve_sides(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H / 2, W / 2]: means of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def double_sides(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: bilinear, which is the filter [1, 3, 3, 1] / 4 along each axis."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Enlargement(nn.Module):
    """`double_sides` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return double_sides(x)
