"""Exponential moving average of encoder and decoder, which evaluation and galleries use."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ali_dist.model.ali import ALI


class Average(nn.Module):
    """Averaged copies of the generators: weights and batch-norm statistics.

    Args:
        ali: The networks to follow, unwrapped.
    """

    def __init__(self, ali: ALI) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(ali.encoder).requires_grad_(False).eval()
        self.decoder = copy.deepcopy(ali.decoder).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, ali: ALI, decay: float) -> None:
        """Move towards `ali`'s generators, keeping the share `decay`. Local: replicas agree, so averages do."""
        pairs = [(self.encoder, ali.encoder), (self.decoder, ali.decoder)]
        averages = [t for mine, _ in pairs for t in _floats(mine)]
        current = [t for _, theirs in pairs for t in _floats(theirs)]
        torch._foreach_lerp_(averages, current, 1.0 - decay)


def _floats(module: nn.Module) -> list[torch.Tensor]:
    tensors = [p.detach() for p in module.parameters()]
    return tensors + [b for b in module.buffers() if b.is_floating_point()]
