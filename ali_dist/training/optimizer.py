"""Both players' Adam: one optimizer with two groups of parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ali_dist.config import OptimConfig
from ali_dist.eager_adam import EagerAdam
from ali_dist.model.ali import ALI


def make_optimizer(ali: ALI, optim: OptimConfig, device: torch.device) -> EagerAdam:
    """Make the optimizer: generators' parameters first, then D's.

    Args:
        ali: Whose parameters.
        optim: Learning rates, betas and epsilon.
        device: Where the parameters are.
    """
    on_gpu = device.type == "cuda"

    def as_rate(rate: float) -> float | Tensor:
        # On a GPU a number that lies there, so that a replayed update takes the rate of its moment.
        return torch.tensor(rate, device=device) if on_gpu else rate

    return EagerAdam(
        [
            {"params": ali.generator_parameters(), "lr": as_rate(optim.lr_g)},
            {"params": ali.discriminator_parameters(), "lr": as_rate(optim.lr_d)},
        ],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        # Exact only for gradients with their parameters' strides, which .backward() makes; never set .grad by hand.
        fused=True,
        capturable=on_gpu,
    )
