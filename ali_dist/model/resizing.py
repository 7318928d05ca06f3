"""How maps change their side without checkerboards: averages down, bilinear up, and pixels folded into channels.

Everything here can be differentiated twice, keeps the memory format and copies nothing between host and device.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resize = Literal["none", "down", "up"]


class SubpixelConv(nn.Conv2d):
    """A 3x3 convolution to r^2 C channels, shuffled into pixels: [B, C_in, H, W] -> [B, C, rH, rW].

    Its work is done at the small side. Source: arXiv 1609.05158.

    Args:
        channels_in: C_in.
        channels: C.
        factor: r.
        bias: Whether the r^2 C channels have biases.
    """

    def __init__(self, channels_in: int, channels: int, factor: int, *, bias: bool) -> None:
        super().__init__(channels_in, channels * factor**2, 3, padding=1, bias=bias)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(x), self.factor)

    @torch.no_grad()
    def start_bilinear(self) -> None:
        """Make of the weights a 1x1 convolution and a bilinear enlargement, so that no grid is there at the start.

        Kernels drawn for each of the r^2 phases by itself would show as one (arXiv 1707.02937, whose remedy, equal
        kernels, starts at blocks of r x r pixels).
        """
        phases = self.weight.unflatten(0, (-1, self.factor**2))
        pointwise = phases[:, 0].sum((-1, -2))  # of the same variance as its nine taps together
        taps = _bilinear_taps(self.factor).to(self.weight)
        kernels = (taps[:, None, :, None] * taps[None, :, None, :]).flatten(0, 1)  # [r^2, 3, 3]
        phases.copy_(pointwise[:, None, :, None, None] * kernels[None, :, None])


def _bilinear_taps(factor: int) -> Tensor:
    """[r, 3]: the weights that each of r pixels made of one gives to the pixel before it, itself and the next one."""
    offset = (torch.arange(factor) + 0.5) / factor - 0.5
    return torch.stack([(-offset).clamp_min(0), 1 - offset.abs(), offset.clamp_min(0)], dim=1)


def halve_sides(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H / 2, W / 2]: means of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def double_sides(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: bilinear, which is the filter [1, 3, 3, 1] / 4 along each axis."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
