"""Mixed precision as one object: it says what is cast and scaled, and lets both players step or neither."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ali_dist.errors import InputError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """fp32, bf16 or fp16 on one device.

    Weights and optimizer state are always fp32; `fp16` scales the loss. One optimizer holds both players, so an
    overflow skips both updates: skipping one would turn 1:1 play into 0:1.

    Args:
        name: auto, fp32, bf16 or fp16; auto is bf16 where the GPU computes it, else fp32.
        device: Where the model lives.

    Raises:
        InputError: The device does not compute in that precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
        elif name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
            raise InputError(
                f"scale.precision is 'bf16', but {torch.cuda.get_device_name(device)} does not compute in it: "
                "use fp16, fp32 or auto."
            )
        self.name = name
        self.device = device
        self.dtype = _DTYPES[name]
        self._scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """The context a forward pass runs in."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor, *, inputs: list[torch.nn.Parameter] | None = None, retain: bool = False) -> None:
        """`loss.backward()`, scaled where the precision needs it."""
        self._scaler.scale(loss).backward(inputs=inputs, retain_graph=retain)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update every parameter that has a gradient, or none of them if one gradient overflowed."""
        if self.name != "fp16":
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, float]:
        """The loss scale and its growth counter; empty unless fp16."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of `state_dict`."""
        if state and self.name == "fp16":
            self._scaler.load_state_dict(state)
