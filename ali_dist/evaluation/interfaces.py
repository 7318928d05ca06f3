"""What evaluation has to know of a model and of data: small types without training code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BidirectionalModel(Protocol):
    """An encoder and a decoder, ready for evaluation (dropout off, batch norm on its running statistics).

    Every call is made under `torch.inference_mode` with at most `batched.BATCH` samples. None of the methods may draw
    from, or seed, torch's global random generators.
    """

    @property
    def latent_size(self) -> int:
        """Number of latent variables n_z."""

    @property
    def condition_size(self) -> int:
        """Size A of a condition c [N, A]; 0 for an unconditional model, which takes no c."""

    @property
    def num_classes(self) -> int:
        """Number of classes K of a model that classifies (`classify`); 0 for others."""

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode `x` ([N, C, H, W] in [0, 1], or points [N, D]) to q(z|x).

        Returns:
            mu [N, n_z] and log sigma (not log variance) [N, n_z]; None instead of log sigma if z = E(x) exactly.
        """

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """mu and the encoder's last hidden layers for `x`, flattened to [N, F]."""

    def classify(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Class logits [N, K] for `x`."""

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Decode `z` [N, n_z] to G(z): images [N, C, H, W] in [0, 1], or points [N, D]."""

    def untrained(self, seed: int) -> BidirectionalModel:
        """The same architecture with fresh weights, as a baseline."""


class ModelEvaluator(Protocol):
    """Measures models of one kind of data; what depends on the data alone is prepared once, when it is made."""

    def evaluate(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure `model`: metrics by key; `catalog.py` says what each one means.

        Raises:
            FloatingPointError: The model gives NaN or infinity.
        """


@dataclass(frozen=True)
class LabelledArrays:
    """One split of a data set, or a sample of it, in memory, on the CPU.

    Attributes:
        x: Images, float32 [N, C, H, W] in [0, 1] at the size the model trains at, or points, float32 [N, D].
        y: Class labels from 0, int64 [N], or attributes, float32 [N, A] in {0, 1}; None where there are none.
        names: Names of the classes or attributes; empty where they have none.
        split: Name of the split, for people; empty where it has none.
        total: Samples of the whole split; None: all of them are here.
        identity: What the samples are, and at what size: equal texts mean equal arrays. Empty: unknown.
        ids: Ids of the samples in the split's index, int64 [N]; None: those of the whole split, in order.

    Raises:
        ValueError: x or y is of another form.
    """

    x: Tensor
    y: Tensor | None = None
    names: tuple[str, ...] = ()
    split: str = ""
    total: int | None = None
    identity: str = ""
    ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != torch.float32 or self.x.ndim not in (2, 4):
            raise ValueError(f"x must be float32 [N, C, H, W] or [N, D], not {self.x.dtype} {tuple(self.x.shape)}.")
        if self.y is None:
            return
        label_types = {1: torch.int64, 2: torch.float32}
        if label_types.get(self.y.ndim) != self.y.dtype or len(self.y) != len(self.x):
            count = len(self.x)
            given = f"{self.y.dtype} {tuple(self.y.shape)}"
            raise ValueError(f"y must be class labels int64 [{count}] or attributes float32 [{count}, A], not {given}.")

    @property
    def classes(self) -> Tensor | None:
        """Class labels int64 [N], if that is what the labels are."""
        return self.y if self.y is not None and self.y.ndim == 1 else None
