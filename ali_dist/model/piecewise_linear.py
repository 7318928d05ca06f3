"""Discriminators that are piecewise linear, and what each of their logits then is a sum of.

With its weights and the masks of dropout held fixed, such a D is piecewise linear in its inputs and its biases
together. So each logit is the sum of its own derivatives times what they are of, over all inputs and biases t:

    d = sum_t <dd/dt, t>

This holds for all weights nearby, too, so both sides have the same derivative with respect to the weights. That of the
right side is found in the graph of the first derivatives, which a gradient penalty goes back through anyway.

Source: Euler's theorem on homogeneous functions; for networks with biases: Srinivas and Fleuret, NeurIPS 2019
(arXiv 1905.00780), proposition 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ali_dist.model import layers, twice_differentiable
from ali_dist.model.networks import Discriminator, LayerStack

_PIECEWISE_LINEAR: frozenset[type[nn.Module]] = frozenset(
    {
        LayerStack,
        layers.Doubling,
        layers.Dropout,
        layers.FullConv,
        layers.Maxout,
        layers.PixelBias,
        layers.ResidualBlock,
        nn.Identity,
        nn.Linear,
        nn.PixelUnshuffle,
        nn.ReLU,
        nn.Sequential,
        twice_differentiable.Conv2d,
        twice_differentiable.Halving,
        twice_differentiable.LeakyReLU,
    }
)
"""Modules that are known to be: a new one stands here, or D's logits are not taken for such sums."""


def is_piecewise_linear(discriminator: nn.Module) -> bool:
    """Whether D's joint logit is piecewise linear in D's inputs and biases: only where it is known of all that D has.

    Not so: batch norm and smooth activations, Fourier features, and the logit of K + 1 classes, a logsumexp.
    """
    if type(discriminator) is not Discriminator or discriminator.num_classes:
        return False
    return all(type(module) in _PIECEWISE_LINEAR for child in discriminator.children() for module in child.modules())


@dataclass(frozen=True, slots=True)
class LogitTerms:
    """What the logits of one forward pass are sums of.

    Attributes:
        inputs: What D was given: images as it sees them, latents, and the embedding of conditions.
        biased: The outputs of layers that add a bias, and that bias; a layer that was called twice stands here twice.
    """

    inputs: list[Tensor] = field(default_factory=list)
    biased: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """What to differentiate the logits with respect to: a bias's derivative is a sum of its output's."""
        return [*self.inputs, *(output for output, _ in self.biased)]

    def surrogate(self, gradients: list[Tensor]) -> Tensor:
        """A scalar whose gradient for all parameters of D is that of sum_i w_i d_i; its value means nothing.

        Args:
            gradients: Those of sum_i w_i d_i with respect to `tensors()`, with their graph; the w_i are constants.
        """
        total = gradients[0].new_zeros(())
        of_inputs, of_outputs = gradients[: len(self.inputs)], gradients[len(self.inputs) :]
        for gradient, value in zip(of_inputs, self.inputs, strict=True):
            total = total + (gradient * value.detach()).sum()
        for gradient, (_, bias) in zip(of_outputs, self.biased, strict=True):
            of_bias = gradient.sum(_axes_without_bias(gradient, bias), dtype=bias.dtype)
            # The first for the weights, the second for the bias itself.
            total = total + (of_bias * bias.detach()).sum() + (of_bias.detach() * bias).sum()
        return total


def _axes_without_bias(output: Tensor, bias: Tensor) -> list[int]:
    """The batch's, and all behind those of `bias`, whose first is axis 1."""
    return [axis for axis in range(output.dim()) if not 1 <= axis <= bias.dim()]


@contextmanager
def record_terms(discriminator: nn.Module) -> Iterator[LogitTerms]:
    """Record one forward pass of a piecewise linear D, whose logits are differentiated twice."""
    terms = LogitTerms()

    def record_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        x, z, e = args
        if e is not None:
            e = e.detach().requires_grad_()
        terms.inputs.extend(part for part in (*x, z, e) if part is not None)
        return x, z, e

    def record_output(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        del args
        terms.biased.append((output, module.bias))

    handles = [discriminator.register_forward_pre_hook(record_inputs)]
    handles += [
        module.register_forward_hook(record_output)
        for module in discriminator.modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
    ]
    try:
        with twice_differentiable.differentiated_twice(discriminator):
            yield terms
    finally:
        for handle in handles:
            handle.remove()
