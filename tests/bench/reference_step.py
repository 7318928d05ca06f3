"""The update as most public ALI and BiGAN code in PyTorch writes it: first D, then E and G, each with its own pass.

The yardstick of the step bench. It has the same networks, losses and terms as `ali_dist.training.step` and no
needless slowness: the D step runs E and G without gradient, gradients are set to None, nothing is logged. D is called
once for each kind of pair and each player has its Adam with PyTorch's defaults, as that code does: on CUDA these are
the foreach kernels, on a CPU one tensor at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ali_dist.config import OptimConfig
from ali_dist.model.ali import ALI
from ali_dist.model.layers import Dropout, Maxout
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, TrainBatch


class StockMaxout(nn.Module):
    """Maxout of adjacent channels as torch's own operators do it fastest."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        if self.pieces == 2:
            return torch.maximum(x[:, 0::2], x[:, 1::2])
        return x.unflatten(1, (-1, self.pieces)).amax(2)


def with_stock_layers(module: nn.Module) -> nn.Module:
    """`module` itself, its maxout and dropout layers replaced by what public code takes from torch."""
    for name, child in module.named_children():
        if isinstance(child, Maxout):
            setattr(module, name, StockMaxout(child.pieces))
        elif isinstance(child, Dropout):
            setattr(module, name, nn.Dropout(child.p))
        else:
            with_stock_layers(child)
    return module


class UsualStep:
    """One alternating update; the yardstick of every ratio.

    Args:
        ali: The networks; only its three parts are used.
        loss: Name of the objective.
        optim: Learning rates and Adam's settings.
        precision: What is cast and scaled.
        compiled: Whether the networks are compiled.
        penalised: Whether a gradient penalty is on; torch.compile cannot differentiate it, so D then stays eager.
        fused: Whether Adam is the fused one, as in our own step.
    """

    def __init__(
        self,
        ali: ALI,
        loss: str,
        optim: OptimConfig,
        precision: Precision,
        *,
        compiled: bool = False,
        penalised: bool = False,
        fused: bool = False,
    ) -> None:
        self.game, self.precision, self.native = OBJECTIVES[loss], precision, ali.native
        self.encoder = torch.compile(ali.encoder) if compiled else ali.encoder
        self.decoder = torch.compile(ali.decoder) if compiled else ali.decoder
        self.discriminator = torch.compile(ali.discriminator) if compiled and not penalised else ali.discriminator
        # None is PyTorch's own choice of implementation; False would switch foreach off, too.
        rest: dict[str, Any] = {"betas": (optim.beta1, optim.beta2), "eps": optim.eps, "fused": fused or None}
        self.opt_d = torch.optim.Adam(ali.discriminator_parameters(), lr=optim.lr_d, **rest)
        self.opt_g = torch.optim.Adam(ali.generator_parameters(), lr=optim.lr_g, **rest)

    def __call__(self, batch: TrainBatch, weights: LossWeights) -> tuple[Tensor, Tensor]:
        """One update; both players' mean losses."""
        x, z, epsilon = batch[:3]
        d_loss = self._d_step(x, z, epsilon, weights)
        return d_loss, self._g_step(x, z, epsilon, weights)

    def _d_step(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: LossWeights) -> Tensor:
        penalised = weights.r1 > 0 or weights.r2 > 0
        with self.precision.autocast():
            with torch.no_grad():
                z_hat, x_tilde = self.encoder(x, epsilon)[0], self.decoder(z)
            on_q, on_p = _leaves(x, z_hat, penalised), _leaves(x_tilde, z, penalised)
            d_q, d_p = self._judge(*on_q), self._judge(*on_p)
        d_loss = self.game.d_loss(d_q, d_p).mean()
        if penalised:
            d_loss = d_loss + weights.r1 * _half_squared(d_q, on_q) + weights.r2 * _half_squared(d_p, on_p)
        self.opt_d.zero_grad(set_to_none=True)
        self.precision.backward(d_loss)
        self.precision.step(self.opt_d)
        return d_loss.detach()

    def _g_step(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: LossWeights) -> Tensor:
        with self.precision.autocast():
            z_hat, x_tilde = self.encoder(x, epsilon)[0], self.decoder(z)
            d_q, d_p = self._judge(x, z_hat), self._judge(x_tilde, z)
            g_loss = self.game.g_loss(d_q, d_p).mean()
            if weights.cycle_x:
                g_loss = g_loss + weights.cycle_x * self.native(self.decoder(z_hat) - x).square().mean()
            if weights.cycle_z:
                g_loss = g_loss + weights.cycle_z * (self.encoder(x_tilde, epsilon)[1] - z).square().mean()
            if weights.cycle_samples:
                sample = x_tilde.detach()
                x_rec = self.decoder(self.encoder(sample, epsilon)[0])
                g_loss = g_loss + weights.cycle_samples * self.native(x_rec - sample).square().mean()
        self.opt_g.zero_grad(set_to_none=True)
        self.precision.backward(g_loss)  # D gets gradients, too; they are thrown away at its next step
        self.precision.step(self.opt_g)
        return g_loss.detach()

    def _judge(self, x: Tensor, z: Tensor) -> Tensor:
        return self.discriminator((x,), z).d


def _leaves(x: Tensor, z: Tensor, differentiable: bool) -> tuple[Tensor, Tensor]:
    """D's inputs as constants, or as leaves where a gradient with respect to them is wanted."""
    return x.detach().requires_grad_(differentiable), z.detach().requires_grad_(differentiable)


def _half_squared(logits: Tensor, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Half the mean squared norm of each logit's gradient with respect to its inputs."""
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return 0.5 * torch.stack([g.square().flatten(1).sum(1) for g in gradients]).sum(0).mean()
