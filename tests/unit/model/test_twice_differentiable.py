"""Layers that are differentiated twice compute what torch's do, and send nothing back through themselves.

Run: `make test ARGS=tests/unit/model/test_twice_differentiable.py`
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ali_dist.model.twice_differentiable import Conv2d, Halving, LeakyReLU, differentiated_twice

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: Conv2d(3, 4, 3, padding=1),
    "strided convolution": lambda: Conv2d(3, 4, 4, 2, 1),
    "strided convolution of many channels": lambda: Conv2d(5, 4, 4, 2, 1),
    "uneven convolution": lambda: Conv2d(3, 2, 3, 2, bias=False),
    "leaky ReLU": lambda: LeakyReLU(0.2),
    "halving": Halving,
}


def make_layer(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    channels = layer.in_channels if isinstance(layer, Conv2d) else 3
    return layer, torch.randn(2, channels, 6, 6, dtype=torch.float64, requires_grad=True)


def derivatives(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the input's gradient, and the gradient for weights of a function of that gradient."""
    y = layer(x)
    (first,) = torch.autograd.grad((y * torch.ones_like(y).cumsum(-1)).sum(), x, create_graph=True)
    weights = [p for name, p in layer.named_parameters() if name == "weight"]
    return [y, first, *torch.autograd.grad(first.pow(3).sum(), weights)] if weights else [y, first]


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_torch(name):
    layer, x = make_layer(name)
    expected = derivatives(layer, x)
    with differentiated_twice(layer):
        mine = derivatives(layer, x)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_one_backward_pass_are_those_of_torch(name):
    """Of input, weights and bias."""
    layer, x = make_layer(name)
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    with differentiated_twice(layer):
        mine = torch.autograd.grad(layer(x).square().sum(), inputs)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_the_gradient_is_right_in_the_direction_that_comes_in(name):
    """By finite differences: the input's gradient as a function of the output's and of the weights."""
    layer, x = make_layer(name)
    weights = [p for parameter, p in layer.named_parameters() if parameter == "weight"]
    g = torch.randn_like(layer(x), requires_grad=True)

    def input_gradient(g: Tensor, *weights: Tensor) -> Tensor:
        y = torch.func.functional_call(layer, {"weight": weights[0]} if weights else {}, (x,))
        return torch.autograd.grad(y, x, g, create_graph=True)[0]

    with differentiated_twice(layer):
        assert torch.autograd.gradcheck(input_gradient, (g, *weights))


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_goes_back_through_the_layer_itself(name):
    """torch's own would hand zeros to everything before it."""
    layer, x = make_layer(name)
    before = x * 1.0
    with differentiated_twice(layer):
        y = layer(before)
    (first,) = torch.autograd.grad(y.sum() * layer_scale(layer), before, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, allow_unused=True)
    assert second is None


def layer_scale(layer: nn.Module) -> Tensor:
    """A number that needs a gradient, so that the gradient of a layer without weights has a graph."""
    return next(iter(layer.parameters()), torch.ones((), dtype=torch.float64, requires_grad=True)).sum()


def test_layers_are_torchs_own_otherwise():
    """Also after an error."""
    network = nn.Sequential(*(make() for make in LAYERS.values()))
    with pytest.raises(NotImplementedError), differentiated_twice(network):
        nn.Module().forward(None)
    assert not any(layer.is_differentiated_twice for layer in network)
    with differentiated_twice(network):
        assert all(layer.is_differentiated_twice for layer in network)


def test_the_convolution_computes_in_the_precision_of_autocast():
    layer = LAYERS["strided convolution"]()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
        with differentiated_twice(layer):
            y = layer(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    (first,) = torch.autograd.grad(y.float().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), layer.weight)
    assert first.dtype == second.dtype == torch.float32
