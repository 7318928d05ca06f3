"""What evaluation needs to know of a model and of data: two small types, no training code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class BidirectionalModel(Protocol):
    """An encoder and a decoder, ready for evaluation (dropout off, batch norm on its running statistics).

    Every call is made under `torch.inference_mode` with at most `inference.BATCH` samples. None of the methods may
    draw from, or seed, torch's global random generators.
    """

    @property
    def latent_size(self) -> int:
        """Number of latent variables n_z."""

    @property
    def condition_size(self) -> int:
        """A, numbers in a condition c [N, A]; 0: an unconditional model, which takes no c."""

    @property
    def num_classes(self) -> int:
        """K of a model that classifies (`classify`); 0: none."""

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """q(z|x) of `x` ([N, C, H, W] in [0, 1], or points [N, D]).

        Returns:
            mu [N, n_z] and log sigma (not log variance) [N, n_z]; None instead of log sigma if z = E(x) exactly.
        """

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """mu and the encoder's last hidden layers of `x`, flattened to [N, F]."""

    def classify(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Class logits [N, K] of `x`."""

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """G(z) of `z` [N, n_z]: images [N, C, H, W] in [0, 1], or points [N, D]."""

    def untrained(self, seed: int) -> BidirectionalModel:
        """The same architecture with fresh weights, as a baseline."""


@dataclass(frozen=True)
class LabelledArrays:
    """One split of a data set, in memory, on the CPU.

    Attributes:
        x: images, float32 [N, C, H, W] in [0, 1] at the size the model trains at, or points, float32 [N, D].
        y: class labels from 0, int64 [N], or attributes, float32 [N, A] in {0, 1}; None where there are none.
        names: of the classes or attributes; empty where they have none.
    """

    x: Tensor
    y: Tensor | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.x.dtype == torch.float32, f"x must be float32, not {self.x.dtype}"
        assert self.x.ndim in (2, 4), f"x must be [N, C, H, W] or [N, D], not {tuple(self.x.shape)}"
        if self.y is not None:
            kinds = {1: torch.int64, 2: torch.float32}
            assert kinds.get(self.y.ndim) == self.y.dtype, f"y is {self.y.dtype} {tuple(self.y.shape)}"
            assert len(self.y) == len(self.x), f"y is {tuple(self.y.shape)} for x {tuple(self.x.shape)}"

    @property
    def classes(self) -> Tensor | None:
        """Class labels int64 [N], if that is what the labels are."""
        return self.y if self.y is not None and self.y.ndim == 1 else None
