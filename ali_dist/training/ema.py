"""Exponential moving average of the networks that evaluation and galleries use."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ali_dist.model.ali import ALI


class WeightAverage(nn.Module):
    """Averaged copies of the generators: weights and batch-norm statistics.

    Args:
        ali: The networks to follow, unwrapped and on their device.
        discriminator: Whether D is averaged, too: where it classifies.
    """

    def __init__(self, ali: ALI, *, discriminator: bool = False) -> None:
        super().__init__()
        self.names = ["encoder", "decoder"]
        if discriminator:
            self.names.append("discriminator")
        if ali.embedding is not None:
            self.names.append("embedding")
        for name in self.names:
            self.add_module(name, copy.deepcopy(ali.get_submodule(name)).requires_grad_(False).eval())
        # Listed once: walking the modules at every update costs small networks as much as the averaging itself.
        self._averages = [t for name in self.names for t in _float_tensors(self.get_submodule(name))]
        self._current = [t for name in self.names for t in _float_tensors(ali.get_submodule(name))]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the networks, keeping the share `decay`. Local: replicas agree, so averages do."""
        torch._foreach_lerp_(self._averages, self._current, 1.0 - decay)

    def weights_of(self, ali: ALI) -> dict[str, Tensor]:
        """The tensors of `ali` that this averages, by the names they have here."""
        return {name: t for name, t in ali.state_dict().items() if name.partition(".")[0] in self.names}


def _float_tensors(module: nn.Module) -> list[Tensor]:
    tensors = [p.detach() for p in module.parameters()]
    return tensors + [b for b in module.buffers() if b.is_floating_point()]
