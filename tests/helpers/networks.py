"""Small networks, fixed inputs, and what an update's gradients have to be: those of two plain backward passes."""

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

BATCH, LATENT = 8, 6
CPU = torch.device("cpu")
EXACT = [(loss, way) for loss in OBJECTIVES for way in ("scaled", "penalised", "coupled")]
"""Every objective with every way that claims to be exact for it."""
SHAPES = {"digits": (1, 16, 16), "cifar10": (3, 32, 32)}  # of a sample inside the model, by architecture


class Recorder(torch.optim.SGD):
    """Keeps the gradients it was asked to step with and moves nothing."""

    seen: list[Tensor]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        del closure
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def networks(
    dropout: float | None = 0.0, *, cycle: bool = True, name: str = "digits", device: torch.device = CPU
) -> ALI:
    """The same weights at every call; a quarter of `cifar10`'s width, half of `digits`'."""
    ali = build_ali(
        ARCHITECTURES[name],
        SHAPES[name],
        NetworkSizes(latent=LATENT, width=0.25 if name == "cifar10" else 0.5),
        discriminator_dropout=dropout,
        game=GameSpec(cycle_x=cycle, cycle_z=cycle, cycle_samples=cycle),
    )
    return ali.to(device)


def inputs(name: str = "digits", device: torch.device = CPU) -> tuple[Tensor, Tensor, Tensor]:
    """x, z and epsilon of one batch; the same numbers on every device."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(BATCH, *SHAPES[name], generator=g) * 2 - 1
    z, epsilon = torch.randn(BATCH, LATENT, generator=g), torch.randn(BATCH, LATENT, generator=g)
    return x.to(device), z.to(device), epsilon.to(device)


def two_backward_passes(
    ali: ALI, loss: str, weights: LossWeights, seed: int, batch: tuple[Tensor, Tensor, Tensor]
) -> list[Tensor]:
    """Two forward passes with the same dropout, two calls of autograd.grad, losses as means: theta_g's, theta_d's."""
    game, (x, z, epsilon) = OBJECTIVES[loss], batch
    torch.manual_seed(seed)
    d = ali(x, z, epsilon, StopGradient(differentiable=True))
    d_loss = game.d_loss(d.d_q, d.d_p).mean()
    gx_q, gx_p, gz = torch.autograd.grad(d.d_q.sum() + d.d_p.sum(), d.discriminator_inputs, create_graph=True)
    on_q, on_p = (torch.cat([gx_q, gx_p]).square().flatten(1).sum(1) + gz.square().sum(1)).chunk(2)
    d_loss = d_loss + weights.r1 / 2 * on_q.mean() + weights.r2 / 2 * on_p.mean()
    torch.manual_seed(seed)
    g = ali(x, z, epsilon, PassThrough())
    g_loss = game.g_loss(g.d_q, g.d_p).mean()
    if g.cycle.x is not None:
        g_loss = g_loss + weights.cycle_x * g.cycle.x.mean() + weights.cycle_z * g.cycle.z.mean()
        g_loss = g_loss + weights.cycle_samples * g.cycle.samples.mean()
    theta_g = torch.autograd.grad(g_loss, ali.generator_parameters())
    return [*theta_g, *torch.autograd.grad(d_loss, ali.discriminator_parameters())]


def step_gradients(
    ali: ALI,
    way: str,
    loss: str,
    weights: LossWeights,
    seed: int,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    precision: str = "fp32",
    players: nn.Module | None = None,
) -> tuple[list[Tensor], StepResult]:
    """Gradients that one update steps with, theta_g's and theta_d's, and its losses."""
    optimizer = Recorder([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=1.0)
    policy = Precision(precision, batch[0].device)
    step = Step(UPDATE_RULES[way], loss, ali, players or ali, optimizer, policy, global_batch_size=len(batch[0]))
    torch.manual_seed(seed)
    losses = step(TrainBatch(*batch), weights)
    return optimizer.seen, losses


def relative_error(mine: Sequence[Tensor], theirs: Sequence[Tensor], floor: float = 1e-12) -> float:
    """Largest relative error of a tensor; one that is smaller than `floor` is measured against that."""
    pairs = zip(mine, theirs, strict=True)
    return max(((a - b).norm() / b.norm().clamp_min(floor)).item() for a, b in pairs)


def total_error(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Relative error of all tensors as one vector."""
    a, b = (torch.cat([t.flatten() for t in part]) for part in (mine, theirs))
    return float((a - b).norm() / b.norm())


def state_of(module: nn.Module) -> dict[str, Any]:
    """A copy of weights and buffers, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
