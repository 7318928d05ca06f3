"""Transposed convolutions of a few channels, which on a CPU are faster as a matrix product than by torch's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW_CHANNELS = 4


def is_folded_faster(x: Tensor, channels: int, stride: Sequence[int]) -> bool:
    """Whether `fold_product` beats torch's kernels, which on a CPU are slow for a few channels.

    Args:
        x: Has the device and the precision.
        channels: Of the result.
        stride: Of the convolution.
    """
    is_narrow = channels <= _FEW_CHANNELS and min(stride) > 1
    return is_narrow and x.device.type == "cpu" and x.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")


def fold_product(
    weight: Tensor, x: Tensor, sides: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A transposed convolution as a matrix product whose numbers are added up where kernels overlap.

    Args:
        weight: [C, C', k, k].
        x: [B, C, H, W].
        sides: H' and W'.
        stride: Of the convolution.
        padding: Of the convolution.

    Returns:
        [B, C', H', W'].
    """
    columns = weight.flatten(1).mT @ x.flatten(2)
    return F.fold(columns, tuple(sides), tuple(weight.shape[2:]), padding=tuple(padding), stride=tuple(stride))
