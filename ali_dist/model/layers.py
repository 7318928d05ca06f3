"""One layer of a table as a module: dropout -> linear map -> batch norm -> activation.

Shapes: images are [B, C, H, W], points are [B, D]; a `Shape` leaves the batch axis out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.model.architectures.schema import Architecture, LayerRow, Resize
from ali_dist.model.batch_norm import BatchNorm1d, BatchNorm2d
from ali_dist.model.folding import fold_product, is_folded_faster
from ali_dist.model.twice_differentiable import Conv2d, Halving, LeakyReLU

Shape = tuple[int, ...]


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


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's transposed convolution, with a faster way on a CPU where it trains with few channels of output."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        is_plain = self.training and not torch.compiler.is_compiling()  # what is exported stays torch's
        if not (is_plain and is_folded_faster(x, self.out_channels, self.stride)):
            return super().forward(x, output_size)
        assert isinstance(self.padding, tuple)
        sides = [
            (side - 1) * stride + kernel - 2 * padding
            for side, stride, kernel, padding in zip(
                x.shape[2:], self.stride, self.kernel_size, self.padding, strict=True
            )
        ]
        y = fold_product(self.weight, x, sides, self.stride, self.padding)
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
    transposed = FullConvTranspose if (h, w) == (1, 1) and p == 0 else ConvTranspose2d
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
