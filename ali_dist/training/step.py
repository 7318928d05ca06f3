"""One update of Algorithm 1 of the paper (arXiv 1606.00704), in three exact simultaneous ways and an alternating one.

Algorithm 1, for a global batch of B:
    (1) draw z ~ p(z) and epsilon ~ N(0, I);
    (2) z_hat = encoder(x), x_tilde = decoder(z);
    (3) d_q, d_p = discriminator on both pairs;
    (4) d_loss and g_loss;
    (5) the gradient of d_loss for theta_d and of g_loss for theta_g, both at the same parameters;
    (6) update both.

(1) belongs to the loop, so that world size does not change it. The ways differ in how (5) is computed:

scaled     one backward pass of d_loss; at the boundary each sample's gradient is multiplied by g_loss' / d_loss'.
penalised  D's input gradient J, which R1 and R2 need anyway, times each sample's g_loss' is the generators' gradient.
coupled    two backward passes over one forward pass: for discriminators with batch norm, and for the hinge loss.
alternating  updates D, runs a second forward pass, then updates E and G: not the paper's rule, for comparison.

Losses are means over the global batch. A rank's part is summed and weighted with world_size / B, because
DistributedDataParallel averages over ranks; ranks may hold different numbers of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ali_dist.errors import InputError
from ali_dist.model.ali import ALI, Boundary, ClosedBoundary, OpenBoundary, Pairs, ScaledBoundary, Seen
from ali_dist.model.objectives import OBJECTIVES
from ali_dist.training.precision import Precision


class Losses(NamedTuple):
    """Sums over this rank's samples, on the device, without gradient; divide by the count to get means."""

    d_loss: Tensor
    g_loss: Tensor
    d_q: Tensor  # probability D gives encoder pairs of being encoder pairs
    d_p: Tensor  # probability D gives decoder pairs of being encoder pairs
    penalty: Tensor
    cycle: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Factors of the update's terms at one moment."""

    r1: float = 0.0
    r2: float = 0.0
    cycle_x: float = 0.0
    cycle_z: float = 0.0
    cycle_samples: float = 0.0


def choose_way(update: str, loss: str, *, couples_samples: bool, penalised: bool, precision: str) -> str:
    """The way an update is computed.

    Args:
        update: The user's choice, or auto.
        loss: Name of the objective.
        couples_samples: Whether D's logit of one sample depends on the others (batch norm).
        penalised: Whether a gradient penalty is on.
        precision: fp32, bf16 or fp16.

    Raises:
        InputError: The choice is not exact for this model and objective.
    """
    if penalised and couples_samples:
        raise InputError(
            "objective.r1 or objective.r2 is on, but this discriminator has batch norm, whose input gradients mix "
            "samples: set both to 0 or choose an architecture without batch norm in D."
        )
    if update == "auto":
        if penalised:
            return "penalised"
        exact = not couples_samples and OBJECTIVES[loss].factors is not None and precision != "fp16"
        return "scaled" if exact else "coupled"
    if update in ("scaled", "penalised") and couples_samples:
        raise InputError(
            f"objective.update is {update!r}, but this discriminator has batch norm, which couples samples: "
            "use 'auto' or 'coupled'."
        )
    if update == "scaled" and precision == "fp16":
        raise InputError("objective.update is 'scaled', whose factors overflow fp16: use bf16, fp32 or 'auto'.")
    if update == "coupled" and penalised:
        raise InputError(
            "objective.update is 'coupled', but objective.r1 or objective.r2 asks for a gradient penalty: "
            "use 'auto' or 'penalised', or set both to 0."
        )
    return update


class Step:
    """Algorithm 1 on this rank; every rank must call it the same number of times.

    Args:
        way: scaled, penalised, coupled or alternating, from `choose_way`.
        loss: Name of the objective.
        ali: The networks, unwrapped.
        players: `ali`, or what `distributed.wrap` made of it.
        optimizer: One optimiser with the parameters of both players.
        precision: What is cast and scaled.
        global_batch_size: B.
        world_size: Ranks that share B.
    """

    def __init__(
        self,
        way: str,
        loss: str,
        ali: ALI,
        players: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        global_batch_size: int,
        world_size: int = 1,
    ) -> None:
        self.way = way
        self.objective = OBJECTIVES[loss]
        self.players, self.optimizer, self.precision = players, optimizer, precision
        self.theta_g, self.theta_d = ali.generator_parameters(), ali.discriminator_parameters()
        self.share = world_size / global_batch_size

    def __call__(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: Weights) -> Losses:
        """One update from this rank's x [b, ...], z and epsilon [b, n_z]."""
        penalised = weights.r1 > 0 or weights.r2 > 0
        if self.way == "alternating":
            return self._alternating(x, z, epsilon, weights, penalised)
        if self.way == "coupled":
            losses = self._coupled(x, z, epsilon, weights)
        elif self.way == "penalised" and (penalised or not self._can_scale):
            losses = self._penalised(x, z, epsilon, weights)
        else:
            losses = self._scaled(x, z, epsilon, weights)
        self._update()
        return losses

    @property
    def _can_scale(self) -> bool:
        return self.objective.factors is not None and self.precision.name != "fp16"

    def _scaled(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: Weights) -> Losses:
        boundary = ScaledBoundary()
        pairs = self._forward(x, z, epsilon, boundary)
        assert self.objective.factors is not None
        boundary.factor_q, boundary.factor_p = self.objective.factors(pairs.d_q.detach(), pairs.d_p.detach())
        d_loss = self.objective.d_loss(pairs.d_q, pairs.d_p).sum()
        cycle = _cycle(pairs, weights)
        self.precision.backward((d_loss + cycle) * self.share)
        return self._losses(pairs, cycle=cycle)

    def _penalised(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: Weights) -> Losses:
        pairs = self._forward(x, z, epsilon, ClosedBoundary(differentiable=True))
        gradients = _input_gradients(pairs)
        penalty = _penalty(gradients, weights)
        slope_q, slope_p = self.objective.g_slopes(pairs.d_q.detach(), pairs.d_p.detach())
        # <generator output, constant> has exactly the generators' gradient; its value means nothing.
        on_z_hat = gradients.z.detach()[: len(x)] * _rows(slope_q, pairs.z_hat)
        on_x_tilde = gradients.x_p.detach() * _rows(slope_p, pairs.x_tilde)
        surrogate = (pairs.z_hat * on_z_hat).sum() + (pairs.x_tilde * on_x_tilde).sum()
        d_loss = self.objective.d_loss(pairs.d_q, pairs.d_p).sum()
        cycle = _cycle(pairs, weights)
        self.precision.backward((d_loss + penalty + surrogate + cycle) * self.share)
        return self._losses(pairs, penalty=penalty, cycle=cycle)

    def _coupled(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: Weights) -> Losses:
        pairs = self._forward(x, z, epsilon, OpenBoundary())
        d_loss = self.objective.d_loss(pairs.d_q, pairs.d_p).sum()
        g_loss = self.objective.g_loss(pairs.d_q, pairs.d_p).sum()
        cycle = _cycle(pairs, weights)
        # .backward(inputs=...), never autograd.grad: DistributedDataParallel does not reduce what grad returns.
        self.precision.backward(d_loss * self.share, inputs=self.theta_d, retain=True)
        self.precision.backward((g_loss + cycle) * self.share, inputs=self.theta_g)
        return self._losses(pairs, cycle=cycle)

    def _alternating(self, x: Tensor, z: Tensor, epsilon: Tensor, weights: Weights, penalised: bool) -> Losses:
        pairs = self._forward(x, z, epsilon, ClosedBoundary(differentiable=penalised))
        penalty = _penalty(_input_gradients(pairs), weights) if penalised else pairs.d_q.new_zeros(())
        d_loss = self.objective.d_loss(pairs.d_q, pairs.d_p).sum()
        self.precision.backward((d_loss + penalty) * self.share, inputs=self.theta_d)
        self._update()
        again = self._forward(x, z, epsilon, OpenBoundary())
        g_loss = self.objective.g_loss(again.d_q, again.d_p).sum()
        cycle = _cycle(again, weights)
        self.precision.backward((g_loss + cycle) * self.share, inputs=self.theta_g)
        self._update()
        return self._losses(pairs, penalty=penalty, cycle=cycle)

    def _forward(self, x: Tensor, z: Tensor, epsilon: Tensor, boundary: Boundary) -> Pairs:
        with self.precision.autocast():
            pairs: Pairs = self.players(x, z, epsilon, boundary)
        return pairs

    def _update(self) -> None:
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, pairs: Pairs, *, penalty: Tensor | None = None, cycle: Tensor) -> Losses:
        with torch.no_grad():
            zero = pairs.d_q.new_zeros(())
            return Losses(
                d_loss=self.objective.d_loss(pairs.d_q, pairs.d_p).sum(),
                g_loss=self.objective.g_loss(pairs.d_q, pairs.d_p).sum(),
                d_q=pairs.d_q.sigmoid().sum(),
                d_p=pairs.d_p.sigmoid().sum(),
                penalty=zero if penalty is None else penalty.detach(),
                cycle=cycle.detach(),
            )


def _rows(per_sample: Tensor, like: Tensor) -> Tensor:
    """[b] shaped so that it multiplies the rows of `like`."""
    return per_sample.view(-1, *[1] * (like.dim() - 1))


def _cycle(pairs: Pairs, weights: Weights) -> Tensor:
    """Weighted sum of the cycle terms. Source: ALICE, arXiv 1709.01215."""
    total = pairs.d_q.new_zeros(())
    if pairs.cycle_x is not None:
        total = total + weights.cycle_x * pairs.cycle_x.sum()
    if pairs.cycle_z is not None:
        total = total + weights.cycle_z * pairs.cycle_z.sum()
    if pairs.cycle_samples is not None:
        total = total + weights.cycle_samples * pairs.cycle_samples.sum()
    return total


def _input_gradients(pairs: Pairs) -> Seen:
    """Gradient of every logit with respect to its own inputs, with graph."""
    logits = pairs.d_q.sum() + pairs.d_p.sum()
    return Seen(*torch.autograd.grad(logits, pairs.seen, create_graph=True))


def _penalty(gradients: Seen, weights: Weights) -> Tensor:
    """r1/2 |grad D|^2 over encoder pairs + r2/2 |grad D|^2 over decoder pairs, with respect to x and z, summed.

    Source: Mescheder et al., arXiv 1801.04406; both sides as in Huang et al., arXiv 2501.05441.
    """
    on_z_hat, on_z = gradients.z.square().chunk(2)
    on_q = gradients.x_q.square().sum() + on_z_hat.sum()
    on_p = gradients.x_p.square().sum() + on_z.sum()
    return 0.5 * (weights.r1 * on_q + weights.r2 * on_p)
