"""What evaluation needs to know of a model and of data: two small types, no training code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Bidirectional(Protocol):
    """An encoder and a decoder, ready for evaluation (dropout off, batch norm on its running statistics).

    Every call is made under `torch.inference_mode` with at most `inference.BATCH` samples. None of the methods may
    draw from, or seed, torch's global random generators.
    """

    @property
    def latent_size(self) -> int:
        """Number of latent variables n_z."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """q(z|x) of `x` ([N, C, H, W] in [0, 1], or points [N, D]).

        Returns:
            mu [N, n_z] and log sigma (not log variance) [N, n_z]; None instead of log sigma if z = E(x) exactly.
        """

    def features(self, x: Tensor) -> Tensor:
        """mu and the encoder's last hidden layers of `x`, flattened to [N, F]."""

    def decode(self, z: Tensor) -> Tensor:
        """G(z) of `z` [N, n_z]: images [N, C, H, W] in [0, 1], or points [N, D]."""

    def untrained(self, seed: int) -> Bidirectional:
        """The same architecture with fresh weights, as a baseline."""


@dataclass(frozen=True)
class Split:
    """One split of a data set, in memory, on the CPU.

    Attributes:
        x: images, float32 [N, C, H, W] in [0, 1] at the size the model trains at, or points, float32 [N, D].
        y: class labels from 0, int64 [N]; None where there are none.
    """

    x: Tensor
    y: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.x.dtype == torch.float32, f"x must be float32, not {self.x.dtype}"
        assert self.x.ndim in (2, 4), f"x must be [N, C, H, W] or [N, D], not {tuple(self.x.shape)}"
        if self.y is not None:
            assert self.y.dtype == torch.int64, f"y must be int64, not {self.y.dtype}"
            assert self.y.shape == self.x.shape[:1], f"y is {tuple(self.y.shape)} for x {tuple(self.x.shape)}"
