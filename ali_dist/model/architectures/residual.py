"""Residual image models for every power-of-two side from 16 to 256: no checkerboards, and no batch norm in D.

Sides change by averages of 2x2 pixels and by bilinear enlargement; no kernels overlap unevenly. The branches of all
blocks start at 0 (arXiv 2501.05441). At the full side there are pixels alone, no channels: from 32 on the first
convolution takes them folded into channels, and the decoder's last one gives them so.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ali_dist.model.architectures.schema import OUTPUT, Architecture, LayerTable, block, conv, tconv

SIDES = (16, 32, 64, 128, 256)
CHANNELS = (1, 3)  # of images
_LAST_SIDE = 4  # of the maps


def _fold_of(side: int) -> int:
    """Pixels a side that the first convolution takes as channels."""
    return {16: 1, 256: 4}.get(side, 2)


def _channels_at(side: int) -> int:
    """Channels of maps of this side: as many multiplications at 4x4, 8x8 and 16x16, and never too few."""
    return min(128, max(24, 512 // side))


def _sides_down(side: int) -> list[int]:
    """`side`, its half and so on down to 4."""
    return [side, *_sides_down(side // 2)] if side > _LAST_SIDE else [side]


def _stage(side: int, depth: int, *, resize: Literal["none", "down", "up"], norm: bool) -> LayerTable:
    """`depth` blocks at one side, the first of which brings the maps there."""
    out = _channels_at(side)
    return (block(out, resize, norm=norm), *[block(out, norm=norm)] * (depth - 1))


def _body_down(side: int, fold: int, depth: int, *, norm: bool) -> LayerTable:
    """From an image of `side` to a vector: a stem, stages down to 4x4, and one full convolution."""
    first, *others = _sides_down(side // fold)
    rows = [conv(3, 1, _channels_at(first), padding=1, bias="channel", unshuffle=fold)]
    rows += _stage(first, depth, resize="none", norm=norm)
    for smaller in others:
        rows += _stage(smaller, depth, resize="down", norm=norm)
    rows[-1] = dataclasses.replace(rows[-1], act="lrelu")
    return (*rows, conv(_LAST_SIDE, 1, 256, norm=norm, bias="none" if norm else "channel", act="lrelu"))


def _body_up(side: int, fold: int, depth: int, *, norm: bool) -> LayerTable:
    """From a vector to an image of `side`: the mirror of `_body_down`."""
    *others, first = _sides_down(side // fold)
    rows = [tconv(_LAST_SIDE, 1, _channels_at(first), bias="channel")]
    rows += _stage(first, depth, resize="none", norm=norm)
    for larger in reversed(others):
        rows += _stage(larger, depth, resize="up", norm=norm)
    rows[-1] = dataclasses.replace(rows[-1], act="lrelu")
    return (*rows, conv(3, 1, OUTPUT, padding=1, bias="channel", act="tanh", shuffle=fold))


def make_residual(side: int, depth: int = 1, *, normalized: bool = True) -> Architecture:
    """Networks for images of one side.

    Args:
        side: One of `SIDES`.
        depth: Residual blocks at each side of the maps.
        normalized: Whether E and G have batch norm; D has none, so that R1 and R2 apply.
    """
    fold = _fold_of(side)
    hidden_z = conv(1, 1, 128, bias="channel", act="lrelu")
    hidden = conv(1, 1, 256, bias="channel", act="lrelu")
    return Architecture(
        image_size=side,
        encoder=(*_body_down(side, fold, depth, norm=normalized), conv(1, 1, OUTPUT, bias="channel")),
        decoder=_body_up(side, fold, depth, norm=normalized),
        d_x=_body_down(side, fold, depth, norm=False),
        d_z=(hidden_z, hidden_z),
        d_xz=(hidden, hidden, conv(1, 1, OUTPUT, bias="channel")),
        log_sigma_bias=-1.0,
        pixel_range=(-1.0, 1.0),
    )
