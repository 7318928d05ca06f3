"""Models of 2-D mixtures."""

from __future__ import annotations

from ali_dist.model.architectures.schema import OUTPUT, Architecture, linear


def make_mixture(point_scale: float, decoder_layers: int) -> Architecture:
    """Our own.

    Args:
        point_scale: Standard deviation of the points.
        decoder_layers: Hidden layers of the decoder. Depth narrows the transitions between modes, in
            which samples are lost; so do ReLUs, which the other two networks do without.
    """
    hidden = linear(128, bias="channel", act="lrelu")
    sharp = linear(128, bias="channel", act="relu")
    last = linear(OUTPUT, bias="channel")
    return Architecture(
        image_size=None,
        encoder=(hidden, hidden, last),
        decoder=(*(sharp,) * decoder_layers, last),
        d_x=(),
        d_z=(),
        d_xz=(hidden, hidden, hidden, last),
        log_sigma_bias=-1.0,
        point_scale=point_scale,
        fourier=(1.5, 5),
    )


def make_mixture_paper() -> Architecture:
    """The paper's. Source: the authors' code; the paper has no table of it."""
    normed = linear(400, norm=True, act="relu")
    last = linear(OUTPUT, bias="channel")
    maxout = linear(1000, bias="channel", act="maxout", pieces=5)
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
