"""How good decoder samples are, without labels: how far their patches are from real ones, and what they cover.

All figures compare equal numbers of images, because each of them is biased by the number: as many decoder samples, or
holdout images for the references, as there are training images drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ali_dist.evaluation.batched import make_generator
from ali_dist.evaluation.manifold import FEWEST, MOST, RealManifold, fit_random_features
from ali_dist.evaluation.sliced_wasserstein import PATCH, SlicedWasserstein


@dataclass(frozen=True)
class SampleQuality:
    """What measures decoder samples against training images, prepared once.

    Attributes:
        patches: Distance to the training images' patches.
        manifold: The training images in the space of `features`.
        features: Maps images [N, C, H, W] in [0, 1] to features [N, F].
        references: The metrics of holdout images in place of samples, under keys that end in `_reference`.
    """

    patches: SlicedWasserstein
    manifold: RealManifold
    features: Callable[[Tensor], Tensor]
    references: dict[str, float]

    @classmethod
    def prepare(
        cls,
        train: Tensor,
        holdout: Tensor,
        *,
        samples: int,
        seed: int,
        features: Callable[[Tensor], Tensor] | None,
        device: torch.device | str,
    ) -> Self | None:
        """Prepare the comparison of `samples` decoder samples with images.

        Args:
            train: Training images, [N, C, H, W] in [0, 1].
            holdout: Holdout images, which give the references.
            samples: Decoder samples there will be.
            seed: Seed of the choice of images, and of the patches.
            features: Maps images to features in which neighbors are alike; None: those of `fit_random_features`.
            device: Where these are computed.

        Returns:
            None where a side has fewer than 6 images, or images are smaller than 7 pixels.
        """
        count = min(samples, len(train), len(holdout), MOST)
        if count < FEWEST or min(train.shape[2:]) < PATCH:
            return None
        real = _draw_images(train, count, seed, "training images to compare")
        patches = SlicedWasserstein.prepare(real, seed=seed)
        features = features or fit_random_features(real, device)
        manifold = RealManifold.fit(features(real))
        prepared = cls(patches, manifold, features, {})
        references = prepared.measure(_draw_images(holdout, count, seed, "holdout images to compare"))
        return cls(patches, manifold, features, {f"{key}_reference": value for key, value in references.items()})

    def measure(self, x_tilde: Tensor) -> dict[str, float]:
        """Measure the first of the decoder samples [M, C, H, W] in [0, 1], as many as there are training images.

        Returns:
            swd: Sliced Wasserstein distance, mean over the levels, in thousandths.
            precision, recall, density, coverage_real: See `RealManifold.measure`.
            The same of holdout images, with `_reference` behind the key.
        """
        compared = x_tilde[: self.patches.count]
        return {
            "swd": self.patches.distance(compared),
            **self.manifold.measure(self.features(compared)),
            **self.references,
        }


def _draw_images(x: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Draw `count` of the images without replacement."""
    return x[torch.randperm(len(x), generator=make_generator(seed, purpose))[:count]]
