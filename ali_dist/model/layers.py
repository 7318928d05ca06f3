"""One layer of a table as a module: dropout -> linear map -> batch norm -> activation.

Shapes: images are [B, C, H, W], points are [B, D]; a `Shape` leaves the batch axis out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.model.architectures.schema import Architecture, LayerRow

Shape = tuple[int, ...]


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


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
        (first_is_larger,) = ctx.saved_tensors
        to_first = grads[0] * first_is_larger
        return torch.stack([to_first, grads[0] - to_first], dim=2).flatten(1, 2)


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
        conv = FullConv if (h, w) == (k, k) and p == 0 else nn.Conv2d
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
    linear, out = _linear_map(layer, channels, shape, layer.bias == "channel")
    parts: list[nn.Module] = [Dropout(layer.dropout, shape)] if layer.dropout else []
    parts.append(linear)
    if layer.bias == "pixel":
        parts.append(PixelBias(out))
    if layer.norm:
        norm = nn.BatchNorm1d if layer.op == "linear" else nn.BatchNorm2d
        parts.append(norm(channels, eps=architecture.norm_eps, momentum=architecture.norm_momentum))
    if layer.act == "maxout":
        parts.append(Maxout(layer.pieces))
        out = (channels // layer.pieces, *out[1:])
    elif layer.act == "lrelu":
        parts.append(nn.LeakyReLU(architecture.slope))
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
