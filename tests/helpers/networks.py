"""Small networks, fixed inputs, and the gradients that an update must have: those of two plain backward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ali_dist.model.ali import ALI, GameSpec
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.build import build_ali
from ali_dist.model.gradient_gates import PassThrough, StopGradient
from ali_dist.model.losses import OBJECTIVES
from ali_dist.model.networks import NetworkSizes
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, StepResult, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES

BATCH_SIZE = 8
LATENT_SIZE = 6
CPU = torch.device("cpu")
# Every objective with every update rule that claims to be exact for it.
EXACT_RULES = [(loss, rule) for loss in OBJECTIVES for rule in ("scaled", "penalised", "coupled")]
# The shape of a sample inside the model, by architecture.
SAMPLE_SHAPES = {"digits": (1, 16, 16), "cifar10": (3, 32, 32)}


class GradientRecorder(torch.optim.SGD):
    """An optimizer that records the gradients of its last step and moves nothing."""

    gradients: list[Tensor]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        del closure
        self.gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def make_networks(
    dropout: float | None = 0.0, *, cycle: bool = True, name: str = "digits", device: torch.device = CPU
) -> ALI:
    """Build networks with the same weights at every call: a quarter of the width of `cifar10`, half of `digits`."""
    ali = build_ali(
        ARCHITECTURES[name],
        SAMPLE_SHAPES[name],
        NetworkSizes(latent=LATENT_SIZE, width=0.25 if name == "cifar10" else 0.5),
        discriminator_dropout=dropout,
        game=GameSpec(cycle_x=cycle, cycle_z=cycle, cycle_samples=cycle),
    )
    return ali.to(device)


def make_inputs(name: str = "digits", device: torch.device = CPU) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x, z and epsilon of one batch: the same numbers at every call and on every device."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(BATCH_SIZE, *SAMPLE_SHAPES[name], generator=generator) * 2 - 1
    z = torch.randn(BATCH_SIZE, LATENT_SIZE, generator=generator)
    epsilon = torch.randn(BATCH_SIZE, LATENT_SIZE, generator=generator)
    return x.to(device), z.to(device), epsilon.to(device)


def trained_parameters(ali: ALI) -> list[nn.Parameter]:
    """theta_g, and then theta_d."""
    return [*ali.generator_parameters(), *ali.discriminator_parameters()]


def make_step(
    ali: ALI,
    rule: str,
    loss: str,
    optimizer: torch.optim.Optimizer,
    *,
    precision: Precision | None = None,
    networks: nn.Module | None = None,
    world_size: int = 1,
    packing: int = 1,
) -> Step:
    """Build an update of batches of `BATCH_SIZE` samples: in fp32 on the CPU unless `precision` says otherwise.

    Args:
        ali: The networks.
        rule: Name of the update rule.
        loss: Name of the objective.
        optimizer: What moves the networks.
        precision: What is cast and scaled.
        networks: `ali` as it is wrapped for several ranks; None: as it is.
        world_size: Ranks that share a batch.
        packing: Pairs that D scores together.
    """
    return Step(
        UPDATE_RULES[rule],
        loss,
        ali,
        networks or ali,
        optimizer,
        precision or Precision("fp32", CPU),
        global_batch_size=BATCH_SIZE,
        world_size=world_size,
        packing=packing,
    )


def gradients_of_two_backward_passes(
    ali: ALI, loss: str, weights: LossWeights, seed: int, batch: tuple[Tensor, Tensor, Tensor]
) -> list[Tensor]:
    """Differentiate both losses on their own: two forward passes with the same dropout, and two calls of autograd.grad.

    The losses are means over the batch.

    Returns:
        The gradients of theta_g, and then those of theta_d.
    """
    objective = OBJECTIVES[loss]
    x, z, epsilon = batch
    torch.manual_seed(seed)
    for_d = ali(x, z, epsilon, StopGradient(differentiable=True))
    d_loss = objective.d_loss(for_d.d_q, for_d.d_p).mean()
    logits = for_d.d_q.sum() + for_d.d_p.sum()
    slope_x_q, slope_x_p, slope_z = torch.autograd.grad(logits, for_d.discriminator_inputs, create_graph=True)
    squares = torch.cat([slope_x_q, slope_x_p]).square().flatten(1).sum(1) + slope_z.square().sum(1)
    squares_q, squares_p = squares.chunk(2)
    d_loss = d_loss + weights.r1 / 2 * squares_q.mean() + weights.r2 / 2 * squares_p.mean()
    torch.manual_seed(seed)
    for_g = ali(x, z, epsilon, PassThrough())
    g_loss = objective.g_loss(for_g.d_q, for_g.d_p).mean()
    if for_g.cycle.x is not None:
        g_loss = g_loss + weights.cycle_x * for_g.cycle.x.mean() + weights.cycle_z * for_g.cycle.z.mean()
        g_loss = g_loss + weights.cycle_samples * for_g.cycle.samples.mean()
    theta_g = torch.autograd.grad(g_loss, ali.generator_parameters())
    return [*theta_g, *torch.autograd.grad(d_loss, ali.discriminator_parameters())]


def gradients_of_step(
    ali: ALI,
    rule: str,
    loss: str,
    weights: LossWeights,
    seed: int,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    precision: str = "fp32",
    networks: nn.Module | None = None,
) -> tuple[list[Tensor], StepResult]:
    """Do one update of a batch of `BATCH_SIZE` samples.

    Returns:
        The gradients that the optimizer was given, of theta_g and then of theta_d; and the update's losses.
    """
    optimizer = GradientRecorder(trained_parameters(ali), lr=1.0)
    step = make_step(ali, rule, loss, optimizer, precision=Precision(precision, batch[0].device), networks=networks)
    torch.manual_seed(seed)
    losses = step(TrainBatch(*batch), weights)
    return optimizer.gradients, losses


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor], floor: float = 1e-12) -> float:
    """The largest relative error of a tensor; one whose norm is smaller than `floor` is measured against `floor`."""
    return max(((a - b).norm() / b.norm().clamp_min(floor)).item() for a, b in zip(actual, expected, strict=True))


def total_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The relative error of all tensors as one vector."""
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (actual, expected))
    return float((a - b).norm() / b.norm())


def copy_state(module: nn.Module) -> dict[str, Any]:
    """Copy weights and buffers to the CPU."""
    return {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
