"""Labels as what conditional networks take: vectors c float32 [B, A]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def condition_vectors(y: Tensor, size: int) -> Tensor:
    """c [B, size] of class numbers int64 [B] (one-hot) or attribute vectors float32 [B, size] (as they are)."""
    c = F.one_hot(y, size).float() if y.dim() == 1 else y.float()
    assert c.shape[1] == size, f"conditions of {c.shape[1]} numbers for a model that takes {size}"
    return c
