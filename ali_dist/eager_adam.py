"""torch's Adam without torch's compiler."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class EagerAdam(torch.optim.Adam):
    """torch's Adam, which does not load the compiler.

    torch keeps compiled graphs out of an optimizer's methods by wrappers that load all of torch's compiler at their
    first call: two seconds or more. These are the same methods without the wrappers; they are never called from
    compiled code here.
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
