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
inverse    no game: the encoder alone learns to invert a decoder.

Losses are means over the global batch. A rank's part is summed and weighted with world_size / B, because
DistributedDataParallel averages over ranks; ranks may hold different numbers of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ali_dist.model.ali import ALI, ALIOutput, LabelledBatch
from ali_dist.model.gradient_gates import GradientGate, PassThrough, ScaleGradient, StopGradient
from ali_dist.model.losses import OBJECTIVES, PerPair, class_entropy, class_imbalance
from ali_dist.training.precision import Precision


class TrainBatch(NamedTuple):
    """What an update is given, this rank's part."""

    x: Tensor  # [b, ...] in the model's range
    z: Tensor  # [b, n_z]
    epsilon: Tensor  # [b, n_z]
    c: Tensor | None = None  # [b, A] conditions
    labelled: LabelledBatch | None = None


class StepLosses(NamedTuple):
    """Sums over this rank's samples, on the device, without gradient; divide by the count to get means."""

    d_loss: Tensor
    g_loss: Tensor
    d_q: Tensor  # probability D gives encoder pairs of being encoder pairs
    d_p: Tensor  # probability D gives decoder pairs of being encoder pairs
    penalty: Tensor
    cycle: Tensor  # cycle terms, and the encoder's error as an inverse of G where it learns that
    supervised: Tensor  # cross-entropy of the labelled data's classes, not weighted


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Factors of the update's terms at one moment."""

    r1: float = 0.0
    r2: float = 0.0
    cycle_x: float = 0.0
    cycle_z: float = 0.0
    cycle_samples: float = 0.0
    supervised: float = 0.0
    entropy: float = 0.0
    balance: float = 0.0


class Step:
    """Algorithm 1 on this rank; every rank must call it the same number of times.

    Args:
        way: scaled, penalised, coupled, alternating or inverse, from `ways.choose_way`.
        loss: Name of the objective.
        ali: The networks, unwrapped.
        players: `ali`, or what `distributed.wrap` made of it.
        optimizer: One optimiser with the parameters of both players.
        precision: What is cast and scaled.
        global_batch_size: B.
        world_size: Ranks that share B.
        packing: Pairs m that D judges together.
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
        packing: int = 1,
    ) -> None:
        self.way, self.packing = way, packing
        self.objective = OBJECTIVES[loss]
        self.players, self.optimizer, self.precision = players, optimizer, precision
        self.theta_g, self.theta_d = ali.generator_parameters(), ali.discriminator_parameters()
        self.world_size, self.global_batch_size = world_size, global_batch_size
        self.share = world_size / global_batch_size

    def __call__(self, batch: TrainBatch, weights: LossWeights) -> StepLosses:
        """One update from this rank's part of a global batch."""
        penalised = weights.r1 > 0 or weights.r2 > 0
        if self.way == "alternating":
            return self._alternating(batch, weights, penalised)
        if self.way == "coupled":
            losses = self._coupled(batch, weights)
        elif self.way == "inverse":
            losses = self._inverse(batch, weights)
        elif self.way == "penalised" and (penalised or not self._can_scale(weights)):
            losses = self._penalised(batch, weights)
        else:
            losses = self._scaled(batch, weights)
        self._update()
        return losses

    def _can_scale(self, weights: LossWeights) -> bool:
        beside = weights.entropy or weights.balance
        return self.objective.factors is not None and self.precision.name != "fp16" and not beside

    def _scaled(self, batch: TrainBatch, weights: LossWeights) -> StepLosses:
        boundary = ScaleGradient()
        pairs = self._forward(batch, boundary)
        assert self.objective.factors is not None
        factors = self.objective.factors(pairs.d_q.detach(), pairs.d_p.detach())
        boundary.factor_q, boundary.factor_p = map(self._each, factors)
        cycle = _cycle_loss(pairs, weights)
        self.precision.backward((self._d_loss(pairs, weights) + cycle) * self.share)
        return self._losses(pairs, cycle=cycle)

    def _penalised(self, batch: TrainBatch, weights: LossWeights) -> StepLosses:
        pairs = self._forward(batch, StopGradient(differentiable=True))
        gradients = _input_gradients(pairs)
        penalty = self._penalty(gradients, weights)
        slope_q, slope_p = map(self._each, self.objective.g_slopes(pairs.d_q.detach(), pairs.d_p.detach()))
        # <generator output, constant> has exactly the generators' gradient; its value means nothing.
        surrogate = (pairs.x_tilde * gradients.x_p.detach() * _per_row(slope_p, pairs.x_tilde)).sum()
        if pairs.z_hat is not None and gradients.z is not None:
            on_z_hat = gradients.z.detach()[: len(pairs.z_hat)] * _per_row(slope_q, pairs.z_hat)
            surrogate = surrogate + (pairs.z_hat * on_z_hat).sum()
        # Per pack, like the loss: each of its pairs gets the whole pack's gradient.
        surrogate = surrogate * self.packing
        cycle = _cycle_loss(pairs, weights)
        self.precision.backward((self._d_loss(pairs, weights) + penalty + surrogate + cycle) * self.share)
        return self._losses(pairs, penalty=penalty, cycle=cycle)

    def _coupled(self, batch: TrainBatch, weights: LossWeights) -> StepLosses:
        pairs = self._forward(batch, PassThrough())
        cycle = _cycle_loss(pairs, weights)
        # .backward(inputs=...), never autograd.grad: DistributedDataParallel does not reduce what grad returns.
        self.precision.backward(self._d_loss(pairs, weights) * self.share, inputs=self.theta_d, retain=True)
        self.precision.backward((self._g_loss(pairs) + cycle) * self.share, inputs=self.theta_g)
        return self._losses(pairs, cycle=cycle)

    def _alternating(self, batch: TrainBatch, weights: LossWeights, penalised: bool) -> StepLosses:
        pairs = self._forward(batch, StopGradient(differentiable=penalised))
        penalty = self._penalty(_input_gradients(pairs), weights) if penalised else pairs.d_q.new_zeros(())
        self.precision.backward((self._d_loss(pairs, weights) + penalty) * self.share, inputs=self.theta_d)
        self._update()
        again = self._forward(batch, PassThrough())
        cycle = _cycle_loss(again, weights)
        self.precision.backward((self._g_loss(again) + cycle) * self.share, inputs=self.theta_g)
        self._update()
        return self._losses(pairs, penalty=penalty, cycle=cycle)

    def _inverse(self, batch: TrainBatch, weights: LossWeights) -> StepLosses:
        pairs = self._forward(batch, StopGradient(differentiable=False))
        cycle = _cycle_loss(pairs, weights)
        self.precision.backward(cycle * self.share)
        return self._losses(pairs, cycle=cycle)

    def _forward(self, batch: TrainBatch, boundary: GradientGate) -> ALIOutput:
        with self.precision.autocast():
            pairs: ALIOutput = self.players(batch.x, batch.z, batch.epsilon, boundary, batch.c, batch.labelled)
        return pairs

    def _d_loss(self, pairs: ALIOutput, weights: LossWeights) -> Tensor:
        """Loss of the discriminator, summed over samples; a pack's counts for each of its samples."""
        total = self._over_scores(self.objective.d_loss, pairs)
        if pairs.supervised is not None:
            total = total + weights.supervised * pairs.supervised.sum()
        if pairs.log_shares is not None and weights.entropy:
            # Sure answers on unlabelled data. Source: Grandvalet and Bengio, NIPS 2004; Springenberg, arXiv 1511.06390.
            total = total + weights.entropy * class_entropy(pairs.log_shares).sum()
        if pairs.log_shares is not None and weights.balance:
            # But not all the same answer: where labels are few, one class may else swallow another.
            mean = self._mean_over_global_batch(pairs.log_shares.detach().exp())
            total = total + weights.balance * class_imbalance(pairs.log_shares, mean).sum()
        return total

    def _mean_over_global_batch(self, x: Tensor) -> Tensor:
        """Mean of the rows of all ranks; collective."""
        total = x.sum(0)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total / self.global_batch_size

    def _g_loss(self, pairs: ALIOutput) -> Tensor:
        """Loss of the generators, summed over samples."""
        return self._over_scores(self.objective.g_loss, pairs)

    def _over_scores(self, loss: PerPair, pairs: ALIOutput) -> Tensor:
        """`loss` of the joint logit and, where D has them, of each unary logit (BigBiGAN, arXiv 1907.02544, eq. 2)."""
        total = loss(pairs.d_q, pairs.d_p).sum()
        if pairs.unary_q is not None and pairs.unary_p is not None:
            total = total + loss(pairs.unary_q, pairs.unary_p).sum()
        return total * self.packing

    def _each(self, per_pack: Tensor) -> Tensor:
        """[R] for packs as [b] for their samples."""
        return per_pack if self.packing == 1 else per_pack.repeat_interleave(self.packing)

    def _penalty(self, gradients: _InputGradients, weights: LossWeights) -> Tensor:
        """r1/2 |grad D|^2 over encoder pairs + r2/2 |grad D|^2 over decoder pairs, with respect to D's inputs, summed.

        Source: Mescheder et al., arXiv 1801.04406; both sides as in Huang et al., arXiv 2501.05441.
        """
        on_q, on_p = gradients.x_q.square().sum(), gradients.x_p.square().sum()
        if gradients.z is not None:
            on_z_hat, on_z = gradients.z.square().chunk(2)
            on_q, on_p = on_q + on_z_hat.sum(), on_p + on_z.sum()
        return 0.5 * self.packing * (weights.r1 * on_q + weights.r2 * on_p)

    def _update(self) -> None:
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, pairs: ALIOutput, *, penalty: Tensor | None = None, cycle: Tensor) -> StepLosses:
        with torch.no_grad():
            zero = pairs.d_q.new_zeros(())
            return StepLosses(
                d_loss=self._over_scores(self.objective.d_loss, pairs),
                g_loss=self._over_scores(self.objective.g_loss, pairs),
                d_q=pairs.d_q.sigmoid().sum() * self.packing,
                d_p=pairs.d_p.sigmoid().sum() * self.packing,
                penalty=zero if penalty is None else penalty.detach(),
                cycle=cycle.detach(),
                supervised=zero if pairs.supervised is None else pairs.supervised.detach().sum(),
            )


class _InputGradients(NamedTuple):
    """Gradient of every logit with respect to its own inputs; see `Seen`."""

    x_q: Tensor
    x_p: Tensor
    z: Tensor | None


def _per_row(per_sample: Tensor, like: Tensor) -> Tensor:
    """[b] shaped so that it multiplies the rows of `like`."""
    return per_sample.view(-1, *[1] * (like.dim() - 1))


def _cycle_loss(pairs: ALIOutput, weights: LossWeights) -> Tensor:
    """Weighted sum of the cycle terms (ALICE, arXiv 1709.01215), and of the inverse mapping's error with weight 1."""
    total = pairs.d_q.new_zeros(())
    for weight, error in (
        (weights.cycle_x, pairs.cycle_x),
        (weights.cycle_z, pairs.cycle_z),
        (weights.cycle_samples, pairs.cycle_samples),
        (1.0, pairs.inverse),
    ):
        if error is not None:
            total = total + weight * error.sum()
    return total


def _input_gradients(pairs: ALIOutput) -> _InputGradients:
    """Gradient of every logit with respect to its own inputs, with graph."""
    seen = pairs.seen
    assert seen is not None, "a game without D has no penalty"
    inputs = [part for part in seen if part is not None]
    x_q, x_p, *z = torch.autograd.grad(pairs.d_q.sum() + pairs.d_p.sum(), inputs, create_graph=True)
    return _InputGradients(x_q, x_p, z[0] if z else None)
