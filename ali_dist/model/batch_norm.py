"""Batch norm whose statistics may be of all ranks' images, and which is faster than torch's on a CPU.

Shapes: images are [B, C, H, W], other values [B, C].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SumOverRanks = Callable[[Tensor], Tensor]


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics are of the rows of all ranks, where there are several and training says so.

    Rows may be spread unevenly. With one rank it computes what torch's own batch norm does, faster on a CPU; in
    evaluation it is torch's own, whose parameters, buffers and names it has. torch's SyncBatchNorm is for GPUs only.

    Attributes:
        sum_over_ranks: Sum of a tensor over all ranks, the same on each. Collective. None: this rank's rows alone.
    """

    sum_over_ranks: SumOverRanks | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.sum_over_ranks is not None:
            return self._normalize_globally(x)
        if self.training and _has_fast_statistics(x):
            return self._normalize_on_cpu(x)
        return super().forward(x)

    def _normalize_globally(self, x: Tensor) -> Tensor:
        assert self.sum_over_ranks is not None
        self._check_input_dim(x)
        mean, variance, count = _global_statistics(x, self.sum_over_ranks)
        self._track(mean, variance * (count / (count - 1)))
        y: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, variance, count, self.eps, self.sum_over_ranks)
        return y

    def _normalize_on_cpu(self, x: Tensor) -> Tensor:
        mean, variance = _image_statistics(x.detach())
        count = x.numel() // x.shape[1]
        self._track(mean, variance * (count / (count - 1)))
        y: Tensor = _NormalizeOnCPU.apply(x, self.weight, self.bias, mean, variance, self.eps)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


def keep_out_of_compiled_graphs() -> None:
    """Tell torch's compiler to leave batch norm over all ranks alone: call it before networks are compiled.

    A collective in a compiled graph would have to be known to the compiler; a break in the graph is as fast. This loads
    the compiler, which takes a second or more, so it is not done where nothing is compiled.
    """
    _GlobalBatchNorm._normalize_globally = torch.compiler.disable(  # type: ignore[method-assign]
        inspect.unwrap(_GlobalBatchNorm._normalize_globally)
    )


class BatchNorm1d(_GlobalBatchNorm, nn.BatchNorm1d):
    """See `_GlobalBatchNorm`; of [B, C]."""


class BatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    """See `_GlobalBatchNorm`; of [B, C, H, W]."""


BatchNorm = BatchNorm1d | BatchNorm2d


def _global_statistics(x: Tensor, sum_over_ranks: SumOverRanks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance [C] fp32 of all ranks' values, and how many those are for each channel. Collective."""
    x = x.detach().float()
    mean, variance = _image_statistics(x) if _has_fast_statistics(x) else _statistics(x)
    mean, variance = mean.double(), variance.double()
    count = torch.full_like(mean[:1], x.numel() / x.shape[1])
    # In fp64, in which a variance may be taken as a difference of squares.
    moments = sum_over_ranks(torch.cat([count * mean, count * (variance + mean.square()), count]))
    total, total_of_squares, count = moments.split([len(mean), len(mean), 1])  # no value of which the host waits for
    global_mean = total / count
    global_variance = (total_of_squares / count - global_mean.square()).clamp_min(0)
    return global_mean.float(), global_variance.float(), count.float()


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance [C] of values [B, C, ...]."""
    variance, mean = torch.var_mean(x, _batch_axes(x), correction=0)
    return mean, variance


_FEWEST_PIXELS = 4  # with fewer, torch's own way is as fast


def _has_fast_statistics(x: Tensor) -> bool:
    """Whether `_image_statistics` is the faster way: of fp32 images on a CPU, in torch's usual layout."""
    is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    has_pixels = x.dim() == 4 and len(x) > 0 and x.shape[2:].numel() >= _FEWEST_PIXELS
    return is_plain and has_pixels and x.is_contiguous()


def _image_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance [C] of images [B, C, H, W], in two passes over them.

    Sums over the last axis use the CPU's vectors. torch's batch norm takes 4 times as long, its `var_mean` 10 times.
    """
    count = x.numel() / x.shape[1]
    mean = x.flatten(2).sum(2).sum(0) / count
    spread = torch.linalg.vector_norm((x - _per_channel(mean, x)).flatten(2), dim=2)
    return mean, spread.square().sum(0) / count


class _NormalizeOnCPU(torch.autograd.Function):
    """Batch norm with the statistics [C] of these very images, differentiated through these, too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable  # D with batch norm has no gradient penalty
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        dx = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, scale, True, ctx.eps, wanted
        )
        return *dx, None, None, None


class _Normalize(torch.autograd.Function):
    """Batch norm with given statistics [C] of all ranks' values, differentiated through these, too.

    The backward pass is collective: the ranks' losses are summed, so that each rank's values have a part in all
    gradients. The gradients of weight and bias are this rank's part.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        sum_over_ranks: SumOverRanks,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.sum_over_ranks = sum_over_ranks
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable  # D with batch norm has no gradient penalty
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        axes = _batch_axes(x)
        dy, normed = grads[0].float(), (x.float() - _per_channel(mean, x)) * _per_channel(scale, x)
        d_weight, d_bias = (dy * normed).sum(axes), dy.sum(axes)
        sums = ctx.sum_over_ranks(torch.stack([d_weight, d_bias]))
        through_scale, through_mean = sums / count
        dx = dy - _per_channel(through_mean, x) - normed * _per_channel(through_scale, x)
        dx = dx * _per_channel(weight * scale, x)
        return dx.to(x.dtype), d_weight, d_bias, None, None, None, None, None


def _batch_axes(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values [C], shaped so that they meet the channels of `x`."""
    return values.view(-1, *[1] * (x.dim() - 2))
