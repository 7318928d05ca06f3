"""Where the generators meet D: what D gets to see, and which gradients come back.

Legend as in `ali.py`. In a plain GAN there is no z for D to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class DiscriminatorInputs(NamedTuple):
    """Encoder and decoder pairs as D sees them; x_q and x_p stay apart, see `Discriminator`."""

    x_q: Tensor  # x [B, ...]
    x_p: Tensor  # x_tilde [B, ...]
    z: Tensor | None  # z_hat above z [2B, n_z]


class GradientGate(Protocol):
    """One for each update."""

    def pairs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        """D's inputs; without z_hat, D sees no z."""


def _stack_latents(z_hat: Tensor | None, z: Tensor) -> Tensor | None:
    return None if z_hat is None else torch.cat([z_hat, z])


class PassThrough:
    """Gradients pass unchanged."""

    def pairs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        return DiscriminatorInputs(x, x_tilde, _stack_latents(z_hat, z))


@dataclass(frozen=True, slots=True)
class StopGradient:
    """D sees constants: no gradient reaches the generators through it.

    Attributes:
        differentiable: Whether D's inputs are leaves that a gradient can be taken with respect to.
    """

    differentiable: bool

    def pairs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        latents = _stack_latents(None if z_hat is None else z_hat.detach(), z)
        constants = x.detach(), x_tilde.detach(), latents
        return DiscriminatorInputs(*(None if c is None else c.requires_grad_(self.differentiable) for c in constants))  # type: ignore[arg-type]


class ScaleGradient:
    """Gradients of D's loss become gradients of the generators' loss, sample by sample.

    Where D treats samples independently, back-propagation through it is linear in each sample's cotangent, so the
    generators' gradient at D's inputs is the discriminator's times (g_loss' / d_loss') of that sample.
    The factors are known after the forward pass and must be set before the backward pass.
    Prior art for plain GANs: Shen et al., "Training Generative Adversarial Networks in One Stage", CVPR 2021.
    """

    factor_q: Tensor  # [B], for encoder pairs
    factor_p: Tensor  # [B], for decoder pairs

    def pairs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        z_hat = None if z_hat is None else _ScaleBackward.apply(z_hat, self, "factor_q")
        return DiscriminatorInputs(x, _ScaleBackward.apply(x_tilde, self, "factor_p"), _stack_latents(z_hat, z))


class _ScaleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, boundary: ScaleGradient, name: str) -> Tensor:
        ctx.boundary, ctx.name = boundary, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        factor = getattr(ctx.boundary, ctx.name)
        return grad * factor.to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)), None, None
