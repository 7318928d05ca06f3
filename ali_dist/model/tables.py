"""Layer tables of every architecture, as data.

Columns follow the paper's appendix and the authors' code: op, kernel, stride, channels, batch norm, bias, dropout
on the layer's input, activation. Channels of maxout layers count before the maxout. `out=OUTPUT` stands for what
the network has to produce: the latent parameters (encoder), the image's channels (decoder), one logit (D).
Source: arXiv 1606.00704 appendix A; where it differs from the released code, the code is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OUTPUT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One row of a table."""

    op: Literal["conv", "tconv", "linear"]
    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    norm: bool = False
    bias: Literal["none", "channel", "pixel"] = "none"
    dropout: float = 0.0
    act: Literal["linear", "lrelu", "relu", "maxout", "sigmoid", "tanh"] = "linear"
    pieces: int = 2


Table = tuple[Layer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The five tables of an ALI model and how its layers are set up."""

    image_size: int | None  # side of the images; None: points
    encoder: Table
    decoder: Table
    d_x: Table
    d_z: Table
    d_xz: Table
    slope: float = 0.2  # of the leaky rectifiers
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    init_std: float | None = None  # N(0, std^2); None: He initialisation for leaky rectifiers
    log_sigma_bias: float = 0.0  # start of the encoder's log sigma
    pixel_range: tuple[float, float] = (0.0, 1.0)  # what pixels in [0, 1] are mapped to inside the model
    point_scale: float = 1.0  # points are divided by this inside the model
    fourier: tuple[float, int] | None = None  # (base, count) of Fourier features of x in D

    @property
    def couples_samples(self) -> bool:
        """Whether one sample's logit depends on the others' (batch norm in D)."""
        return any(layer.norm for table in (self.d_x, self.d_z, self.d_xz) for layer in table)


def _conv(kernel: int, stride: int, out: int, **rest: object) -> Layer:
    return Layer(op="conv", kernel=kernel, stride=stride, out=out, **rest)  # type: ignore[arg-type]


def _tconv(kernel: int, stride: int, out: int, **rest: object) -> Layer:
    return Layer(op="tconv", kernel=kernel, stride=stride, out=out, **rest)  # type: ignore[arg-type]


def _linear(out: int, **rest: object) -> Layer:
    return Layer(op="linear", out=out, **rest)  # type: ignore[arg-type]


def _with(table: Table, **changes: object) -> Table:
    return tuple(Layer(**{**{f: getattr(row, f) for f in Layer.__slots__}, **changes}) for row in table)


def _cifar10() -> Architecture:
    body = ((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512))  # kernel, stride, channels of E and D_x
    up = ((4, 1, 256), (4, 2, 128), (4, 1, 64), (4, 2, 32), (5, 1, 32), (1, 1, 32))
    dropout = (0.2, 0.5, 0.5, 0.5, 0.5)
    return Architecture(
        image_size=32,
        encoder=(
            *(_conv(*row, norm=True, act="lrelu") for row in (*body, (1, 1, 512))),
            _conv(1, 1, OUTPUT, bias="channel"),
        ),
        decoder=(
            *(_tconv(*row, norm=True, act="lrelu") for row in up),
            _conv(1, 1, OUTPUT, bias="pixel", act="sigmoid"),
        ),
        d_x=tuple(_conv(*row, bias="channel", dropout=p, act="maxout") for row, p in zip(body, dropout, strict=True)),
        d_z=(_conv(1, 1, 512, dropout=0.2, act="maxout"), _conv(1, 1, 512, dropout=0.5, act="maxout")),
        d_xz=(
            *(_conv(1, 1, 1024, bias="channel", dropout=0.5, act="maxout") for _ in range(2)),
            _conv(1, 1, OUTPUT, bias="channel", dropout=0.5),
        ),
        slope=0.1,
        norm_eps=1e-4,
        norm_momentum=0.05,
        init_std=0.01,
    )


def _digits() -> Architecture:
    body = (
        _conv(4, 2, 32, padding=1, act="lrelu"),
        _conv(3, 1, 32, padding=1, act="lrelu"),
        _conv(4, 2, 64, padding=1, act="lrelu"),
        _conv(4, 1, 128, act="lrelu"),
    )
    return Architecture(
        image_size=16,
        encoder=(*_with(body, norm=True), _conv(1, 1, OUTPUT, bias="channel")),
        decoder=(
            _tconv(4, 1, 128, norm=True, act="lrelu"),
            _tconv(4, 2, 64, padding=1, norm=True, act="lrelu"),
            _conv(3, 1, 32, padding=1, norm=True, act="lrelu"),
            _tconv(4, 2, OUTPUT, padding=1, bias="channel", act="tanh"),
        ),
        d_x=_with(body, bias="channel"),
        d_z=tuple(_conv(1, 1, 128, bias="channel", act="lrelu") for _ in range(2)),
        d_xz=(
            *(_conv(1, 1, 256, bias="channel", act="lrelu") for _ in range(2)),
            _conv(1, 1, OUTPUT, bias="channel"),
        ),
        log_sigma_bias=-1.0,
        pixel_range=(-1.0, 1.0),
    )


def _mixture(point_scale: float) -> Architecture:
    hidden = _linear(128, bias="channel", act="lrelu")
    last = _linear(OUTPUT, bias="channel")
    return Architecture(
        image_size=None,
        encoder=(hidden, hidden, last),
        decoder=(hidden, hidden, hidden, last),
        d_x=(),
        d_z=(),
        d_xz=(hidden, hidden, hidden, last),
        log_sigma_bias=-1.0,
        point_scale=point_scale,
        fourier=(1.5, 5),
    )


def _mixture_paper() -> Architecture:
    normed = _linear(400, norm=True, act="relu")
    last = _linear(OUTPUT, bias="channel")
    maxout = _linear(1000, bias="channel", act="maxout", pieces=5)
    return Architecture(
        image_size=None,
        encoder=(normed, normed, last),
        decoder=(normed, normed, normed, normed, last),
        d_x=(),
        d_z=(),
        d_xz=(maxout, maxout, maxout, last),
        norm_eps=1e-4,
        norm_momentum=0.05,
        init_std=0.02,
    )


ARCHITECTURES = {
    "cifar10": _cifar10(),
    "digits": _digits(),
    "mixture": _mixture(point_scale=2.83),  # standard deviation of the grid
    "mixture-ring": _mixture(point_scale=0.71),  # of the ring
    "mixture-paper": _mixture_paper(),
}
