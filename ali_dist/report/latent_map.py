"""A map of what an encoder makes of images: the means of q(z|x), projected on their first two principal components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ali_dist.evaluation.batched import conditions_from_labels, encode_mean, make_generator
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.inference_model import InferenceModel
from ali_dist.names import printable_name
from ali_dist.report.figure_file import make_figure, save_figure
from ali_dist.report.mixture_figure import PLATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENTS_SHOWN = 1_000
"""Images of a map, at most."""
_INK, _FAINT = "#333a45", "#c3c9d2"
_MOST_NAMED = 20  # classes with a color of their own
_LONGEST_NAME = 18
_PRIOR_SHARES = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class LatentMap:
    """Images as points of a plane in latent space.

    Attributes:
        points: Coordinates [N, 2] along the first two principal components of mu; the origin is the prior's mean, and
            the prior's standard deviation is 1 in every direction.
        shares: Shares of the variance of mu, 0 to 1, that lie along the two.
        y: Labels: int64 [N] of classes, float32 [N, A] of attributes, or None.
        spec: What the labels are called.
    """

    points: Tensor
    shares: tuple[float, float]
    y: Tensor | None
    spec: DataSpec

    def save_picture(self, path: Path) -> None:
        """Write the map as a PNG, colored by label, or by density where there are no labels."""
        figure = make_figure(6.4, 5.0)
        axes = figure.subplots()
        title = _draw_points(axes, self.points, self.y, self.spec)
        _draw_prior(axes)
        axes.set(aspect="equal", title=f"μ(x) of {len(self.points):,} images, {title}")
        for place, (name, share) in enumerate(zip(("first", "second"), self.shares, strict=True)):
            set_label = axes.set_ylabel if place else axes.set_xlabel
            set_label(f"{name} principal component, {share:.0%} of the variance", color=_INK)
        axes.tick_params(colors=_INK, labelsize=9, length=3)
        axes.spines[:].set_color(_FAINT)
        axes.title.set(color=_INK, fontsize=11)
        save_figure(figure, path, dpi=120)

    def named_images(self) -> dict[str, Tensor]:
        """Nothing: a map is one picture."""
        return {}


def draw_latent_map(
    model: InferenceModel, data: LabelledArrays, spec: DataSpec, *, device: torch.device | str
) -> LatentMap:
    """Encode images and project the means of q(z|x) on their first two principal components.

    Args:
        model: The networks as they are now.
        data: At least 2 images [N, C, H, W] with their labels, if they have some.
        spec: What the data are.
        device: Where the model is.

    Raises:
        FloatingPointError: The encoder gives NaN or infinity.
    """
    mu = encode_mean(model, data.x, device, conditions_from_labels(model, data.y))
    points, shares = project(mu)
    return LatentMap(points, shares, data.y, spec)


def project(mu: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Project `mu` [N, n_z], N >= 2, on its first two principal components.

    The signs of the components are such that maps of the same images look alike from one moment to the next.

    Returns:
        Coordinates [N, 2] from the origin of z, and the two shares of the variance; where n_z is 1, the second is 0.
    """
    if mu.shape[1] == 1:
        mu = torch.cat([mu, torch.zeros_like(mu)], dim=1)
    directions, variances = principal_components(mu)
    total = max(float(variances.sum()), 1e-300)
    first, second = (float(value) / total for value in variances[:2])
    return (mu.double() @ directions[:, :2]).float(), (first, second)


def principal_components(mu: Tensor) -> tuple[Tensor, Tensor]:
    """The principal components of `mu` [N, n_z], N >= 2, the one of the greatest variance first.

    Signs are such that the components of the same images point the same way from one moment to the next.

    Returns:
        Directions float64 [n_z, n_z], one in each column, of length 1; and the variances float64 [n_z] along them.
    """
    centered = mu.double() - mu.double().mean(dim=0)
    sums, directions = torch.linalg.eigh(centered.T @ centered)  # ascending
    directions = directions.flip(1)
    weights = torch.randn(len(mu), generator=make_generator(0, "signs of components"), dtype=torch.float64)
    directions = directions * torch.where(weights @ (centered @ directions) < 0, -1.0, 1.0)
    return directions, sums.flip(0).clamp_min(0) / (len(mu) - 1)


def _draw_points(axes: Axes, points: Tensor, y: Tensor | None, spec: DataSpec) -> str:
    """Draw the points; says what their colors are."""
    if y is None:
        axes.scatter(
            points[:, 0].numpy(), points[:, 1].numpy(), c=_density(points).numpy(), cmap="viridis", s=9, linewidths=0
        )
        return "colored by density"
    if y.ndim == 2:
        balance = (y.mean(dim=0) - 0.5).abs()
        chosen = int(balance.argmin())
        name = _short_name(spec.attributes[chosen])
        _draw_classes(axes, points, (y[:, chosen] > 0.5).long(), (f"not {name}", name))
        return f"colored by {name}"
    if len(spec.classes) > _MOST_NAMED:
        axes.scatter(
            points[:, 0].numpy(), points[:, 1].numpy(), c=y.numpy(), cmap="turbo", s=9, linewidths=0, alpha=0.8
        )
        return f"colored by class, {len(spec.classes)} in all"
    names = spec.classes or tuple(map(str, range(int(y.max()) + 1)))
    _draw_classes(axes, points, y, names)
    return "colored by class"


def _draw_classes(axes: Axes, points: Tensor, y: Tensor, names: Sequence[str]) -> None:
    """Draw all points at once, so that no class covers another, and each class's name beside the plane."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    colors = colormaps["tab10" if len(names) <= 10 else "tab20"]
    named = (y >= 0) & (y < len(names))
    first, second = points[named].numpy().T
    axes.scatter(first, second, color=colors(y[named].numpy()), s=10, linewidths=0, alpha=0.8)
    handles = [
        Line2D([], [], color=colors(place), label=_short_name(name), marker="o", linestyle="none", alpha=0.8)
        for place, name in enumerate(names)
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)


def _short_name(name: str) -> str:
    """A name from outside for a legend: no control characters, and no signs that matplotlib takes for formulas."""
    name = printable_name(name)
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return name.replace("$", r"\$")


def _density(points: Tensor) -> Tensor:
    """How many of the points [N, 2] are near each, [N]: within a fifth of their spread."""
    return (torch.cdist(points, points) < points.std(dim=0).mean() / 5).sum(dim=1)


def _draw_prior(axes: Axes) -> None:
    """Circles that hold shares of the prior, whose projection is a standard normal in every plane."""
    from matplotlib.patches import Circle

    for share in _PRIOR_SHARES:
        radius = math.sqrt(-2 * math.log(1 - share))
        axes.add_patch(Circle((0, 0), radius, fill=False, color=_INK, linewidth=0.8, linestyle=(0, (4, 3))))
        axes.annotate(
            f"{share:.0%} of the prior", (0, radius), ha="center", va="center", fontsize=8, color=_INK, bbox=PLATE
        )
