"""Everything random in an update, as a function of (seed, step): nothing of it needs to be in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ali_dist.model.augmentation import NUMBERS_PER_IMAGE, Augmentation, AugmentationParameters, parameters_from_numbers
from ali_dist.model.layers import Dropout

# Purposes, whose streams of random numbers stay apart.
_NOISE, _DROPOUT, _FLIP, _AUGMENTATION, _ROLLBACK = 1, 2, 3, 4, 5


def _mix_seed(*parts: int) -> int:
    """A well-spread 63-bit number from a few small ones (splitmix64 steps)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def seed_after_rollbacks(seed: int, rollbacks: int) -> int:
    """The seed of noise, flips, dropout and augmentation of a run that has been rolled back so often.

    The order of the data stays that of `seed`, so that each sample is still used once an epoch.
    """
    return seed if rollbacks == 0 else _mix_seed(_ROLLBACK, seed, rollbacks)


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


class HorizontalFlips:
    """Which images of each global batch are mirrored: each with probability 1/2.

    Drawn for the whole batch and sliced. CPU and CUDA draw different numbers.

    Args:
        seed: The run's seed.
        global_batch_size: B.
        rows: This rank's rows of the global batch.
        device: Where the numbers are drawn.
    """

    def __init__(self, seed: int, global_batch_size: int, rows: slice, device: torch.device) -> None:
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._rows = rows
        self._generator = torch.Generator(device)

    def at_step(self, x: Tensor, step: int) -> Tensor:
        """This rank's images [rows, C, H, W] of update `step`, some of them mirrored left to right."""
        self._generator.manual_seed(_mix_seed(_FLIP, self._seed, step))
        numbers = torch.rand(self._global_batch_size, generator=self._generator, device=self._generator.device)
        is_flipped = (numbers[self._rows] < 0.5)[:, None, None, None]
        return torch.where(is_flipped, x.flip(3), x)


class DropoutMasks:
    """The discriminator's dropout masks, as functions of (seed, update, pass, layer, part, row of the global batch).

    D is given parts of one row for each sample (or pack) of the batch: encoder pairs, decoder pairs, labelled data. The
    masks of all of them are drawn before the forward pass, so that nothing random happens within it.

    On the CPU a row's numbers are a stretch of the stream of a counter-based generator (Philox, whose raw output numpy
    keeps stable, NEP 19), 16 bits each, so that a rank starts at its first row and draws no others. On a GPU they are
    drawn for the whole global batch and sliced. CPU and CUDA draw different numbers.

    Args:
        layers: The discriminator's.
        seed: The run's seed.
        rows: This rank's rows of each part.
        global_rows: Rows of each part over all ranks.
        parts: How many there are.
        device: Where the masks are wanted.
        packing: Images of a row.
    """

    def __init__(
        self,
        layers: Sequence[Dropout],
        *,
        seed: int,
        rows: slice,
        global_rows: int,
        parts: int,
        device: torch.device,
        packing: int = 1,
    ) -> None:
        self._layers = list(layers)
        self._seed = seed
        self._rows = rows
        self._global_rows = global_rows
        self._parts = parts
        self._packing = packing
        self._generator = torch.Generator(device)
        self._factors: list[Tensor] = []
        self._step = 0
        self._pass = 0

    def reseed(self, seed: int) -> None:
        """Draw from another seed from the next update on."""
        self._seed = seed

    def start_update(self, step: int) -> None:
        """Make the next pass the first one of update `step`."""
        self._step = step
        self._pass = 0

    def draw(self) -> None:
        """Hand every layer the masks of the next forward pass."""
        if not self._factors:
            # Filled anew for each pass: the graph of the pass before has been used by then.
            count = self._parts * (self._rows.stop - self._rows.start)
            device = self._generator.device
            self._factors = [torch.empty(count, *layer.shape, device=device) for layer in self._layers]
        key = _mix_seed(_DROPOUT, self._seed, self._step, self._pass)
        self._pass += 1
        draw_layer = self._draw_on_host if self._generator.device.type == "cpu" else self._draw_on_device
        self._generator.manual_seed(key)
        for number, (layer, factors) in enumerate(zip(self._layers, self._factors, strict=True)):
            draw_layer(factors.view(self._parts, -1, math.prod(layer.shape)), layer.p, key, number)
        self.hand_out()

    def hand_out(self, images: slice | None = None) -> None:
        """Hand every layer the masks that were drawn last: all, or those of some of this rank's images of each part."""
        for layer, factors in zip(self._layers, self._factors, strict=True):
            if images is not None:
                rows = slice(images.start // self._packing, images.stop // self._packing)
                factors = factors.unflatten(0, (self._parts, -1))[:, rows].flatten(0, 1)
            layer.take_factors(factors)

    def _draw_on_host(self, factors: Tensor, p: float, key: int, number: int) -> None:
        """Fill `factors` [parts, rows, F] of layer `number`."""
        # 16 numbers from each of the generator's counts; the parts of a row start at whole counts.
        parts, rows, size = factors.shape
        counts = -(-size // 16)
        stream = np.random.Philox(key=[key, number], counter=self._rows.start * parts * counts)
        numbers = stream.random_raw(rows * parts * counts * 4).view(np.int16).reshape(rows, parts, -1)
        dropped = min(round(p * 2**16), 2**16 - 1)  # of 2^16 values
        kept = torch.from_numpy(numbers[:, :, :size]) >= dropped - 2**15
        factors.copy_(kept.transpose(0, 1)).mul_(2**16 / (2**16 - dropped))

    def _draw_on_device(self, factors: Tensor, p: float, key: int, number: int) -> None:
        """Fill `factors` [parts, rows, F] of a layer from where the generator is."""
        del key, number
        shape = (self._parts, self._global_rows, factors.shape[2])
        numbers = torch.rand(shape, generator=self._generator, device=self._generator.device)
        torch.mul(numbers[:, self._rows] >= p, 1 / (1 - p), out=factors)


class AugmentationDraws:
    """The parameters of D's augmentation, as functions of (seed, update, pass, part, row of the global batch).

    Parts are those of `DropoutMasks`, with a row for each image, in packs too. Drawn before the forward pass, for the
    whole global batch, and sliced: a few numbers an image. CPU and CUDA draw different numbers.

    Args:
        augmentation: What is handed the parameters.
        probability: [] with which each operation is applied to an image, on the device; read at every draw.
        seed: The run's seed.
        rows: This rank's rows of each part.
        global_batch_size: Rows of each part over all ranks.
        parts: How many there are.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        probability: Tensor,
        *,
        seed: int,
        rows: slice,
        global_batch_size: int,
        parts: int,
    ) -> None:
        self._augmentation = augmentation
        self._probability = probability
        self._seed = seed
        self._rows = rows
        self._parts = parts
        self._shape = (parts, global_batch_size, NUMBERS_PER_IMAGE)
        self._generator = torch.Generator(probability.device)
        # Filled anew for each pass, like dropout masks.
        count = parts * (rows.stop - rows.start)
        fields = len(AugmentationParameters._fields)
        self._parameters = torch.empty(fields, count, device=probability.device)
        augmentation.take_parameters(AugmentationParameters(*self._parameters))
        self._step = 0
        self._pass = 0

    def reseed(self, seed: int) -> None:
        """Draw from another seed from the next update on."""
        self._seed = seed

    def start_update(self, step: int) -> None:
        """Make the next pass the first one of update `step`."""
        self._step = step
        self._pass = 0

    def draw(self) -> None:
        """Draw the parameters of the next forward pass."""
        self._generator.manual_seed(_mix_seed(_AUGMENTATION, self._seed, self._step, self._pass))
        self._pass += 1
        numbers = torch.rand(self._shape, generator=self._generator, device=self._generator.device)
        of_rows = numbers[:, self._rows].flatten(0, 1)
        torch.stack(parameters_from_numbers(of_rows, self._probability, self._augmentation.side), out=self._parameters)

    def hand_out(self, images: slice | None = None) -> None:
        """Hand over the parameters that were drawn last: all, or those of some of this rank's images of each part."""
        parameters = self._parameters
        if images is not None:
            parameters = parameters.unflatten(1, (self._parts, -1))[:, :, images].flatten(1)
        self._augmentation.take_parameters(AugmentationParameters(*parameters))
