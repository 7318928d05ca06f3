"""The paper's image models, row by row. Source: arXiv 1606.00704 appendix A and the authors' code.

Where table and code differ the code is followed, and the other reading is there under a name that ends in `-table`:

cifar10   The printed widths of maxout layers count before the maxout in the code. Read as counting after it
          (`cifar10-table`), D(x) and D(z) are twice as wide and together have the 1024 channels that the table prints.

          Biases of D(x): the script leaves open whether a bias belongs to a channel or to every output pixel, which its
          library decided. Under Blocks as it was when the scripts were written (before commit 3d51aebb, 3 June 2016)
          every pixel has its own: `cifar10-untied`, D 2,663,329 and all 6,762,977 parameters. Under a later Blocks, as
          in the other models' scripts, which ask for it, each channel has one: `cifar10`, D 2,611,009, all 6,710,657.

          Dropout is the table's, on the input of every layer. The code has three faults there, and is not followed:
          (1) the inputs of D(x)'s third convolution get none; (2) neither do those of its fourth; (3) instead, dropout
          0.5 falls on the input of the third maxout, between a convolution and its own activation, where the two pieces
          of a unit are dropped independently of each other. All come from one slice. D(x) is a list of ten bricks,
          convolution and maxout in turn, of which every third from number 2 on is taken (counted from 0): number 2 is
          the second convolution, 5 the third maxout, 8 the fifth convolution. Where a layer has three bricks, as with
          batch norm, such a slice meets one brick of each. D(z) and D(x, z) are sliced by twos, and right.
celeba    The table has batch norm on all layers of D(x) and dropout on none (`celeba-table`). In the code the first
          layer has a bias instead, and all have dropout 0.2, as in the other two models with batch norm in D.

Convolutions are without padding throughout. Layers with batch norm have no bias. E's last layer gives mu and log sigma;
G's last layer has a bias of its own for every pixel.
"""

from __future__ import annotations

from typing import Literal

from ali_dist.model.architectures.schema import OUTPUT, Architecture, LayerTable, conv, convs, tconvs

Rows = tuple[tuple[int, int, int], ...]  # kernel, stride, channels

_BODY_32: Rows = ((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512))  # E and D(x) of CIFAR10 and SVHN
_UP_32: Rows = ((4, 1, 256), (4, 2, 128), (4, 1, 64), (4, 2, 32), (5, 1, 32), (1, 1, 32))
_BODY_CELEBA: Rows = ((2, 1, 64), (7, 2, 128), (5, 2, 256), (7, 2, 256), (4, 1, 512))
_UP_CELEBA: Rows = ((4, 1, 512), (7, 2, 256), (5, 2, 256), (7, 2, 128), (2, 1, 64))
_BODY_IMAGENET: Rows = ((4, 2, 64), (4, 1, 64), (4, 2, 128), (4, 1, 128), (4, 2, 256), (4, 1, 256))
_UP_IMAGENET: Rows = ((4, 1, 256), (4, 2, 128), (4, 1, 128), (4, 2, 64), (4, 1, 64), (4, 2, 64))


def _paper_model(
    size: int, slope: float, down: Rows, up: LayerTable, *, d_x: LayerTable, d_z: LayerTable, d_xz: LayerTable
) -> Architecture:
    """What all of them share: E of convolutions `down`, G of `up` and a sigmoid, batch norm in both, and the set-up."""
    return Architecture(
        image_size=size,
        encoder=(*convs(down, norm=True, act="lrelu"), conv(1, 1, OUTPUT, bias="channel")),
        decoder=(*up, conv(1, 1, OUTPUT, bias="pixel", act="sigmoid")),
        d_x=d_x,
        d_z=d_z,
        d_xz=d_xz,
        slope=slope,
        norm_eps=1e-4,
        norm_momentum=0.05,
        init_std=0.01,
    )


def _discriminator_x(body: Rows) -> LayerTable:
    """D(x) with batch norm on all layers but the first, which sees pixels."""
    first, *rest = body
    return (
        conv(*first, bias="channel", dropout=0.2, act="lrelu"),
        *convs(rest, norm=True, dropout=0.2, act="lrelu"),
    )


def _discriminator_xz(channels: int) -> LayerTable:
    """D(x, z) of two hidden layers."""
    hidden = conv(1, 1, channels, bias="channel", dropout=0.2, act="lrelu")
    return (hidden, hidden, conv(1, 1, OUTPUT, bias="channel", dropout=0.2))


def make_cifar10(widen: int = 1, bias: Literal["channel", "pixel"] = "channel") -> Architecture:
    """32x32, n_z 64.

    Args:
        widen: Factor on the channels of D before maxout: 1 is the code, 2 the other reading of the table.
        bias: What has a bias of its own in D(x): channel is tied (6,710,657 parameters), pixel untied (6,762,977).
    """
    dropout = (0.2, 0.5, 0.5, 0.5, 0.5)
    joint = conv(1, 1, 1024 * widen, bias="channel", dropout=0.5, act="maxout")
    return _paper_model(
        32,
        0.1,
        (*_BODY_32, (1, 1, 512)),
        tconvs(_UP_32, norm=True, act="lrelu"),
        d_x=tuple(
            conv(kernel, stride, out * widen, bias=bias, dropout=p, act="maxout")
            for (kernel, stride, out), p in zip(_BODY_32, dropout, strict=True)
        ),
        d_z=tuple(conv(1, 1, 512 * widen, dropout=p, act="maxout") for p in (0.2, 0.5)),
        d_xz=(joint, joint, conv(1, 1, OUTPUT, bias="channel", dropout=0.5)),
    )


def make_svhn() -> Architecture:
    """32x32, n_z 256."""
    return _paper_model(
        32,
        0.01,
        (*_BODY_32, (1, 1, 512)),
        tconvs(_UP_32, norm=True, act="lrelu"),
        d_x=_discriminator_x(_BODY_32),
        d_z=convs([(1, 1, 512)] * 2, dropout=0.2, act="lrelu"),
        d_xz=_discriminator_xz(1024),
    )


def make_celeba(d_x: LayerTable | None = None) -> Architecture:
    """64x64, n_z 256.

    Args:
        d_x: Another D(x).
    """
    return _paper_model(
        64,
        0.02,
        _BODY_CELEBA,
        tconvs(_UP_CELEBA, norm=True, act="lrelu"),
        d_x=d_x or _discriminator_x(_BODY_CELEBA),
        d_z=convs([(1, 1, 1024)] * 2, dropout=0.2, act="lrelu"),
        d_xz=_discriminator_xz(2048),
    )


def make_celeba_table() -> Architecture:
    """`celeba` with D(x) as printed."""
    return make_celeba(d_x=convs(_BODY_CELEBA, norm=True, act="lrelu"))


def make_imagenet64() -> Architecture:
    """64x64, n_z 256: what the paper calls Tiny ImageNet."""
    up = (
        *convs(((1, 1, 2048), (1, 1, 256)), norm=True, act="lrelu"),
        *tconvs(_UP_IMAGENET, norm=True, act="lrelu"),
    )
    return _paper_model(
        64,
        0.01,
        (*_BODY_IMAGENET, (1, 1, 2048), (1, 1, 2048)),
        up,
        d_x=_discriminator_x(_BODY_IMAGENET),
        d_z=convs([(1, 1, 2048)] * 2, bias="channel", dropout=0.2, act="lrelu"),
        d_xz=_discriminator_xz(4096),
    )
