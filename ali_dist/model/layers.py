"""One layer of a table as a module: dropout -> linear map -> batch norm -> activation.

Shapes: images are [B, C, H, W], points are [B, D]; a `Shape` leaves the batch axis out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ali_dist.model.architectures.schema import Architecture, LayerRow, Resize
from ali_dist.model.twice_differentiable import Conv2d, Halving, LeakyReLU

Shape = tuple[int, ...]


SumOverRanks = Callable[[Tensor], Tensor]


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics are of the rows of all ranks, where there are several and training says so.

    Rows may be spread unevenly. Everywhere else (one rank, evaluation) it is torch's own batch norm, whose parameters,
    buffers and names it has. torch's SyncBatchNorm is for GPUs only.

    Attributes:
        sum_over_ranks: Sum of a tensor over all ranks, the same on each. Collective. None: this rank's rows alone.
    """

    sum_over_ranks: SumOverRanks | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.sum_over_ranks is None:
            return super().forward(x)
        return self._normalize_globally(x)

    def _normalize_globally(self, x: Tensor) -> Tensor:
        assert self.sum_over_ranks is not None
        self._check_input_dim(x)
        mean, variance, count = _global_statistics(x, self.sum_over_ranks)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased, self.momentum)
        y: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, variance, count, self.eps, self.sum_over_ranks)
        return y


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
    variance, mean = (t.double() for t in torch.var_mean(x.detach().float(), _batch_axes(x), correction=0))
    count = torch.full_like(mean[:1], x.numel() / x.shape[1])
    # In fp64, in which a variance may be taken as a difference of squares.
    moments = sum_over_ranks(torch.cat([count * mean, count * (variance + mean.square()), count]))
    total, total_of_squares, count = moments.split([len(mean), len(mean), 1])  # no value of which the host waits for
    global_mean = total / count
    global_variance = (total_of_squares / count - global_mean.square()).clamp_min(0)
    return global_mean.float(), global_variance.float(), count.float()


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


class Maxout(nn.Module):
    """Largest of `pieces` adjacent channels: [B, C, ...] -> [B, C / pieces, ...]. Source: arXiv 1302.4389."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        if self.pieces == 2:
            return _MaxOfTwo.apply(x)
        return x.unflatten(1, (-1, self.pieces)).amax(2)


class _MaxOfTwo(torch.autograd.Function):
    """Maxout of 2: keeps one bit for each output and writes the gradient once; a tie goes to the first channel.

    A quarter of the CPU time of torch.maximum on strided halves, forward and backward. Differentiable twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        a, b = x[:, 0::2], x[:, 1::2]
        ctx.save_for_backward(a >= b)
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (first_is_larger,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            to_first = grad * first_is_larger
            return torch.stack([to_first, grad - to_first], dim=2).flatten(1, 2)
        # Not differentiated again: each number is written once, in the layout that GPUs have images in.
        layout = _layout_of(grad)
        shape = (len(grad), 2 * grad.shape[1], *grad.shape[2:])
        both = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        first = torch.mul(grad, first_is_larger, out=both[:, 0::2])
        torch.sub(grad, first, out=both[:, 1::2])
        return both


def _layout_of(x: Tensor) -> torch.memory_format:
    is_channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format


class Dropout(nn.Dropout):
    """Inverted dropout of the rows of a batch.

    Where training hands it factors, it multiplies with those: so a row's mask does not depend on the rows beside it.
    Left alone it draws from torch's global generator. On the CPU that mask comes from uniform numbers: twice as fast as
    torch's Bernoulli draws.

    Args:
        p: Probability of a number being dropped.
        shape: Of one row of the input.
    """

    def __init__(self, p: float, shape: Shape) -> None:
        super().__init__(p)
        self.shape = shape
        self._factors: Tensor | None = None
        self._next_row = 0

    def take_factors(self, factors: Tensor) -> None:
        """Use `factors` [N, *shape], each 0 or 1 / (1 - p), for the N rows that come next, in however many calls."""
        self._factors = factors
        self._next_row = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self._factors is not None:
            # Always from row 0 on in a forward pass, and plain tensors: torch.compile sees one graph, without a break.
            first = self._next_row
            self._next_row = first + len(x)
            if self._next_row > len(self._factors):
                raise RuntimeError(f"dropout has masks for {len(self._factors)} rows, but is given more")
            return x * self._factors[first : self._next_row]
        if x.device.type != "cpu":
            return super().forward(x)
        return x * ((torch.rand_like(x) >= self.p) * (1 / (1 - self.p)))


class PixelBias(nn.Module):
    """A bias of its own for every output pixel ("untied"): [B, C, H, W] + [C, H, W]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class FullConv(nn.Conv2d):
    """A convolution whose kernel covers the whole input, computed as one matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class FullConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution of a 1x1 input, computed as one matrix product."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = (x.flatten(1) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        return y if self.bias is None else y + self.bias[:, None, None]


class Doubling(nn.Module):
    """[B, C, H, W] -> [B, C, 2H, 2W]: bilinear, which is the filter [1, 3, 3, 1] / 4 along each axis.

    Repeated pixels left bands, and transposed convolutions leave checkerboards. As two matrix products it takes less
    than half of the CPU time of torch's own, whose backward pass on a GPU also adds in another order each time.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_doubling_matrix(side, x.device, x.dtype) for side in x.shape[-2:])
        return rows @ x @ columns.mT


@cache
def _doubling_matrix(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[2 side, side] that doubles an axis."""
    lines = torch.eye(side)[:, None]
    return F.interpolate(lines, scale_factor=2, mode="linear", align_corners=False)[:, 0].T.to(device, dtype)


class ResidualBlock(nn.Module):
    """s + f(s), where s is the input at C channels and another side: [B, C_in, H, W] -> [B, C, H', W'].

    Channels change at the smaller side.

    Source: arXiv 1603.05027 (activation first); arXiv 2501.05441 (f starts at 0, resizing outside of it).

    Args:
        channels_in: C_in.
        channels: C.
        resize: What happens to the sides.
        architecture: Slope of the rectifiers, and settings of batch norm.
        norm: Whether batch norm comes before each rectifier.
    """

    def __init__(self, channels_in: int, channels: int, resize: Resize, architecture: Architecture, norm: bool) -> None:
        super().__init__()
        self.before = Halving() if resize == "down" else nn.Identity()
        self.after = Doubling() if resize == "up" else nn.Identity()
        changes = channels_in != channels
        self.shortcut = Conv2d(channels_in, channels, 1, bias=False) if changes else nn.Identity()
        layers: list[nn.Module] = []
        for _ in range(2):
            if norm:
                layers.append(BatchNorm2d(channels, eps=architecture.norm_eps, momentum=architecture.norm_momentum))
            layers.append(LeakyReLU(architecture.slope))
            layers.append(Conv2d(channels, channels, 3, padding=1, bias=not norm))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        s = self.after(self.shortcut(self.before(x)))
        return s + self.branch(s)

    @torch.no_grad()
    def start_at_shortcut(self) -> None:
        """Zero the last convolution, so that f is 0, and give the shortcut the variance of a linear map.

        Without normalisation, branches that start at full size made D diverge at a learning rate of 1e-3.
        """
        last = self.branch[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        if isinstance(self.shortcut, nn.Conv2d):
            nn.init.normal_(self.shortcut.weight, 0.0, self.shortcut.in_channels**-0.5)


_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "linear": nn.Identity}


def _linear_map(layer: LayerRow, channels: int, shape: Shape, bias: bool) -> tuple[nn.Module, Shape]:
    """The layer's linear map for an input of `shape`, and the shape of its output."""
    if layer.op == "linear":
        return nn.Linear(shape[0], channels, bias), (channels,)
    c, h, w = shape
    k, s, p = layer.kernel, layer.stride, layer.padding
    if layer.op == "conv":
        out = tuple((side + 2 * p - k) // s + 1 for side in (h, w))
        if min(out) < 1:
            raise ValueError(f"a {k}x{k} convolution does not fit a {h}x{w} input")
        conv = FullConv if (h, w) == (k, k) and p == 0 else Conv2d
        return conv(c, channels, k, s, p, bias=bias), (channels, *out)
    out = tuple((side - 1) * s + k - 2 * p for side in (h, w))
    transposed = FullConvTranspose if (h, w) == (1, 1) and p == 0 else nn.ConvTranspose2d
    return transposed(c, channels, k, s, p, bias=bias), (channels, *out)


def build_layer(
    layer: LayerRow, shape: Shape, channels: int, architecture: Architecture
) -> tuple[nn.Sequential, Shape]:
    """`layer` for an input of `shape`, producing `channels` channels before any maxout.

    Returns:
        The module and the shape of its output.
    """
    parts: list[nn.Module] = [Dropout(layer.dropout, shape)] if layer.dropout else []
    if layer.op == "block":
        c, h, w = shape
        parts.append(ResidualBlock(c, channels, layer.resize, architecture, layer.norm))
        parts.append(LeakyReLU(architecture.slope) if layer.act == "lrelu" else nn.Identity())
        factor = {"none": 1.0, "down": 0.5, "up": 2.0}[layer.resize]
        return nn.Sequential(*parts), (channels, int(h * factor), int(w * factor))
    if layer.unshuffle > 1:
        parts.append(nn.PixelUnshuffle(layer.unshuffle))
        shape = (shape[0] * layer.unshuffle**2, *(side // layer.unshuffle for side in shape[1:]))
    if layer.resize == "down":
        parts.append(Halving())
        shape = (shape[0], *(side // 2 for side in shape[1:]))
    linear, out = _linear_map(layer, channels, shape, layer.bias == "channel")
    parts.append(linear)
    if layer.resize == "up":
        parts.append(Doubling())
        out = (out[0], *(2 * side for side in out[1:]))
    if layer.bias == "pixel":
        parts.append(PixelBias(out))
    if layer.norm:
        norm = BatchNorm1d if layer.op == "linear" else BatchNorm2d
        parts.append(norm(channels, eps=architecture.norm_eps, momentum=architecture.norm_momentum))
    if layer.act == "maxout":
        parts.append(Maxout(layer.pieces))
        out = (channels // layer.pieces, *out[1:])
    elif layer.act == "lrelu":
        parts.append(LeakyReLU(architecture.slope))
    elif layer.act != "linear":
        parts.append(_ACTIVATIONS[layer.act]())
    return nn.Sequential(*parts), out


class FourierFeatures(nn.Module):
    """[B, D] -> [B, D + 2 D n]: x beside sin and cos of base * 2^k * x, k = 0..n-1.

    A small network cannot resolve modes of width 0.05 in a range of 8 from x alone.
    """

    frequencies: Tensor

    def __init__(self, base: float, count: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", base * 2.0 ** torch.arange(count), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[:, :, None] * self.frequencies).flatten(1)
        return torch.cat([x, angles.sin(), angles.cos()], dim=1)
