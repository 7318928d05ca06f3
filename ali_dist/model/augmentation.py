"""What the discriminator sees in place of an image: the image in other colors, moved, or with a hole, at random.

Both kinds of pairs are altered alike, so that what D learns is of the images and not of the few samples that there are;
E and G see images as they are. The operations are those of DiffAugment (Zhao et al., NeurIPS 2020, arXiv 2006.10738) at
its strengths. They are differentiable twice, draw nothing and wait for nothing: their parameters are given.

Legend: x [N, C, S, S] images in the model's range; parameters as in `AugmentationParameters`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

NUMBERS_PER_IMAGE = 10
"""Uniform numbers that the parameters of one image are made of, whichever operations are chosen."""

_REACH = 0.125  # of the side: the farthest that an image is moved
_HOLE = 0.5  # of the side: the hole's side


class AugmentationParameters(NamedTuple):
    """What is done to N images, [N] fp32 each; brightness 0, contrast and saturation 1, and no move change nothing."""

    brightness: Tensor  # added to every pixel, in halves of the range
    saturation: Tensor  # factor on the difference from gray
    contrast: Tensor  # factor on the difference from the image's mean
    down: Tensor  # whole pixels that the image is moved down
    right: Tensor  # and to the right
    top: Tensor  # first row of the hole; S: there is none
    left: Tensor  # first column of it


def parameters_from_numbers(numbers: Tensor, probability: Tensor, side: int) -> AugmentationParameters:
    """Parameters of each image.

    Args:
        numbers: Uniform in [0, 1), [N, NUMBERS_PER_IMAGE].
        probability: [] with which each operation is applied to an image; read on the device.
        side: S.
    """
    has_color, is_moved, has_hole = (numbers[:, :3] < probability).unbind(1)
    brightness, saturation, contrast, down, right, top, left = numbers[:, 3:].unbind(1)
    reach, hole = _reach_of(side), _hole_of(side)
    # An odd hole's center is any pixel, an even one's is any crossing of the grid, so that all pixels are hit alike.
    places, first = side + 1 - hole % 2, -(hole // 2)
    return AugmentationParameters(
        brightness=(brightness - 0.5) * has_color,
        saturation=torch.where(has_color, 2 * saturation, 1.0),
        contrast=torch.where(has_color, 0.5 + contrast, 1.0),
        down=_whole_number(down, -reach, 2 * reach + 1) * is_moved,
        right=_whole_number(right, -reach, 2 * reach + 1) * is_moved,
        top=torch.where(has_hole, _whole_number(top, first, places), float(side)),
        left=torch.where(has_hole, _whole_number(left, first, places), float(side)),
    )


def augment_images(
    x: Tensor, parameters: AugmentationParameters, operations: Collection[str], pixel_range: tuple[float, float]
) -> Tensor:
    """Images [N, C, S, S] as `operations` (of `config.AUGMENTATIONS`) and their parameters alter them.

    What has no pixel of the image becomes the middle of the range, as in DiffAugment.
    """
    low, high = pixel_range
    if "color" in operations:
        x = _change_color(x, parameters, (high - low) / 2)
    gone = None
    if "translation" in operations:
        x, gone = _move(x, parameters.down, parameters.right)
    if "cutout" in operations:
        hole = _hole_mask(x.shape[-1], parameters.top, parameters.left)
        gone = hole if gone is None else gone | hole
    return x if gone is None else x.masked_fill(gone[:, None], (low + high) / 2)


class Augmentation:
    """The operations of a run, applied to the parts of one forward pass after the other.

    Args:
        operations: Which ones.
        pixel_range: The model's.
        side: S.
    """

    def __init__(self, operations: Collection[str], pixel_range: tuple[float, float], side: int) -> None:
        self.side = side
        self._operations = tuple(operations)
        self._pixel_range = pixel_range
        self._parameters: AugmentationParameters | None = None

    def take_parameters(self, parameters: AugmentationParameters) -> None:
        """Use these for the rows of the next forward pass, part after part."""
        self._parameters = parameters

    def __call__(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The parts of x, each by itself, so that no gradient is computed for one that needs none."""
        if self._parameters is None or len(self._parameters.top) != sum(map(len, parts)):
            has = 0 if self._parameters is None else len(self._parameters.top)
            raise RuntimeError(f"augmentation has parameters for {has} images, but is given {sum(map(len, parts))}")
        of_parts = zip(*(column.split([len(part) for part in parts]) for column in self._parameters), strict=True)
        return tuple(
            augment_images(part, AugmentationParameters(*columns), self._operations, self._pixel_range)
            for part, columns in zip(parts, of_parts, strict=True)
        )


def _reach_of(side: int) -> int:
    return int(side * _REACH + 0.5)


def _hole_of(side: int) -> int:
    return int(side * _HOLE + 0.5)


def _whole_number(uniform: Tensor, first: int, count: int) -> Tensor:
    """One of `count` whole numbers from `first` on, as floats."""
    # The product may be rounded up to `count` itself.
    return (uniform * count).floor().clamp_max(count - 1) + first


def _change_color(x: Tensor, parameters: AugmentationParameters, half_range: float) -> Tensor:
    """Brightness, then saturation, then contrast.

    As one affine map: brightness moves every mean alike, saturation keeps each pixel's and contrast the image's.
    """
    brightness, saturation, contrast = (p[:, None, None, None].to(x.dtype) for p in parameters[:3])
    rest = (1 - contrast) * x.mean((1, 2, 3), keepdim=True) + half_range * brightness
    if x.shape[1] > 1:
        rest = contrast * (1 - saturation) * x.mean(1, keepdim=True) + rest
        contrast = contrast * saturation
    return torch.addcmul(rest, x, contrast)


def _move(x: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Images whose pixels have moved around the edges [N, C, S, S], and where they have [N, S, S]."""
    moved: Tensor = _Roll.apply(x, down.long(), right.long())
    places = torch.arange(x.shape[-1], device=x.device)
    rows, columns = ((places - shift[:, None]) for shift in (down, right))
    bare_rows, bare_columns = ((source < 0) | (source >= len(places)) for source in (rows, columns))
    return moved, bare_rows[:, :, None] | bare_columns[:, None, :]


class _Roll(torch.autograd.Function):
    """Move each image down and right, around the edges: a permutation, whose transpose is the move back.

    By one gather with an index that all channels share: on the CPU a tenth of the time of torch's indexing by rows and
    columns, forward and backward. Differentiable any number of times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(down, right)
        side = x.shape[-1]
        places = torch.arange(side, device=x.device)
        rows, columns = ((places - shift[:, None]) % side for shift in (down, right))
        index = (rows[:, :, None] * side + columns[:, None, :]).flatten(1)[:, None]
        return x.flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        down, right = ctx.saved_tensors
        back: Tensor = _Roll.apply(grads[0], -down, -right)
        return back, None, None


def _hole_mask(side: int, top: Tensor, left: Tensor) -> Tensor:
    """Where the hole is, [N, S, S]."""
    places = torch.arange(side, device=top.device)
    rows, columns = (places - first[:, None] for first in (top, left))
    in_rows, in_columns = ((depth >= 0) & (depth < _hole_of(side)) for depth in (rows, columns))
    return in_rows[:, :, None] & in_columns[:, None, :]
