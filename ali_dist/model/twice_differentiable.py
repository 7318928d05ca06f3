"""Layers of torch whose gradient is differentiated again without a pass back through the layers themselves.

A gradient penalty is differentiated through the graph of D's input gradient. torch's own convolution, leaky ReLU and
average pooling tell autograd there that their first gradient depends on their input, too, and give it zeros for that:
the zeros then go back through all of D, which costs as much as D's loss does. The functions below know that it does not
depend on it; and a convolution's second gradient for its weights is the kernel of its first, which torch computes as
another convolution with kernels of the size of an image.

Each layer is torch's own until `differentiated_twice` says otherwise: compiled and exported code meets nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.model.folding import fold_product, is_folded_faster

_convolution_backward = torch.ops.aten.convolution_backward
_average_backward = torch.ops.aten.avg_pool2d_backward
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward


class _Switched:
    """A layer with two ways of computing the same.

    Attributes:
        is_differentiated_twice: Whether it is the other way's turn. Parameters then get no gradient from a backward
            pass that creates a graph, only from one through such a graph, or without one.
    """

    is_differentiated_twice: bool = False


@contextmanager
def differentiated_twice(module: nn.Module) -> Iterator[None]:
    """What layers of `module` compute meanwhile is going to be differentiated twice."""
    layers = [layer for layer in module.modules() if isinstance(layer, _Switched)]
    for layer in layers:
        layer.is_differentiated_twice = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_differentiated_twice = False


class Conv2d(_Switched, nn.Conv2d):
    """torch's convolution, with padding by zeros: [B, C, H, W] -> [B, C', H', W']."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if not self.is_differentiated_twice:
            return super().forward(input)
        x, weight, bias = _cast_as_autocast(input, self.weight, self.bias)
        y: Tensor = _Convolution.apply(x, weight, bias, _Sizes(self))
        return y


class LeakyReLU(_Switched, nn.LeakyReLU):
    """torch's leaky ReLU, whose slope is positive."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if not self.is_differentiated_twice:
            return super().forward(input)
        y: Tensor = _LeakyReLU.apply(input, self.negative_slope)
        return y


class Halving(_Switched, nn.AvgPool2d):
    """[B, C, H, W] -> [B, C, H / 2, W / 2]: means of 2x2 pixels; both sides are even."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if not self.is_differentiated_twice:
            return super().forward(input)
        y: Tensor = _Halve.apply(input)
        return y


def _cast_as_autocast(x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """All of them as autocast would hand them to a convolution: inside of an autograd function it would be too late."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x, *parameters
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if t is None else t.to(dtype) for t in (x, *parameters))


class _Sizes:
    """A convolution's arguments, as torch's operators take them."""

    def __init__(self, layer: nn.Conv2d) -> None:
        assert layer.padding_mode == "zeros"
        assert isinstance(layer.padding, tuple)
        self.forward: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.backward = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
        self._is_plain = layer.groups == 1 and max(layer.dilation) == 1
        self._channels = layer.in_channels

    def folds(self, x: Tensor) -> bool:
        """Whether the gradient of inputs such as `x` is to be computed by `fold_product`."""
        return self._is_plain and is_folded_faster(x, self._channels, self.forward[0])


class _Convolution(torch.autograd.Function):
    """Its backward pass can be differentiated with respect to the gradient and the weights, in which it is bilinear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: _Sizes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return F.conv2d(x, weight, bias, *sizes.forward)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _ConvolutionInputGradient.apply(grad, weight, x.detach(), ctx.sizes), None, None, None
        for_x, *for_parameters = ctx.needs_input_grad[:3]
        x_grad = None
        if for_x and ctx.sizes.folds(x):
            for_x, x_grad = False, _input_gradient(grad, weight, x, ctx.sizes)
        wanted = (for_x, *for_parameters)
        gradients = _convolution_backward(grad, x, weight, ctx.bias_sizes, *ctx.sizes.backward, wanted)
        return gradients[0] if x_grad is None else x_grad, *gradients[1:], None


def _input_gradient(grad: Tensor, weight: Tensor, like: Tensor, sizes: _Sizes) -> Tensor:
    if sizes.folds(like):
        stride, padding, _, _ = sizes.forward
        return fold_product(weight, grad, like.shape[2:], stride, padding)
    x_grad: Tensor = _convolution_backward(grad, like, weight, None, *sizes.backward, (True, False, False))[0]
    return x_grad


class _ConvolutionInputGradient(torch.autograd.Function):
    """Gradient of a convolution's input; `like` has the input's shape and layout."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, like: Tensor, sizes: _Sizes) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.sizes = sizes
        return _input_gradient(grad, weight, like, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (tangent,) = grads
        grad, weight = ctx.saved_tensors
        along = weight_grad = None
        if ctx.needs_input_grad[0]:
            along = F.conv2d(tangent, weight, None, *ctx.sizes.forward)
        if ctx.needs_input_grad[1]:
            wanted = (False, True, False)
            weight_grad = _convolution_backward(grad, tangent, weight, None, *ctx.sizes.backward, wanted)[1]
        return along, weight_grad, None, None


class _LeakyReLU(torch.autograd.Function):
    """Keeps its output, which the layer behind it keeps, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        y = F.leaky_relu(x, slope)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _leaky_relu_backward(grads[0], y.detach(), ctx.slope, True), None


class _Halve(torch.autograd.Function):
    """Means of 2x2 pixels: a linear map, whose transpose is `_Spread`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # for its shape and layout; the layer before keeps it anyway
        return F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        spread: Tensor = _Spread.apply(grads[0], x.detach())
        return spread


class _Spread(torch.autograd.Function):
    """A quarter of each pixel on each of 2x2 pixels; `like` has the larger image's shape and layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, like: Tensor) -> Tensor:
        del ctx
        spread: Tensor = _average_backward(x, like, (2, 2), (2, 2), (0, 0), False, True, None)
        return spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        del ctx
        return F.avg_pool2d(grads[0], 2), None
