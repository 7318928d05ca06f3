"""Galleries: images that belong together, and how they are laid out, in one picture or one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ali_dist.report.image_grids import save_conditions, save_interpolations, save_reconstructions, save_samples
from ali_dist.report.mixture_figure import save_mixture_figure


class Gallery(Protocol):
    """Images that belong together."""

    def save_picture(self, path: Path) -> None:
        """Write one PNG of all images."""

    def named_images(self) -> dict[str, Tensor]:
        """Each image [C, H, W] by the name that its own file gets."""


@dataclass(frozen=True, slots=True)
class SampleGallery:
    """Decoder samples `x_tilde` [N, C, H, W]."""

    x_tilde: Tensor

    def save_picture(self, path: Path) -> None:
        """Write a grid, row by row."""
        save_samples(path, self.x_tilde)

    def named_images(self) -> dict[str, Tensor]:
        """The samples by their number."""
        return {f"{i:05d}": image for i, image in enumerate(self.x_tilde)}


@dataclass(frozen=True, slots=True)
class ReconstructionGallery:
    """Images `x` and their reconstructions `x_rec`, [N, C, H, W] each."""

    x: Tensor
    x_rec: Tensor

    def save_picture(self, path: Path) -> None:
        """Write a grid of pairs, the original on the left."""
        save_reconstructions(path, self.x, self.x_rec)

    def named_images(self) -> dict[str, Tensor]:
        """The originals by their number, then the reconstructions."""
        originals = {f"{i:05d}-original": image for i, image in enumerate(self.x)}
        return originals | {f"{i:05d}-reconstruction": image for i, image in enumerate(self.x_rec)}


@dataclass(frozen=True, slots=True)
class InterpolationGallery:
    """Decoded paths `rows` [R, S, C, H, W] between the latents of the images `ends` [R, 2, C, H, W]."""

    rows: Tensor
    ends: Tensor

    def save_picture(self, path: Path) -> None:
        """Write one path per row, the originals at its ends."""
        save_interpolations(path, self.rows, self.ends)

    def named_images(self) -> dict[str, Tensor]:
        """The decoded steps by the number of their path and their place on it."""
        return {f"{i:05d}-{j:02d}": image for i, row in enumerate(self.rows) for j, image in enumerate(row)}


@dataclass(frozen=True, slots=True)
class ConditionGallery:
    """The same latents under one condition after another: `rows` [R, S, C, H, W], and a label for each of S columns."""

    rows: Tensor
    labels: tuple[str, ...]

    def save_picture(self, path: Path) -> None:
        """Write a grid with the conditions above its columns."""
        save_conditions(path, self.rows, self.labels)

    def named_images(self) -> dict[str, Tensor]:
        """The images by the number of their latent and their condition."""
        return {
            f"{i:05d}-{label}": image
            for i, row in enumerate(self.rows)
            for label, image in zip(self.labels, row, strict=True)
        }


@dataclass(frozen=True, slots=True)
class MixtureGallery:
    """What a model makes of a Gaussian mixture.

    Attributes:
        means: Means of the components [K, D].
        std: Standard deviation of every component.
        x_tilde: Decoder samples [N, D].
        x: Points of the mixture [M, D].
        x_rec: Their reconstructions [M, D].
        z_hat: Their latents [M, n_z].
        y: Their components, int64 [M].
    """

    means: Tensor
    std: float
    x_tilde: Tensor
    x: Tensor
    x_rec: Tensor
    z_hat: Tensor
    y: Tensor

    def save_picture(self, path: Path) -> None:
        """Write the figure of three panels."""
        save_mixture_figure(
            path,
            means=self.means,
            std=self.std,
            samples=self.x_tilde,
            x=self.x,
            x_rec=self.x_rec,
            z=self.z_hat,
            y=self.y,
        )

    def named_images(self) -> dict[str, Tensor]:
        """Nothing: points are no images."""
        return {}
