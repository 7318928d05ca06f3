"""Both players' Adam: one optimizer with two groups of parameters, and no more loaded for it than it needs."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ali_dist.config import OptimConfig
from ali_dist.model.ali import ALI


class EagerAdam(torch.optim.Adam):
    """torch's Adam, which does not load the compiler.

    torch keeps compiled graphs out of an optimizer's methods by wrappers that load all of torch's compiler at their
    first call: a second or more of every start. These are the same methods without the wrappers; they are never called
    from compiled code here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    _step = inspect.unwrap(torch.optim.Adam.step)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See `torch.optim.Adam.step`."""
        return self._step(closure)


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
