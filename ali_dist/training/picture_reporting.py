"""The pictures of a run, drawn and saved while it trains; used by rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.gallery_layouts import Gallery, SampleGallery
from ali_dist.runs.datasets import RunData
from ali_dist.runs.run_writer import RunWriter
from ali_dist.runs.trackers import Record
from ali_dist.training.run_galleries import RunGalleries
from ali_dist.training.state import TrainState

GoingOn = Callable[[str, Record], AbstractContextManager[None]]
"""Records what fails in a block, by a word for what is done in it and a record's position, and goes on."""


class PictureReporter:
    """Draws galleries and saves them in the run folder; tells the trackers how latents and logits are spread.

    Args:
        config: The run's config.
        data: Its data.
        state: The networks.
        folder: Where pictures and records go.
        device: Where the networks are.
        going_on: What a picture that fails is recorded by; the others are drawn all the same.
    """

    def __init__(
        self,
        config: Config,
        data: RunData,
        state: TrainState,
        folder: RunWriter,
        device: torch.device,
        going_on: GoingOn,
    ) -> None:
        self._objective = config.objective
        self._ali = state.ali
        self._folder = folder
        self._going_on = going_on
        self._galleries = RunGalleries(data, state.space, device)
        self._nearest_failed = False
        self._distributions_at = -1

    def draw(self, model: InferenceModel, position: Record) -> None:
        """Draw what `model` makes of the same latents and images as at every other time.

        Args:
            model: The current networks.
            position: Images seen, for the files' names, and step and seconds.
        """
        drawn: dict[str, Gallery] = {}
        with self._going_on("gallery", position):
            drawn = self._galleries.draw(model)
            self._save(drawn, position["images"])
        with self._going_on("latent map", position):
            latents = self._galleries.draw_latents(model)
            self._save({} if latents is None else {"latents": latents}, position["images"])
        samples = drawn.get("samples")
        if isinstance(samples, SampleGallery):
            self._draw_nearest(samples, position)
        self.track_distributions(position)

    def track_distributions(self, position: Record) -> None:
        """Tell the trackers how latents and D's logits are spread, once at a moment."""
        if not self._folder.has_trackers or self._distributions_at == position["images"]:
            return
        self._distributions_at = position["images"]
        with self._going_on("look at distributions", position):
            game, packing = self._objective.game, self._objective.packing
            histograms = self._galleries.measure_distributions(self._ali, game, packing=packing)
            self._folder.track_histograms(histograms, position["images"])
            means = {f"mean_{name}": float(values.mean()) for name, values in histograms.items()}
            self._folder.track_record({"event": "distributions", **position, **means})

    def _draw_nearest(self, samples: SampleGallery, position: Record) -> None:
        """Draw samples beside training images, and record how near they are; if that fails once, it is left out."""
        if self._nearest_failed:
            return
        self._nearest_failed = True
        with self._going_on("comparison with training images", position):
            try:
                gallery, medians = self._galleries.draw_nearest(samples.x_tilde)
            except InputError as error:  # training says what it thinks of damaged samples; a picture need not
                raise RuntimeError(str(error)) from error
            self._save({"nearest": gallery}, position["images"])
            if not self._has_compared(position["images"]):  # an earlier start may have, before it was stopped
                self._folder.log_record({"event": "neighbors", **position, **medians.to_record()})
            self._nearest_failed = False

    def _has_compared(self, images: int) -> bool:
        return any(r.get("event") == "neighbors" and r["images"] == images for r in self._folder.read_records())

    def _save(self, drawn: Mapping[str, Gallery], images: int) -> None:
        for kind, gallery in drawn.items():
            path = self._folder.path / "images" / f"{kind}-{images:09d}.png"
            gallery.save_picture(path)
            self._folder.log_image(path, images)
