"""Where the generators meet the discriminator: what D sees, and which gradients come back through it.

A gate stands between the generators' outputs and D's inputs. The forward pass is the same through all of them; they
differ in what the backward pass brings back to E and G. An update rule (`training/update_rules.py`) chooses the gate.

Legend as in `ali.py`. In a plain GAN D sees no z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class DiscriminatorInputs(NamedTuple):
    """Encoder and decoder pairs as D sees them; x_q and x_p stay apart, see `LayerStack.of_parts`."""

    x_q: Tensor  # x [B, ...]
    x_p: Tensor  # x_tilde [B, ...]
    z: Tensor | None  # z_hat above z, [2B, n_z]


class GradientGate(Protocol):
    """What stands between the generators and D during one update."""

    def discriminator_inputs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        """What D sees of x, z_hat [B, n_z], x_tilde and z [B, n_z]; without z_hat, D sees no z."""


def _stack_latents(z_hat: Tensor | None, z: Tensor) -> Tensor | None:
    return None if z_hat is None else torch.cat([z_hat, z])


class PassThrough:
    """Gradients pass unchanged."""

    def discriminator_inputs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        return DiscriminatorInputs(x, x_tilde, _stack_latents(z_hat, z))


@dataclass(frozen=True, slots=True)
class StopGradient:
    """D sees constants: no gradient reaches the generators through it.

    Attributes:
        differentiable: Whether D's inputs are leaves that a gradient can be taken with respect to.
    """

    differentiable: bool

    def discriminator_inputs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        latents = _stack_latents(None if z_hat is None else z_hat.detach(), z)
        return DiscriminatorInputs(
            x_q=x.detach().requires_grad_(self.differentiable),
            x_p=x_tilde.detach().requires_grad_(self.differentiable),
            z=None if latents is None else latents.requires_grad_(self.differentiable),
        )


class ScaleGradient:
    """Gradients of D's loss become gradients of the generators' loss, sample by sample.

    Where D treats samples independently, back-propagation through it is linear in each sample's cotangent, so the
    generators' gradient at D's inputs is the discriminator's times (g_loss' / d_loss') of that sample.
    The factors are known after the forward pass and must be set before the backward pass; what is back-propagated into
    D must not vanish where the generators' gradient does not (`losses.bound_slope`).
    Prior art for plain GANs: Shen et al., "Training Generative Adversarial Networks in One Stage", CVPR 2021.
    """

    factor_q: Tensor  # [B] fp32, for encoder pairs
    factor_p: Tensor  # [B] fp32, for decoder pairs

    def discriminator_inputs(self, x: Tensor, z_hat: Tensor | None, x_tilde: Tensor, z: Tensor) -> DiscriminatorInputs:
        scaled_z_hat = None if z_hat is None else _ScaleBackward.apply(z_hat, self, "factor_q")
        scaled_x_tilde = _ScaleBackward.apply(x_tilde, self, "factor_p")
        return DiscriminatorInputs(x, scaled_x_tilde, _stack_latents(scaled_z_hat, z))


class _ScaleBackward(torch.autograd.Function):
    """The identity, whose backward pass multiplies each row's gradient with a factor of the gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: ScaleGradient, factor_name: str) -> Tensor:
        ctx.gate = gate
        ctx.factor_name = factor_name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        factor = getattr(ctx.gate, ctx.factor_name)
        # In the factor's precision: a factor that was rounded first would tilt the whole row.
        scaled = grad * factor.view(-1, *[1] * (grad.dim() - 1))
        return scaled.to(grad.dtype), None, None
