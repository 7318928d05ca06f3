"""The probability with which images are augmented: fixed, or as high as D's overfitting asks for.

Source: adaptive discriminator augmentation, Karras et al., NeurIPS 2020 (arXiv 2006.06676), section 3.1: r_t, the mean
sign of D's logits of training images, is compared with a target every few updates. Where D takes a share s of them for
data, r_t is 2 s - 1. Under a relativistic loss no logit means anything by itself: the sign is that of an encoder pair's
lead over the decoder pair beside it (`Objective.lead_of_data`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ali_dist.distributed import World, sum_over_ranks

ADAPT_EVERY = 4
"""Updates from one adaptation to the next. Source: section 3.1."""

IMAGES_TO_CERTAINTY = 500_000
"""Images of the data within which the probability may rise from 0 to 1. Source: section 3.1."""

SHARE_TO_CERTAINTY = 0.2
"""The same as a share of runs that are too short for that: the paper's are of 25 million images."""


class AugmentationProbability:
    """p, and what it is adapted by; the same on every rank and, as signs are counted exactly, at every world size.

    The host waits for nothing: `value` is read on the device where parameters are drawn.

    Args:
        highest: p where it is fixed, else the most it becomes.
        target: What r_t is to be; None: p is fixed.
        global_batch_size: B.
        run_images: How long the run is, in images.
        device: Where p lives.
        world: The ranks.

    Attributes:
        value: p, [].
    """

    def __init__(
        self,
        highest: float,
        target: float | None,
        *,
        global_batch_size: int,
        run_images: int,
        device: torch.device,
        world: World,
    ) -> None:
        self._highest = highest
        self._target = target
        images_to_certainty = min(IMAGES_TO_CERTAINTY, SHARE_TO_CERTAINTY * run_images)
        self._most_change = min(1.0, global_batch_size * ADAPT_EVERY / images_to_certainty)
        self._world = world
        self.value = torch.tensor(highest if target is None else 0.0, device=device)
        self._counts = torch.zeros(2, device=device)  # of this rank, since p was last adapted: signs, and images

    def count_signs(self, signs: Tensor, images: int, step: int) -> None:
        """Count what update `step` saw, and adapt p if it is time. Collective.

        Args:
            signs: Sum of the signs of this rank's logits, [].
            images: How many these are.
            step: The update, from 0 on.
        """
        if self._target is None:
            return
        self._counts[0] += signs
        self._counts[1] += images
        if (step + 1) % ADAPT_EVERY:
            return
        total, count = sum_over_ranks(self._counts, self._world)
        # Where r_t is on the target, p stays.
        self.value += (total / count - self._target).sign() * self._most_change
        self.value.clamp_(0, self._highest)
        self._counts.zero_()

    def gather_counts(self) -> None:
        """Let rank 0 count for all, so that it can save what is counted. Collective."""
        if self._target is None:
            return
        sum_over_ranks(self._counts, self._world)
        if not self._world.is_main:
            self._counts.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, on rank 0 and after `gather_counts`; nothing where p is fixed."""
        return {} if self._target is None else {"probability": self.value, "counts": self._counts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint holds; nothing, where it is of a run whose p was fixed."""
        if self._target is None or not tensors:
            return
        self.value.copy_(tensors["probability"]).clamp_(0, self._highest)
        if self._world.is_main:
            self._counts.copy_(tensors["counts"])
