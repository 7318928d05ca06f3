"""What a layer table is: rows as data, and the settings that all rows of a model share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

OUTPUT = 0

Resize = Literal["none", "down", "up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One row of a table.

    A block is residual: s + f(s), where s is the input, resized and brought to `out` channels, and f is two times
    (batch norm ->) leaky ReLU -> 3x3 convolution. Its `act` comes after the sum.
    """

    op: Literal["conv", "tconv", "linear", "block"]
    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    norm: bool = False
    bias: Literal["none", "channel", "pixel"] = "none"
    dropout: float = 0.0
    act: Literal["linear", "lrelu", "relu", "maxout", "sigmoid", "tanh"] = "linear"
    pieces: int = 2
    unshuffle: int = 1  # so many pixels a side become channels before a convolution
    resize: Resize = "none"  # halves sides before a convolution, doubles them after it


LayerTable = tuple[LayerRow, ...]


class RowOptions(TypedDict, total=False):
    """A row's columns beside op, kernel, stride and channels."""

    padding: int
    norm: bool
    bias: Literal["none", "channel", "pixel"]
    dropout: float
    act: Literal["linear", "lrelu", "relu", "maxout", "sigmoid", "tanh"]
    pieces: int
    unshuffle: int
    resize: Resize


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The five tables of an ALI model and how its layers are set up."""

    image_size: int | None  # side of the images; None: points
    encoder: LayerTable
    decoder: LayerTable
    d_x: LayerTable
    d_z: LayerTable
    d_xz: LayerTable
    slope: float = 0.2  # of the leaky rectifiers
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    init_std: float | None = None  # N(0, std^2); None: He initialization for leaky rectifiers
    log_sigma_bias: float = 0.0  # start of the encoder's log sigma
    pixel_range: tuple[float, float] = (0.0, 1.0)  # what pixels in [0, 1] are mapped to inside the model
    point_scale: float = 1.0  # points are divided by this inside the model
    fourier: tuple[float, int] | None = None  # (base, count) of Fourier features of x in D

    def __post_init__(self) -> None:
        if any(row.dropout for table in (self.encoder, self.decoder) for row in table):
            # E and G run on other rows than those of the batch, too; masks are drawn for D (`DropoutMasks`).
            raise ValueError("only the discriminator may have dropout")

    @property
    def couples_samples(self) -> bool:
        """Whether one sample's logit depends on the others' (batch norm in D)."""
        return any(layer.norm for table in (self.d_x, self.d_z, self.d_xz) for layer in table)


def conv(kernel: int, stride: int, out: int, **options: Unpack[RowOptions]) -> LayerRow:
    """A convolution."""
    return LayerRow(op="conv", kernel=kernel, stride=stride, out=out, **options)


def tconv(kernel: int, stride: int, out: int, **options: Unpack[RowOptions]) -> LayerRow:
    """A transposed convolution."""
    return LayerRow(op="tconv", kernel=kernel, stride=stride, out=out, **options)


def block(out: int, **options: Unpack[RowOptions]) -> LayerRow:
    """A residual block of two 3x3 convolutions."""
    return LayerRow(op="block", out=out, **options)


def linear(out: int, **options: Unpack[RowOptions]) -> LayerRow:
    """A linear map of points."""
    return LayerRow(op="linear", out=out, **options)


def convs(rows: Iterable[tuple[int, int, int]], **options: Unpack[RowOptions]) -> LayerTable:
    """Convolutions (kernel, stride, channels) that are alike in all other columns."""
    return tuple(conv(*row, **options) for row in rows)


def tconvs(rows: Iterable[tuple[int, int, int]], **options: Unpack[RowOptions]) -> LayerTable:
    """Transposed convolutions (kernel, stride, channels) that are alike in all other columns."""
    return tuple(tconv(*row, **options) for row in rows)
