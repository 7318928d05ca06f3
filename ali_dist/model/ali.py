"""ALI as one module: encoder, decoder and joint discriminator, and how the two players meet.

Legend: x [B, C, H, W] or [B, D] data in the model's range; z [B, n_z] prior; epsilon [B, n_z] encoder noise;
z_hat [B, n_z] ~ q(z|x); x_tilde ~ p(x|z); d_q, d_p [B] logits of encoder and decoder pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.model.networks import Decoder, Discriminator, Encoder, initialise, with_dropout
from ali_dist.model.tables import Architecture


class Seen(NamedTuple):
    """Encoder and decoder pairs as D sees them; x_q and x_p stay apart, see `Discriminator`."""

    x_q: Tensor  # x [B, ...]
    x_p: Tensor  # x_tilde [B, ...]
    z: Tensor  # z_hat above z [2B, n_z]


class Pairs(NamedTuple):
    """What one pass through the three networks gives."""

    z_hat: Tensor
    x_tilde: Tensor
    seen: Seen
    d_q: Tensor
    d_p: Tensor
    cycle_x: Tensor | None  # [B] mean squared error of G(E(x)), at the size the data are stored at
    cycle_z: Tensor | None  # [B] mean squared error of E(G(z))
    cycle_samples: Tensor | None  # [B] as cycle_x, of samples x_tilde instead of data


class Boundary(Protocol):
    """Where the generators meet D: what D gets to see and which gradients come back; one per update."""

    def pairs(self, x: Tensor, z_hat: Tensor, x_tilde: Tensor, z: Tensor) -> Seen:
        """D's inputs."""


class OpenBoundary:
    """Gradients pass unchanged."""

    def pairs(self, x: Tensor, z_hat: Tensor, x_tilde: Tensor, z: Tensor) -> Seen:
        return Seen(x, x_tilde, torch.cat([z_hat, z]))


@dataclass(frozen=True, slots=True)
class ClosedBoundary:
    """D sees constants: no gradient reaches the generators through it.

    Attributes:
        differentiable: Whether D's inputs are leaves that a gradient can be taken with respect to.
    """

    differentiable: bool

    def pairs(self, x: Tensor, z_hat: Tensor, x_tilde: Tensor, z: Tensor) -> Seen:
        constants = x.detach(), x_tilde.detach(), torch.cat([z_hat.detach(), z])
        return Seen(*(c.requires_grad_(self.differentiable) for c in constants))


class ScaledBoundary:
    """Gradients of D's loss become gradients of the generators' loss, sample by sample.

    Where D treats samples independently, back-propagation through it is linear in each sample's cotangent, so the
    generators' gradient at D's inputs is the discriminator's times (g_loss' / d_loss') of that sample.
    The factors are known after the forward pass and must be set before the backward pass.
    Prior art for plain GANs: Shen et al., "Training Generative Adversarial Networks in One Stage", CVPR 2021.
    """

    factor_q: Tensor  # [B], for encoder pairs
    factor_p: Tensor  # [B], for decoder pairs

    def pairs(self, x: Tensor, z_hat: Tensor, x_tilde: Tensor, z: Tensor) -> Seen:
        z_hat, x_tilde = _Scale.apply(z_hat, self, "factor_q"), _Scale.apply(x_tilde, self, "factor_p")
        return Seen(x, x_tilde, torch.cat([z_hat, z]))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, boundary: ScaledBoundary, name: str) -> Tensor:
        ctx.boundary, ctx.name = boundary, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        factor = getattr(ctx.boundary, ctx.name)
        return grad * factor.to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)), None, None


def _unchanged(x: Tensor) -> Tensor:
    return x


class ALI(nn.Module):
    """The three networks.

    Args:
        encoder: q(z|x).
        decoder: p(x|z).
        discriminator: D(x, z).
        cycle_x: Whether to reconstruct x; the mean squared error is returned.
        cycle_z: Whether to reconstruct z.
        cycle_samples: Whether to reconstruct x_tilde, held constant: data without end, on which E and G cannot overfit.
        native: Linear map from differences of images to the size at which their error counts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        *,
        cycle_x: bool = False,
        cycle_z: bool = False,
        cycle_samples: bool = False,
        native: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.discriminator = encoder, decoder, discriminator
        self.cycle_x, self.cycle_z, self.cycle_samples = cycle_x, cycle_z, cycle_samples
        self.native = native or _unchanged
        self.fp32_discriminator = False  # penalties in half precision underflow

    def forward(self, x: Tensor, z: Tensor, epsilon: Tensor, boundary: Boundary) -> Pairs:
        """One pass of Algorithm 1: z_hat, x_tilde, and D once on both pairs.

        D sees the pairs as one batch of 2B rows, as the authors' code does, which matters for its batch norm.
        With a cycle on x, G runs once on prior and encoder latents together.
        """
        z_hat = self.encoder(x, epsilon)[0]
        cycle_x = cycle_z = cycle_samples = None
        if self.cycle_x:
            x_tilde, x_rec = self.decoder(torch.cat([z, z_hat])).chunk(2)
            cycle_x = self._error(x_rec, x)
        else:
            x_tilde = self.decoder(z)
        if self.cycle_z:
            cycle_z = F.mse_loss(self.encoder(x_tilde, epsilon)[1], z, reduction="none").mean(1)
        if self.cycle_samples:
            sample = x_tilde.detach()
            cycle_samples = self._error(self.decoder(self.encoder(sample, epsilon)[0]), sample)
        seen = boundary.pairs(x, z_hat, x_tilde, z)
        full_precision = torch.autocast(x.device.type, enabled=False) if self.fp32_discriminator else nullcontext()
        with full_precision:
            d_q, d_p = self.discriminator((seen.x_q, seen.x_p), seen.z).float().chunk(2)
        return Pairs(z_hat, x_tilde, seen, d_q, d_p, cycle_x, cycle_z, cycle_samples)

    def _error(self, x_rec: Tensor, x: Tensor) -> Tensor:
        """Mean squared error [B], at the size the data are stored at."""
        return self.native(x_rec - x).square().flatten(1).mean(1)

    def with_networks(self, encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module) -> ALI:
        """The same game between other (wrapped or compiled) networks."""
        other = ALI(
            encoder,
            decoder,
            discriminator,
            cycle_x=self.cycle_x,
            cycle_z=self.cycle_z,
            cycle_samples=self.cycle_samples,
            native=self.native,
        )
        other.fp32_discriminator = self.fp32_discriminator
        return other

    def generator_parameters(self) -> list[nn.Parameter]:
        """theta_g: parameters of encoder and decoder."""
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """theta_d."""
        return list(self.discriminator.parameters())


def build_ali(
    tables: Architecture,
    x_shape: tuple[int, ...],
    *,
    latent_size: int,
    encoder: str = "gaussian",
    width: float = 1.0,
    discriminator_dropout: float | None = None,
    cycle_x: bool = False,
    cycle_z: bool = False,
    cycle_samples: bool = False,
    native: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> ALI:
    """A freshly initialised ALI on the CPU; torch's global generator is left as it was.

    Args:
        tables: Layer tables, see `ali_dist.model.tables`.
        x_shape: Shape of one sample at the model's size.
        latent_size: n_z.
        encoder: gaussian, deterministic or implicit.
        width: Factor on hidden channels.
        discriminator_dropout: Dropout on every D layer's input; None: as in the tables.
        cycle_x: Whether G(E(x)) is part of the update.
        cycle_z: Whether E(G(z)) is part of the update.
        cycle_samples: Whether G(E(x_tilde)) is part of the update.
        native: See `ALI`.
        seed: Seed of the weights.

    Raises:
        ValueError: The tables do not fit `x_shape`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tables_d = with_dropout(tables, discriminator_dropout)
        ali = ALI(
            Encoder(tables, x_shape, latent_size, encoder, width),
            Decoder(tables, x_shape, latent_size, width),
            Discriminator(tables_d, x_shape, latent_size, width),
            cycle_x=cycle_x,
            cycle_z=cycle_z,
            cycle_samples=cycle_samples,
            native=native,
        )
        initialise(ali, tables)
    if encoder == "gaussian":
        last = [m for m in ali.encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        assert last.bias is not None
        nn.init.constant_(last.bias[latent_size:], tables.log_sigma_bias)
    return ali
