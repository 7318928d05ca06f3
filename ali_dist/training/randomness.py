"""Everything random in an update, as a function of (seed, step): nothing of it needs to be in a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

_NOISE, _DROPOUT = 1, 2  # purposes, whose streams of random numbers stay apart


def _mix_seed(*parts: int) -> int:
    """A well-spread 63-bit number from a few small ones (splitmix64 steps)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class NoiseSource:
    """The prior's z and the encoder's epsilon of each global batch.

    Drawn for the whole batch and sliced, so that world size does not change them. CPU and CUDA draw different numbers.

    Args:
        seed: The run's seed.
        global_batch_size: B.
        latent_size: n_z.
        rows: This rank's rows of the global batch.
        device: Where the numbers are drawn.
        labelled: Whether to draw the epsilon of a labelled batch, too.
    """

    def __init__(
        self,
        seed: int,
        global_batch_size: int,
        latent_size: int,
        rows: slice,
        device: torch.device,
        *,
        labelled: bool = False,
    ) -> None:
        self._seed = seed
        self._shape = (3 if labelled else 2, global_batch_size, latent_size)
        self._rows = rows
        self._generator = torch.Generator(device)

    def at_step(self, step: int) -> tuple[Tensor, ...]:
        """z, epsilon and, if asked for, the labelled batch's epsilon, each [rows, n_z], of update `step`."""
        self._generator.manual_seed(_mix_seed(_NOISE, self._seed, step))
        draws = torch.randn(self._shape, generator=self._generator, device=self._generator.device)
        return draws[:, self._rows].unbind()


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators, from which dropout draws, for one update on one rank.

    The numbers are those of `torch.manual_seed`, which would also format a stack trace at every call for each kind of
    accelerator that has not been started.
    """
    mixed = _mix_seed(_DROPOUT, seed, step, rank)
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(mixed)
