"""The update as most public ALI and BiGAN code in PyTorch writes it: first D, then E and G, each with its own pass.

The step bench measures against it. It has the same networks, losses and terms as `ali_dist.training.step`, and it is
not slower than it has to be: gradients are set to None, and nothing is logged. As in that code, D is called once for
each kind of pair, and D and the generators each have an Adam with PyTorch's defaults, which on CUDA are the foreach
kernels, and on a CPU one tensor at a time.

Public code differs in how it comes by the pairs of the two steps, see `STYLES`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.config import OptimConfig
from ali_dist.model.ali import ALI
from ali_dist.model.batch_norm import BatchNorm2d
from ali_dist.model.layers import ConvTranspose2d, Dropout, Maxout
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, TrainBatch

STYLES = {
    "usual": "E and G run twice, in the step of D without gradient",
    "usual, graph kept": "E and G run twice, on two draws of noise, and the step of D goes back through them in vain",
    "usual, one draw": "E and G run once; D judges their output twice, first as a constant",
}
"""How the pairs of the step of D and of that of E and G are made, by the name in tables."""


class StockMaxout(nn.Module):
    """Maxout of adjacent channels, with the fastest of torch's own operators."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        if self.pieces == 2:
            return torch.maximum(x[:, 0::2], x[:, 1::2])
        return x.unflatten(1, (-1, self.pieces)).amax(2)


def use_stock_layers(module: nn.Module) -> None:
    """Replace those layers in `module` that are not torch's own by the ones that public code takes from torch."""
    for name, child in module.named_children():
        if isinstance(child, Maxout):
            setattr(module, name, StockMaxout(child.pieces))
        elif isinstance(child, Dropout):
            setattr(module, name, nn.Dropout(child.p))
        elif isinstance(child, BatchNorm2d):
            norm = nn.BatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        elif isinstance(child, ConvTranspose2d):
            setattr(module, name, _StockConvTranspose2d(child))
        else:
            use_stock_layers(child)


class _StockConvTranspose2d(nn.Module):
    """torch's transposed convolution with the parameters of one of ours."""

    def __init__(self, ours: ConvTranspose2d) -> None:
        super().__init__()
        assert isinstance(ours.padding, tuple)
        self.weight, self.bias = ours.weight, ours.bias
        self.stride, self.padding = ours.stride, ours.padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)


class _Pairs(NamedTuple):
    """What E and G make of a batch, and what of."""

    x: Tensor
    z_hat: Tensor
    x_tilde: Tensor
    z: Tensor
    epsilon: Tensor
    e: Tensor | None

    def detach(self) -> _Pairs:
        """The same as constants."""
        x, z_hat, x_tilde, z, epsilon, e = self
        return _Pairs(x, z_hat.detach(), x_tilde.detach(), z, epsilon, None if e is None else e.detach())


class UsualStep:
    """One alternating update, against which all others are measured.

    Args:
        ali: The networks; only the encoder, the decoder and the discriminator are used.
        loss: Name of the objective.
        optim: Learning rates and Adam's settings.
        precision: What is cast and scaled.
        style: A name in `STYLES`.
        compiled: Whether the networks are compiled.
        has_penalty: Whether there is a gradient penalty; torch.compile cannot differentiate it, so D then stays eager.
        fused: Whether Adam is the fused one, as in our own step.
    """

    def __init__(
        self,
        ali: ALI,
        loss: str,
        optim: OptimConfig,
        precision: Precision,
        *,
        style: str = "usual",
        compiled: bool = False,
        has_penalty: bool = False,
        fused: bool = False,
    ) -> None:
        self.objective = OBJECTIVES[loss]
        self.style = style
        self.precision = precision
        self.native = ali.native
        self.embedding = ali.embedding
        self.encoder = torch.compile(ali.encoder) if compiled else ali.encoder
        self.decoder = torch.compile(ali.decoder) if compiled else ali.decoder
        self.discriminator = torch.compile(ali.discriminator) if compiled and not has_penalty else ali.discriminator
        # None is PyTorch's own choice of implementation; False would switch foreach off, too.
        options: dict[str, Any] = {"betas": (optim.beta1, optim.beta2), "eps": optim.eps, "fused": fused or None}
        self.opt_d = torch.optim.Adam(ali.discriminator_parameters(), lr=optim.lr_d, **options)
        self.opt_g = torch.optim.Adam(ali.generator_parameters(), lr=optim.lr_g, **options)

    def __call__(self, batch: TrainBatch, weights: LossWeights) -> tuple[Tensor, Tensor]:
        """Do one update; returns the mean losses of D, and of E and G."""
        if self.style == "usual, one draw":
            pairs = self._make_pairs(batch)
            return self._update_discriminator(pairs.detach(), weights), self._update_generators(pairs, weights)
        with torch.set_grad_enabled(self.style == "usual, graph kept"):
            pairs = self._make_pairs(batch)
        d_loss = self._update_discriminator(pairs, weights)
        if self.style == "usual, graph kept":
            batch = batch._replace(z=torch.randn_like(batch.z), epsilon=torch.randn_like(batch.epsilon))
        return d_loss, self._update_generators(self._make_pairs(batch), weights)

    def _make_pairs(self, batch: TrainBatch) -> _Pairs:
        x, z, epsilon = batch[:3]
        with self.precision.autocast():
            e = None if self.embedding is None or batch.c is None else self.embedding(batch.c)
            return _Pairs(x, self.encoder(x, epsilon, e)[0], self.decoder(z, e), z, epsilon, e)

    def _update_discriminator(self, pairs: _Pairs, weights: LossWeights) -> Tensor:
        encoder_pair, decoder_pair = (pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z)
        if weights.has_penalty:
            encoder_pair, decoder_pair = _make_differentiable(*encoder_pair), _make_differentiable(*decoder_pair)
        with self.precision.autocast():
            d_q = self._discriminate(*encoder_pair, pairs.e)
            d_p = self._discriminate(*decoder_pair, pairs.e)
        d_loss = self.objective.d_loss(d_q, d_p).mean()
        if weights.has_penalty:
            d_loss = d_loss + weights.r1 * _half_squared_slope(d_q, encoder_pair)
            d_loss = d_loss + weights.r2 * _half_squared_slope(d_p, decoder_pair)
        self.opt_d.zero_grad(set_to_none=True)
        self.precision.backward(d_loss)
        self.precision.step(self.opt_d)
        return d_loss.detach()

    def _update_generators(self, pairs: _Pairs, weights: LossWeights) -> Tensor:
        x, z_hat, x_tilde, z, epsilon, e = pairs
        with self.precision.autocast():
            constant_e = None if e is None else e.detach()  # as ours: E and G alone train the embedding
            d_q = self._discriminate(x, z_hat, constant_e)
            d_p = self._discriminate(x_tilde, z, constant_e)
            g_loss = self.objective.g_loss(d_q, d_p).mean()
            if weights.cycle_x:
                g_loss = g_loss + weights.cycle_x * self.native(self.decoder(z_hat, e) - x).square().mean()
            if weights.cycle_z:
                g_loss = g_loss + weights.cycle_z * (self.encoder(x_tilde, epsilon, e)[1] - z).square().mean()
            if weights.cycle_samples:
                sample = x_tilde.detach()
                x_rec = self.decoder(self.encoder(sample, epsilon, e)[0], e)
                g_loss = g_loss + weights.cycle_samples * self.native(x_rec - sample).square().mean()
        self.opt_g.zero_grad(set_to_none=True)
        self.precision.backward(g_loss)  # D gets gradients, too, which are discarded in its next update
        self.precision.step(self.opt_g)
        return g_loss.detach()

    def _discriminate(self, x: Tensor, z: Tensor, e: Tensor | None) -> Tensor:
        return self.discriminator((x,), z, e).d


def _make_differentiable(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Give D inputs that a penalty can be differentiated by: those that are not yet become leaves."""
    x, z = (part if part.requires_grad else part.detach().requires_grad_() for part in (x, z))
    return x, z


def _half_squared_slope(logits: Tensor, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Compute half the mean squared norm of the gradient of each logit with respect to its inputs."""
    slopes = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return 0.5 * torch.stack([slope.square().flatten(1).sum(1) for slope in slopes]).sum(0).mean()
