"""One update of Algorithm 1 of the paper (arXiv 1606.00704) on this rank.

Algorithm 1, for a global batch of B:
    (1) draw z ~ p(z) and epsilon ~ N(0, I);
    (2) z_hat = encoder(x), x_tilde = decoder(z);
    (3) d_q, d_p = discriminator on both pairs;
    (4) d_loss and g_loss;
    (5) the gradient of d_loss for theta_d and of g_loss for theta_g, both at the same parameters;
    (6) update both.

(1) lies in `train_batches.py`, so that world size does not change it. (2) to (4) are the methods below, which an update
rule (`update_rules.py`) puts together: the rules differ in how they compute (5) from as little work as possible.

Losses are means over the global batch. A rank's part is summed and weighted with world_size / B, because
DistributedDataParallel averages over ranks; ranks may hold different numbers of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ali_dist.config import ObjectiveConfig
from ali_dist.model.ali import ALI, ALIOutput, LabelledBatch
from ali_dist.model.gradient_gates import GradientGate
from ali_dist.model.losses import OBJECTIVES, PairLoss, class_entropy, class_imbalance
from ali_dist.model.piecewise_linear import is_piecewise_linear
from ali_dist.training.precision import Precision
from ali_dist.training.randomness import AugmentationDraws, DropoutMasks

_FAR_LOGIT = 30.0


class TrainBatch(NamedTuple):
    """What an update is given: this rank's part of a global batch."""

    x: Tensor  # [b, ...] in the model's range
    z: Tensor  # [b, n_z]
    epsilon: Tensor  # [b, n_z]
    c: Tensor | None = None  # [b, A] conditions
    labelled: LabelledBatch | None = None


class StepResult(NamedTuple):
    """Sums over this rank's samples, on the device, without gradient; divide by the count to get means."""

    d_loss: Tensor
    g_loss: Tensor
    d_q: Tensor  # probability D gives encoder pairs of being encoder pairs
    d_p: Tensor  # probability D gives decoder pairs of being encoder pairs
    penalty_q: Tensor  # the gradient penalty of encoder pairs, R1
    penalty_p: Tensor  # and of decoder pairs, R2
    cycle: Tensor  # cycle terms, and the encoder's error as an inverse of G where it learns that
    supervised: Tensor  # cross-entropy of the labelled data's classes, not weighted
    d_sign: Tensor  # sign of D's logit of encoder pairs (relativistic: of its lead over decoder pairs)
    logits_beyond_30: Tensor  # share of each sample's logits, over both sides, whose magnitude is above 30

    @property
    def penalty(self) -> Tensor:
        """The gradient penalty of both sides."""
        return self.penalty_q + self.penalty_p


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Factors of the update's terms at one moment.

    r1 and r2 may be numbers on the device, which are then more than 0: a captured update reads them there.
    """

    r1: float | Tensor = 0.0
    r2: float | Tensor = 0.0
    cycle_x: float = 0.0
    cycle_z: float = 0.0
    cycle_samples: float = 0.0
    supervised: float = 0.0
    entropy: float = 0.0
    balance: float = 0.0

    @property
    def has_penalty(self) -> bool:
        """Whether a gradient penalty is due."""
        return any(isinstance(weight, Tensor) or weight > 0 for weight in (self.r1, self.r2))


def loss_weights_at(objective: ObjectiveConfig, step: int, penalty_factor: float) -> LossWeights:
    """The factors of update `step`: penalties times `penalty_factor`, taken every k-th update at k times their weight.

    Source: lazy regularization, Karras et al., CVPR 2020 (arXiv 1912.04958), section 3.1.
    """
    is_due = step % objective.penalty_every == 0
    penalty = penalty_factor * objective.penalty_every if is_due else 0.0
    return LossWeights(
        r1=objective.r1 * penalty,
        r2=objective.r2 * penalty,
        cycle_x=objective.cycle_x,
        cycle_z=objective.cycle_z,
        cycle_samples=objective.cycle_samples,
        supervised=objective.supervised,
        entropy=objective.entropy,
        balance=objective.balance,
    )


class InputGradients(NamedTuple):
    """Gradient of every logit with respect to its own inputs, as `DiscriminatorInputs` has them."""

    x_q: Tensor
    x_p: Tensor
    z: Tensor | None


class GradientRule(Protocol):
    """What a step has to know of its update rule; see `update_rules.UpdateRule`."""

    @property
    def name(self) -> str:
        """The rule's name in `objective.update`."""

    @property
    def gradients(self) -> Callable[[Step, TrainBatch, LossWeights], StepResult]:
        """Leaves the gradients of both players in their parameters, and says what is reported."""


class Step:
    """Algorithm 1 on this rank; every rank must call it the same number of times.

    Args:
        rule: How the gradients of both players are computed.
        loss: Name of the objective.
        ali: The networks, unwrapped.
        networks: `ali`, or what `ddp.wrap_for_ddp` made of it.
        optimizer: One optimizer with the parameters of both players.
        precision: What is cast and scaled.
        global_batch_size: B.
        world_size: Ranks that share B.
        packing: Pairs m that D judges together.
        masks: Of D's dropout; None leaves them to torch's global generator.
        augmentation: Draws for the images that D sees; None: nothing is drawn.
        micro_batch: Samples that the networks are given at once, a multiple of m; None: all of this rank. The gradients
            of the parts add up to those of the whole, but for rounding, where no network has batch norm.
        pause_reduction: A context in which backward passes leave gradients on their rank, see `ddp.pause_reduction`.
    """

    def __init__(
        self,
        rule: GradientRule,
        loss: str,
        ali: ALI,
        networks: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        global_batch_size: int,
        world_size: int = 1,
        packing: int = 1,
        masks: DropoutMasks | None = None,
        augmentation: AugmentationDraws | None = None,
        micro_batch: int | None = None,
        pause_reduction: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.rule = rule
        self.objective = OBJECTIVES[loss]
        self.networks = networks
        self.optimizer = optimizer
        self.precision = precision
        self.theta_g = ali.generator_parameters()
        self.theta_d = ali.discriminator_parameters()
        self.discriminator = ali.discriminator
        self.has_piecewise_linear_d = is_piecewise_linear(ali.discriminator)
        self.global_batch_size = global_batch_size
        self.world_size = world_size
        self.packing = packing
        self.draws = [draws for draws in (masks, augmentation) if draws is not None]
        self.micro_batch = micro_batch
        self._pause_reduction = pause_reduction
        self._part: slice | None = None  # the rows that a forward pass is given, where it is not given all
        self.draws_in_forward = True  # False while an update is captured: what is random in it is drawn before

    def start_update(self, step: int) -> None:
        """Say which update of the run the next one is: what is random in it follows from that."""
        for draws in self.draws:
            draws.start_update(step)

    def reseed(self, seed: int) -> None:
        """Draw what is random in forward passes from another seed."""
        for draws in self.draws:
            draws.reseed(seed)

    def draw(self) -> None:
        """Draw what is random in the next forward pass."""
        for draws in self.draws:
            draws.draw()

    def __call__(self, batch: TrainBatch, weights: LossWeights) -> StepResult:
        """One update from this rank's part of a global batch. Collective."""
        # (1) is in the batch. (2) to (5): forward pass, losses, and the gradients of both players.
        if self.micro_batch is None or self.micro_batch >= len(batch.x):
            result = self.rule.gradients(self, batch, weights)
        else:
            result = self._accumulate_gradients(batch, weights, self.micro_batch)
        # (6) Both players move.
        self.update_parameters()
        return result

    def _accumulate_gradients(self, batch: TrainBatch, weights: LossWeights, size: int) -> StepResult:
        """(2) to (5) for `size` rows after another: gradients add up, and ranks exchange them once. Collective."""
        if self.draws_in_forward:
            self.draw()
        parts = [slice(start, start + size) for start in range(0, len(batch.x), size)]
        results = []
        for self._part in parts:
            with nullcontext() if self._part is parts[-1] else self._pause_reduction():
                results.append(self.rule.gradients(self, _take_rows(batch, self._part), weights))
        self._part = None
        return StepResult(*(torch.stack(sums).sum(0) for sums in zip(*results, strict=True)))

    # ---- (2) and (3): the networks -----------------------------------------------------------------------------

    def forward(self, batch: TrainBatch, gate: GradientGate) -> ALIOutput:
        """z_hat, x_tilde, and D on both pairs."""
        if self._part is None and self.draws_in_forward:
            self.draw()
        else:
            for draws in self.draws:
                draws.hand_out(self._part)
        with self.precision.autocast():
            output: ALIOutput = self.networks(batch.x, batch.z, batch.epsilon, gate, batch.c, batch.labelled)
        return output

    # ---- (4): the losses, summed over this rank's samples ----------------------------------------------------------

    def d_loss(self, output: ALIOutput, weights: LossWeights) -> Tensor:
        """Loss of the discriminator; a pack's counts for each of its samples. Collective with `weights.balance`."""
        return self._sum_over_logits(self.objective.d_loss, output) + self.class_loss(output, weights)

    def class_loss(self, output: ALIOutput, weights: LossWeights) -> Tensor:
        """The part of the discriminator's loss that is of classes, weighted. Collective with `weights.balance`."""
        total = output.d_q.new_zeros(())
        classes = output.classes
        if classes is not None and classes.supervised is not None:
            total = total + weights.supervised * classes.supervised.sum()
        if classes is not None and weights.entropy:
            # Sure answers on unlabelled data. Source: Grandvalet and Bengio, NIPS 2004; Springenberg, arXiv 1511.06390.
            total = total + weights.entropy * class_entropy(classes.log_shares).sum()
        if classes is not None and weights.balance:
            # But not all the same answer: where labels are few, one class may else swallow another.
            mean_shares = self._mean_over_global_batch(classes.log_shares.detach().exp())
            total = total + weights.balance * class_imbalance(classes.log_shares, mean_shares).sum()
        return total

    def g_loss(self, output: ALIOutput) -> Tensor:
        """Loss of encoder and decoder in the game."""
        return self._sum_over_logits(self.objective.g_loss, output)

    def cycle_loss(self, output: ALIOutput, weights: LossWeights) -> Tensor:
        """Cycle terms (ALICE, arXiv 1709.01215), weighted; an inverse mapping's error has weight 1."""
        total = output.d_q.new_zeros(())
        for weight, error in (
            (weights.cycle_x, output.cycle.x),
            (weights.cycle_z, output.cycle.z),
            (weights.cycle_samples, output.cycle.samples),
            (1.0, output.cycle.inverse),
        ):
            if error is not None:
                total = total + weight * error.sum()
        return total

    def gradient_penalty(self, gradients: InputGradients, weights: LossWeights) -> Tensor:
        """[2]: r1/2 |grad D|^2 over encoder pairs, and r2/2 |grad D|^2 over decoder pairs, with respect to D's inputs.

        Source: Mescheder et al., arXiv 1801.04406; both sides as in Huang et al., arXiv 2501.05441.
        """
        on_q = gradients.x_q.square().sum()
        on_p = gradients.x_p.square().sum()
        if gradients.z is not None:
            on_z_hat, on_z = gradients.z.square().chunk(2)
            on_q = on_q + on_z_hat.sum()
            on_p = on_p + on_z.sum()
        return 0.5 * self.packing * torch.stack([weights.r1 * on_q, weights.r2 * on_p])

    # ---- (5): what update rules compute gradients with -------------------------------------------------------------

    def backward(self, loss: Tensor, *, inputs: list[nn.Parameter] | None = None, retain: bool = False) -> None:
        """Back-propagate a sum over this rank's samples as its part of the mean over the global batch. Collective.

        Args:
            loss: The sum.
            inputs: Parameters that receive gradients; None: all.
            retain: Keep the graph for another backward pass.
        """
        self.precision.backward(loss * (self.world_size / self.global_batch_size), inputs=inputs, retain=retain)

    def input_gradients(self, output: ALIOutput) -> InputGradients:
        """Gradient of every logit with respect to its own inputs, with graph."""
        return self.gradients_of(output.d_q.sum() + output.d_p.sum(), output, [])[0]

    def gradients_of(
        self, total: Tensor, output: ALIOutput, others: list[Tensor]
    ) -> tuple[InputGradients, list[Tensor]]:
        """Gradient of a sum over logits with respect to the inputs that they belong to, and to others; with graph."""
        if output.discriminator_inputs is None:
            raise ValueError("a game without D has no gradient penalty")
        inputs = [part for part in output.discriminator_inputs if part is not None]
        gradients = torch.autograd.grad(total, [*inputs, *others], create_graph=True)
        x_q, x_p, *z = gradients[: len(inputs)]
        return InputGradients(x_q, x_p, z[0] if z else None), list(gradients[len(inputs) :])

    def per_sample(self, per_pack: Tensor) -> Tensor:
        """Values [R] of packs as [b] of their samples."""
        return per_pack if self.packing == 1 else per_pack.repeat_interleave(self.packing)

    # ---- (6) and what is reported ------------------------------------------------------------------------------------

    def update_parameters(self) -> None:
        """Move every parameter that has a gradient, and forget the gradients."""
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def result(self, output: ALIOutput, *, cycle: Tensor, penalty: Tensor | None = None) -> StepResult:
        """What is reported of the update that `output` belongs to."""
        with torch.no_grad():
            zero = output.d_q.new_zeros(())
            penalty_q, penalty_p = (zero, zero) if penalty is None else penalty.detach().unbind()
            supervised = None if output.classes is None else output.classes.supervised
            return StepResult(
                d_loss=self._sum_over_logits(self.objective.d_loss, output),
                g_loss=self._sum_over_logits(self.objective.g_loss, output),
                d_q=output.d_q.sigmoid().sum() * self.packing,
                d_p=output.d_p.sigmoid().sum() * self.packing,
                penalty_q=penalty_q,
                penalty_p=penalty_p,
                cycle=cycle.detach(),
                supervised=zero if supervised is None else supervised.detach().sum(),
                d_sign=self.objective.lead_of_data(output.d_q, output.d_p).sign().sum() * self.packing,
                logits_beyond_30=self._count_far_logits(output),
            )

    def _count_far_logits(self, output: ALIOutput) -> Tensor:
        """Sum over samples of the share of their logits beyond 30, where D's own gradient is below 1e-13."""
        logits = [output.d_q, output.d_p]
        if output.unary_q is not None and output.unary_p is not None:
            logits += [*output.unary_q.unbind(1), *output.unary_p.unbind(1)]
        return (torch.stack(logits).abs() > _FAR_LOGIT).sum() * (self.packing / len(logits))

    def _sum_over_logits(self, pair_loss: PairLoss, output: ALIOutput) -> Tensor:
        """`pair_loss` of the joint logit and of each unary logit there is (BigBiGAN, arXiv 1907.02544, eq. 2)."""
        total = pair_loss(output.d_q, output.d_p).sum()
        if output.unary_q is not None and output.unary_p is not None:
            total = total + pair_loss(output.unary_q, output.unary_p).sum()
        return total * self.packing

    def _mean_over_global_batch(self, rows: Tensor) -> Tensor:
        """Mean of the rows of all ranks. Collective."""
        total = rows.sum(0)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total / self.global_batch_size


def _take_rows(batch: Any, rows: slice) -> Any:
    """The same rows of every tensor in nested named tuples."""
    if isinstance(batch, Tensor):
        return batch[rows]
    return None if batch is None else type(batch)(*(_take_rows(part, rows) for part in batch))
