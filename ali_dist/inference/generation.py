"""Samples, reconstructions, interpolations and changes of condition of a trained model, as files.

Pictures of one seed show the same latents and the same images at every checkpoint. A grid shows images at the size
the model works at, enlarged; single images have the size the data are stored at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation import batched as inference
from ali_dist.evaluation.interpolation import lerp_path, slerp_path
from ali_dist.inference.conditions import ConditionQuery
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples, draw_labels, draw_samples
from ali_dist.report.image_grids import (
    save_conditions,
    save_image,
    save_interpolations,
    save_reconstructions,
    save_samples,
)
from ali_dist.runs.datasets import DataSplit

DEFAULT_COUNTS = {"samples": 100, "reconstructions": 50, "interpolations": 8, "attributes": 8}
_FIGURE_POINTS = 2_500


@dataclass(frozen=True, slots=True)
class GalleryWriter:
    """What is drawn, and where to.

    Attributes:
        saved: The model.
        device: Where it is.
        wanted: The conditions asked for.
        data: Opens the split that images (and conditions that nobody asked for) come from.
        folder: For the files.
        grid: Write one picture of all images.
        single: Write each image by itself.
        count: Samples, pairs or rows.
        seed: Of every draw.
    """

    saved: LoadedRun
    device: torch.device
    wanted: ConditionQuery
    data: Callable[[], DataSplit]
    folder: Path
    grid: bool
    single: bool
    count: int
    seed: int

    def samples(self) -> list[Path]:
        """Decoder samples; points also as a figure, where they are of a mixture. Returns what was written."""
        model = self.saved.model
        images = inference.sample_decoder(model, self.count, self.seed, self.device, self._conditions())
        if images.dim() == 2:
            return self._points(images)
        return self._write(
            "samples", lambda path: save_samples(path, images), {f"{i:05d}": x for i, x in _numbered(images)}
        )

    def reconstructions(self, *, use_mean: bool) -> list[Path]:
        """Images beside G(z), z ~ q(z|x) or its mean; under the conditions asked for where there are any."""
        x, c, z = self._encoded(self.count, use_mean)
        x_rec = inference.decode_batched(self.saved.model, z, self.device, self.wanted.of(c))
        parts = {f"{i:05d}-original": image for i, image in _numbered(x)}
        parts |= {f"{i:05d}-reconstruction": image for i, image in _numbered(x_rec)}
        return self._write("reconstructions", lambda path: save_reconstructions(path, x, x_rec), parts)

    def interpolations(self, *, use_mean: bool, spherical: bool, steps: int) -> list[Path]:
        """Ways between the latents of two images each; conditions change along straight lines."""
        x, c, z = self._encoded(2 * self.count, use_mean)
        ends, pairs = x.unflatten(0, (-1, 2)), z.unflatten(0, (-1, 2))
        way = slerp_path if spherical else lerp_path
        lines = way(pairs[:, 0], pairs[:, 1], steps)
        c_ends = self.wanted.of(c)
        c_lines = None
        if c_ends is not None:
            c_pairs = c_ends.unflatten(0, (-1, 2))
            c_lines = lerp_path(c_pairs[:, 0], c_pairs[:, 1], steps).flatten(0, 1)
        rows = inference.decode_batched(self.saved.model, lines.flatten(0, 1), self.device, c_lines)
        rows = rows.unflatten(0, lines.shape[:2])
        kind = "interpolations-spherical" if spherical else "interpolations"
        parts = {f"{i:05d}-{j:02d}": image for i, row in _numbered(rows) for j, image in _numbered(row)}
        return self._write(kind, lambda path: save_interpolations(path, rows, ends), parts)

    def attributes(self, vary: list[int] | None) -> list[Path]:
        """The same z in every row under one condition after another, named above the columns.

        Classes: each of them. Attributes: first as asked for (those not asked for: 0), then with one after the other
        turned over.

        Args:
            vary: Places of the attributes to turn; None: all.
        """
        columns, labels = self._columns(vary)
        z = torch.randn(
            self.count, self.saved.model.latent_size, generator=inference.make_generator(self.seed, "prior")
        )
        each_z = z.repeat_interleave(len(columns), 0)
        images = inference.decode_batched(self.saved.model, each_z, self.device, columns.repeat(self.count, 1))
        rows = images.unflatten(0, (self.count, len(columns)))
        parts = {
            f"{i:05d}-{label}": image for i, row in _numbered(rows) for label, image in zip(labels, row, strict=True)
        }
        return self._write("attributes", lambda path: save_conditions(path, rows, labels), parts)

    def _columns(self, vary: list[int] | None) -> tuple[Tensor, list[str]]:
        """Conditions [S, A] and what is written above their columns."""
        size, facts = self.saved.model.condition_size, self.saved.facts
        if self.saved.config.model.condition == "classes":
            return torch.eye(size), list(facts.classes)
        base = self.wanted.of(torch.zeros(1, size))
        if base is None or not size:
            raise InputError(
                f"--what attributes is for a conditional model, but run {self.saved.name!r} is not one: train with "
                "--model.condition classes or attributes, or choose another --what."
            )
        places = list(range(size)) if vary is None else vary
        turned = base.repeat(len(places), 1)
        turned[range(len(places)), places] = 1 - turned[range(len(places)), places]
        names = [f"{'+' if turned[i, place] else '-'}{facts.attributes[place]}" for i, place in enumerate(places)]
        return torch.cat([base, turned]), [self.wanted.label or "none", *names]

    def _conditions(self) -> Tensor | None:
        """Conditions of samples: as asked for; what is left open comes from the data, classes take turns."""
        size = self.saved.model.condition_size
        if not size:
            return None
        if self.saved.config.model.condition == "classes":
            turns = torch.eye(size)[torch.arange(self.count) % size]
            return self.wanted.of(turns)
        if self.wanted.complete:
            return self.wanted.of(torch.zeros(self.count, size))
        part = self.data()
        labels = draw_labels(part, self.count, inference.make_generator(self.seed, "conditions"))
        return self.wanted.of(conditions_for_samples(self.saved, part, labels))

    def _encoded(self, count: int, use_mean: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images x [N, C, H, W] in [0, 1], their own conditions, and latents z [N, n_z]."""
        part = self.data()
        if len(part.index.shape) != 3:
            raise InputError(f"Run {self.saved.name!r} is of points, which are shown by --what samples alone.")
        if part.index.num_samples < count:
            raise InputError(
                f"--count {self.count} needs {count} images, but {part.store.url} holds {part.index.num_samples}: "
                "give a smaller --count."
            )
        samples = draw_samples(part, count, inference.make_generator(self.seed, "images"))
        x, c = self.saved.space.unit_from_stored(samples.x), conditions_for_samples(self.saved, part, samples.y)
        mu, _, z = inference.encode_batched(self.saved.model, x, self.seed, self.device, c)
        return x, c, mu if use_mean else z

    def _write(self, kind: str, grid: Callable[[Path], None], parts: dict[str, Tensor]) -> list[Path]:
        words = "".join(letter if letter.isalnum() or letter in "=-_,+" else "_" for letter in self.wanted.label)
        stem = "-".join(filter(None, (kind, words, f"seed{self.seed}")))
        written = []
        if self.grid:
            grid(self.folder / f"{stem}.png")
            written.append(self.folder / f"{stem}.png")
        if self.single:
            for name, image in parts.items():
                native = self.saved.space.native_from_unit(image[None])[0]
                save_image(self.folder / stem / f"{name.replace('/', '_')}.png", native)
            written.append(self.folder / stem)
        return written

    def _points(self, points: Tensor) -> list[Path]:
        from ali_dist.report.mixture_figure import save_mixture_figure

        path = self.folder / f"samples-seed{self.seed}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, points.numpy(), allow_pickle=False)
        mixture = self.saved.facts.mixture
        if mixture is None or not self.grid:
            return [path]
        means, std = torch.tensor(mixture["means"]), float(mixture["std"])
        draws = inference.make_generator(self.seed, "mixture")
        y = torch.randint(len(means), (_FIGURE_POINTS,), generator=draws)
        x = means[y] + std * torch.randn(len(y), means.shape[1], generator=draws)
        c = inference.conditions_from_labels(self.saved.model, y)
        _, _, z = inference.encode_batched(self.saved.model, x, self.seed, self.device, c)
        x_rec = inference.decode_batched(self.saved.model, z, self.device, c)
        figure = path.with_suffix(".png")
        save_mixture_figure(figure, means=means, std=std, samples=points, x=x, x_rec=x_rec, z=z, y=y)
        return [path, figure]


def _numbered(values: Tensor) -> list[tuple[int, Tensor]]:
    return list(enumerate(values))
