"""What an update computes and moves, counted: matrix products and convolutions, and what is kept for backward passes.

Both counters work on tensors without numbers (`torch.device("meta")`), too, where counting takes no time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperationCounter(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, which raises where gradients are differentiated (torch 2.11 to 2.14).

    Attributes:
        forward: Floating-point operations outside of backward passes; a multiplication with its addition counts as two.
        backward: Those within backward passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward = 0
        self.backward = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            operations = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            if torch._C._current_graph_task_id() == -1:
                self.forward += operations
            else:
                self.backward += operations
        return out
