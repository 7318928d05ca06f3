"""Residual image models for every power-of-two side from 16 to 256: no checkerboards, and no batch norm in D.

Sides change by means of 2x2 pixels and by bilinear enlargement: in decoder and discriminator no kernels overlap
unevenly, and no pixel has weights of its own. All branches start at 0 (arXiv 2501.05441). Blocks work from a half or
a quarter of the images' side on, where most of the time would go: above it are a convolution in and one out.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ali_dist.model.architectures.schema import OUTPUT, Architecture, LayerRow, LayerTable, Resize, block, conv, tconv

SIDES = (16, 32, 64, 128, 256)
CHANNELS = (1, 3)  # of images
_LAST_SIDE = 4  # of the maps
_PIXEL_CHANNELS = 16  # of maps at the images' side


def _channels_at(side: int) -> int:
    """Channels of maps of this side: as many multiplications at 4x4, 8x8 and 16x16, and never too few."""
    return min(128, max(24, 512 // side))


def _fold_of(side: int) -> int:
    """How many times smaller than the images the largest maps are that blocks work on."""
    return {16: 1, 256: 4}.get(side, 2)


def _sides_down(side: int) -> list[int]:
    """`side`, its half and so on down to 4."""
    return [side, *_sides_down(side // 2)] if side > _LAST_SIDE else [side]


def _stage(side: int, depth: int, *, resize: Resize, norm: bool) -> LayerTable:
    """`depth` blocks at one side, the first of which brings the maps there."""
    out = _channels_at(side)
    return (block(out, resize=resize, norm=norm), *[block(out, norm=norm)] * (depth - 1))


def _stem(side: int, *, smooth: bool) -> tuple[list[LayerRow], Resize]:
    """The rows above the first block, and how this one gets to its side.

    Folded pixels are cheaper, but each of a fold has weights of its own.

    Args:
        side: Of the images.
        smooth: Treat all pixels alike. Else a fifth of the input's gradient would be at the highest frequency, and
            the decoder would learn that grid.
    """
    fold = _fold_of(side)
    if not smooth or fold == 1:
        return [conv(3, 1, _channels_at(side // fold), padding=1, bias="channel", unshuffle=fold)], "none"
    halving = conv(1, 1, _PIXEL_CHANNELS, bias="channel", act="lrelu", resize="down")
    first = conv(3, 1, _PIXEL_CHANNELS, padding=1, bias="channel", act="lrelu")
    return [first, *[halving] * (_halvings(fold) - 1)], "down"


def _halvings(fold: int) -> int:
    return fold.bit_length() - 1


def _body_down(side: int, depth: int, *, norm: bool, smooth: bool) -> LayerTable:
    """From an image of `side` to a vector: a stem, stages down to 4x4, and one full convolution."""
    rows, resize = _stem(side, smooth=smooth)
    first, *others = _sides_down(side // _fold_of(side))
    rows += _stage(first, depth, resize=resize, norm=norm)
    for smaller in others:
        rows += _stage(smaller, depth, resize="down", norm=norm)
    rows[-1] = dataclasses.replace(rows[-1], act="lrelu")
    return (*rows, conv(_LAST_SIDE, 1, 256, norm=norm, bias="none" if norm else "channel", act="lrelu"))


def _body_up(side: int, depth: int, *, norm: bool) -> LayerTable:
    """From a vector to an image of `side`: stages up from 4x4, enlargements to the image's side, one convolution."""
    fold = _fold_of(side)
    first, *others = reversed(_sides_down(side // fold))
    rows = [tconv(_LAST_SIDE, 1, _channels_at(first), bias="channel")]
    rows += _stage(first, depth, resize="none", norm=norm)
    for larger in others:
        rows += _stage(larger, depth, resize="up", norm=norm)
    rows[-1] = dataclasses.replace(rows[-1], act="lrelu")
    bias: Literal["none", "channel"] = "none" if norm else "channel"
    rows += [conv(1, 1, _PIXEL_CHANNELS, resize="up", norm=norm, bias=bias, act="lrelu")] * _halvings(fold)
    return (*rows, conv(3, 1, OUTPUT, padding=1, bias="channel", act="tanh"))


def make_residual(side: int, depth: int = 1, *, normalized: bool = True) -> Architecture:
    """Networks for images of one side.

    Args:
        side: One of `SIDES`.
        depth: Residual blocks at each side of the maps.
        normalized: Whether E and G have batch norm; D has none, so that R1 and R2 apply.
    """
    hidden_z = conv(1, 1, 128, bias="channel", act="lrelu")
    hidden = conv(1, 1, 256, bias="channel", act="lrelu")
    return Architecture(
        image_size=side,
        encoder=(*_body_down(side, depth, norm=normalized, smooth=False), conv(1, 1, OUTPUT, bias="channel")),
        decoder=_body_up(side, depth, norm=normalized),
        d_x=_body_down(side, depth, norm=False, smooth=True),
        d_z=(hidden_z, hidden_z),
        d_xz=(hidden, hidden, conv(1, 1, OUTPUT, bias="channel")),
        log_sigma_bias=-1.0,
        pixel_range=(-1.0, 1.0),
    )
