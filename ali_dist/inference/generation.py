"""The galleries of a trained model, as files: which conditions and images they are made of, and where they go.

`report/galleries.py` decides what is drawn. Galleries of one seed show the same latents and the same images
at every checkpoint. A picture shows images at the size the model works at, enlarged; single images have the size the
data are stored at. Beside galleries of images of the data, a .json has the names of these images, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ali_dist.config.wording import format_count
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import make_generator
from ali_dist.inference.conditions import ConditionQuery
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples, draw_labels, draw_samples, say_resize
from ali_dist.report import galleries
from ali_dist.report.gallery_layouts import Gallery
from ali_dist.report.image_grids import save_image
from ali_dist.runs.datasets import DataSplit


@dataclass(frozen=True, slots=True)
class GalleryWriter:
    """Writes galleries of one model into one folder.

    Attributes:
        run: The run of the model.
        device: Where the model is.
        condition: The conditions asked for.
        open_data: Opens the split that images come from, and conditions that nobody asked for.
        folder: Where the files go.
        as_picture: Whether all images are written as one picture.
        as_files: Whether each image is written as a file of its own.
        count: Samples, pairs or rows.
        seed: Seed of every draw.
        may_be_fewer: Whether pairs and rows are as many as there are images for, where these do not suffice.
    """

    run: LoadedRun
    device: torch.device
    condition: ConditionQuery
    open_data: Callable[[], DataSplit]
    folder: Path
    as_picture: bool
    as_files: bool
    count: int
    seed: int
    may_be_fewer: bool = False

    def write_samples(self) -> list[Path]:
        """Write decoder samples: images, or points and, where they are of a mixture, a figure.

        Returns:
            The files or folders that were written, as of all methods here.
        """
        gallery = galleries.draw_samples(
            self.run.model, self.count, self._sample_conditions(), seed=self.seed, device=self.device
        )
        if not self.run.spec.is_images:
            return self._write_points(gallery.x_tilde)
        return self._write("samples", gallery)

    def write_reconstructions(self, *, use_mean: bool) -> list[Path]:
        """Write images beside G(z), z ~ q(z|x) or its mean; decoded under the conditions asked for, if any."""
        x, c, names = self._draw_images(1)
        gallery = galleries.draw_reconstructions(
            self.run.model,
            x,
            c,
            seed=self.seed,
            device=self.device,
            decoder_c=self.condition.apply_to(c),
            use_mean=use_mean,
        )
        return self._write("reconstructions", gallery, names)

    def write_interpolations(self, *, use_mean: bool, spherical: bool, steps: int) -> list[Path]:
        """Write paths between the latents of two images each; conditions change along straight lines."""
        x, c, names = self._draw_images(2)
        gallery = galleries.draw_interpolations(
            self.run.model,
            x,
            c,
            seed=self.seed,
            device=self.device,
            steps=steps,
            path_function=galleries.choose_path_function(spherical=spherical),
            decoder_c=self.condition.apply_to(c),
            use_mean=use_mean,
        )
        return self._write("interpolations-spherical" if spherical else "interpolations", gallery, names)

    def write_conditions(self, places: Sequence[int] | None) -> list[Path]:
        """Write the same z in every row under one condition after another, named above the columns.

        Classes: each of them. Attributes: first as asked for (those not asked for: 0), then with one after the other
        turned over.

        Args:
            places: Places of the attributes to turn over; None: all.
        """
        columns, labels = self._condition_columns(places)
        gallery = galleries.draw_conditions(
            self.run.model, columns, labels, count=self.count, seed=self.seed, device=self.device
        )
        return self._write("attributes", gallery)

    def _condition_columns(self, places: Sequence[int] | None) -> tuple[Tensor, list[str]]:
        """Conditions [S, A] and what they are called."""
        size = self.run.model.condition_size
        spec = self.run.spec
        if self.run.config.model.condition == "classes":
            return galleries.class_columns(spec.classes, size)
        base = self.condition.apply_to(torch.zeros(1, size))
        if base is None or not size:
            raise InputError(
                f"--what attributes is for a conditional model, but run {self.run.name!r} is not one: train with "
                "--model.condition classes or attributes, or choose another --what."
            )
        places = range(size) if places is None else places
        return galleries.attribute_columns(spec.attributes, base[0], self.condition.label or "none", places)

    def _sample_conditions(self) -> Tensor | None:
        """Conditions of samples: as asked for; what is left open comes from the data, and classes take turns."""
        size = self.run.model.condition_size
        if not size:
            return None
        if self.run.config.model.condition == "classes":
            return self.condition.apply_to(torch.eye(size)[torch.arange(self.count) % size])
        if self.condition.is_complete:
            return self.condition.apply_to(torch.zeros(self.count, size))
        split = self.open_data()
        labels = draw_labels(split, self.count, make_generator(self.seed, "conditions"))
        return self.condition.apply_to(conditions_for_samples(self.run, split, labels))

    def _draw_images(self, for_each: int) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Draw images x [N, C, H, W] in [0, 1], `for_each` for each of what is written.

        Returns:
            The images, their conditions [N, A], and what a file says of which images they are.
        """
        split = self.open_data()
        if not self.run.spec.is_images:
            raise InputError(
                f"Run {self.run.name!r} was trained on points, which can only be shown by --what samples: choose that."
            )
        say_resize(self.run, split)
        possible = split.index.num_samples // for_each
        if possible < self.count and (not self.may_be_fewer or possible == 0):
            raise InputError(
                f"--count {self.count} needs {format_count(self.count * for_each, 'image')}, but {split.store.url} "
                f"holds {split.index.num_samples}: give a smaller --count."
            )
        samples = draw_samples(split, min(possible, self.count) * for_each, make_generator(self.seed, "images"))
        images = [{"id": sample, "origin": origin} for sample, origin in zip(samples.ids, samples.origins, strict=True)]
        c = conditions_for_samples(self.run, split, samples.y)
        return self.run.space.unit_from_stored(samples.x), c, {"data": split.store.url, "images": images}

    def _write(self, kind: str, gallery: Gallery, names: Mapping[str, Any] | None = None) -> list[Path]:
        """Write a gallery and, where it is of images of the data, a file beside it with their names in order."""
        label = "".join(letter if letter.isalnum() or letter in "=-_,+" else "_" for letter in self.condition.label)
        stem = "-".join(filter(None, (kind, label, f"seed{self.seed}")))
        written = []
        if self.as_picture:
            gallery.save_picture(self.folder / f"{stem}.png")
            written.append(self.folder / f"{stem}.png")
        if self.as_files:
            for name, image in gallery.named_images().items():
                native = self.run.space.native_from_unit(image[None])[0]
                save_image(self.folder / stem / f"{name.replace('/', '_')}.png", native)
            written.append(self.folder / stem)
        if names is not None:
            path = self.folder / f"{stem}.json"
            path.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
            written.append(path)
        return written

    def _write_points(self, points: Tensor) -> list[Path]:
        path = self.folder / f"samples-seed{self.seed}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, points.numpy(), allow_pickle=False)
        if self.run.spec.mixture is None or not self.as_picture:
            return [path]
        figure = path.with_suffix(".png")
        x, y = galleries.draw_mixture_points(self.run.spec.mixture, galleries.FIGURE_POINTS, seed=self.seed)
        gallery = galleries.draw_mixture(
            self.run.model, self.run.spec.mixture, x, y, points, seed=self.seed, device=self.device
        )
        gallery.save_picture(figure)
        return [path, figure]
