"""Our own image models: small enough for a CPU, no batch norm in D, so that R1 and R2 apply."""

from __future__ import annotations

import dataclasses

from ali_dist.model.architectures.schema import OUTPUT, Architecture, LayerTable, conv, tconv


def _mirrored_model(size: int, body: LayerTable, decoder: LayerTable, *, d_z: int, d_xz: int) -> Architecture:
    """E and D(x) of the same convolutions, with batch norm in E only."""
    in_e = tuple(dataclasses.replace(row, norm=True) for row in body)
    in_d = tuple(dataclasses.replace(row, bias="channel") for row in body)
    hidden_z = conv(1, 1, d_z, bias="channel", act="lrelu")
    hidden = conv(1, 1, d_xz, bias="channel", act="lrelu")
    return Architecture(
        image_size=size,
        encoder=(*in_e, conv(1, 1, OUTPUT, bias="channel")),
        decoder=decoder,
        d_x=in_d,
        d_z=(hidden_z, hidden_z),
        d_xz=(hidden, hidden, conv(1, 1, OUTPUT, bias="channel")),
        log_sigma_bias=-1.0,
        pixel_range=(-1.0, 1.0),
    )


def make_digits() -> Architecture:
    """16x16, of any number of channels."""
    return _mirrored_model(
        16,
        body=(
            conv(4, 2, 32, padding=1, act="lrelu"),
            conv(3, 1, 32, padding=1, act="lrelu"),
            conv(4, 2, 64, padding=1, act="lrelu"),
            conv(4, 1, 128, act="lrelu"),
        ),
        decoder=(
            tconv(4, 1, 128, norm=True, act="lrelu"),
            tconv(4, 2, 64, padding=1, norm=True, act="lrelu"),
            conv(3, 1, 32, padding=1, norm=True, act="lrelu"),
            tconv(4, 2, OUTPUT, padding=1, bias="channel", act="tanh"),
        ),
        d_z=128,
        d_xz=256,
    )


def make_rgb32() -> Architecture:
    """32x32: `digits` with one halving more."""
    return _mirrored_model(
        32,
        body=(
            conv(4, 2, 32, padding=1, act="lrelu"),
            conv(3, 1, 32, padding=1, act="lrelu"),
            conv(4, 2, 64, padding=1, act="lrelu"),
            conv(4, 2, 96, padding=1, act="lrelu"),
            conv(4, 1, 128, act="lrelu"),
        ),
        decoder=(
            tconv(4, 1, 128, norm=True, act="lrelu"),
            tconv(4, 2, 96, padding=1, norm=True, act="lrelu"),
            tconv(4, 2, 64, padding=1, norm=True, act="lrelu"),
            conv(3, 1, 32, padding=1, norm=True, act="lrelu"),
            tconv(4, 2, OUTPUT, padding=1, bias="channel", act="tanh"),
        ),
        d_z=128,
        d_xz=256,
    )
