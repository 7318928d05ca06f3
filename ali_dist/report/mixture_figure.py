"""A figure of what a model of a 2-D Gaussian mixture has learned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ali_dist.report.figure_file import make_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, ACCENT = "#333a45", "#c3c9d2", "#2f6fb0"
PLATE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
LINES = 300
"""Reconstructions that are drawn; more would hide each other."""


def save_mixture_figure(
    path: Path, *, means: Tensor, std: float, samples: Tensor, x: Tensor, x_rec: Tensor, z: Tensor, y: Tensor
) -> None:
    """Write three panels as a PNG: decoder samples over the modes, reconstructions, latent codes over the prior.

    Args:
        path: Where the PNG goes.
        means: Means of the components, [K, 2].
        std: Standard deviation of every component, in data units.
        samples: Decoder samples G(z), z from the prior, [N, 2].
        x: Data points [M, 2].
        x_rec: Their reconstructions [M, 2].
        z: Encoder samples of `x` [M, n_z]; the first two latent variables are shown.
        y: Component of each `x`, int64 [M].
    """
    figure = make_figure(14, 5.2)
    left, middle, right = figure.subplots(1, 3)
    reach = float(means.abs().max()) * 1.15 + 6 * std
    _draw_samples(left, samples, means, std, reach)
    _draw_reconstructions(middle, x[:LINES], x_rec[:LINES], means, std)
    _draw_codes(right, z, y)
    for axes, limit in ((left, reach), (middle, reach), (right, 4.0)):
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.tick_params(colors=INK, labelsize=9, length=3)
        axes.spines[:].set_color(FAINT)
        axes.title.set(color=INK, fontsize=11)
    save_figure(figure, path, dpi=110)


def _draw_samples(axes: Axes, samples: Tensor, means: Tensor, std: float, reach: float) -> None:
    _draw_modes(axes, means, std)
    outside = int((samples.abs() > reach).any(dim=1).sum())
    axes.scatter(*_to_columns(samples), s=3, color=ACCENT, alpha=0.5, linewidths=0, zorder=2)
    axes.set(title=f"{len(samples):,} samples, {outside:,} of them out of view")
    axes.set(xlabel="x₁ (data units)", ylabel="x₂ (data units)")


def _draw_reconstructions(axes: Axes, x: Tensor, x_rec: Tensor, means: Tensor, std: float) -> None:
    from matplotlib.collections import LineCollection

    _draw_modes(axes, means, std)
    segments = np.stack([_to_array(x), _to_array(x_rec)], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=ACCENT, linewidths=0.7, alpha=0.5))
    axes.scatter(*_to_columns(x), s=7, color=INK, linewidths=0, label="x", zorder=3)
    axes.scatter(*_to_columns(x_rec), s=7, color="#d9762b", linewidths=0, label="G(z), z ~ q(z|x)", zorder=3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, fontsize=9, frameon=False)
    axes.set(title=f"{len(x):,} points and their reconstructions")
    axes.set(xlabel="x₁ (data units)", ylabel="x₂ (data units)")


def _draw_codes(axes: Axes, z: Tensor, y: Tensor) -> None:
    from matplotlib.patches import Circle

    second = z[:, 1] if z.shape[1] > 1 else z[:, 0] * 0
    axes.scatter(_to_array(z[:, 0]), _to_array(second), c=_to_array(y), cmap="turbo", s=4, alpha=0.7, linewidths=0)
    for share in (0.5, 0.9, 0.99):
        radius = math.sqrt(-2 * math.log(1 - share))  # of the disc that holds this share of a 2-D standard normal
        axes.add_patch(Circle((0, 0), radius, fill=False, color=INK, linewidth=0.9, linestyle=(0, (4, 3))))
        axes.text(0, radius, f"{share:.0%} of prior", ha="center", va="center", fontsize=8, color=INK, bbox=PLATE)
    axes.set(title="Codes z ~ q(z|x), colored by mode")
    axes.set(xlabel="z₁ (prior std = 1)", ylabel="z₂ (prior std = 1)")


def _draw_modes(axes: Axes, means: Tensor, std: float) -> None:
    """Draw a circle of 3 std around each mean, as the quality threshold has it, and a faint one that stays visible."""
    from matplotlib.patches import Circle

    axes.scatter(*_to_columns(means), s=46, facecolors="none", edgecolors=FAINT, linewidths=1.0, zorder=1)
    for x, y in _to_array(means):
        axes.add_patch(Circle((x, y), 3 * std, fill=False, color=INK, linewidth=0.7, zorder=3))


def _to_array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().float().cpu().numpy()
    return array


def _to_columns(points: Tensor) -> tuple[np.ndarray, np.ndarray]:
    array = _to_array(points)
    return array[:, 0], array[:, 1]
