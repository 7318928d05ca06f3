"""What rank 0 shows of a run: metric records, galleries, evaluations, the summary and the report page."""

from __future__ import annotations

import functools
import sys

import torch

from ali_dist.config import Config
from ali_dist.evaluation.evaluators import make_evaluator
from ali_dist.evaluation.interfaces import LabelledArrays, ModelEvaluator
from ali_dist.evaluation.split_loading import load_labelled_arrays, megabytes_in_memory
from ali_dist.model.build import build_networks
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.galleries import IMAGES_NEEDED, draw_run_galleries, has_galleries
from ali_dist.report.page import write_page
from ali_dist.report.terminal import TrainingProgressDisplay
from ali_dist.runs.datasets import DataSplit, RunData
from ali_dist.runs.run_writer import RunWriter
from ali_dist.runs.trackers import Record
from ali_dist.storage.base import Store
from ali_dist.training.resume import TrainingProgress
from ali_dist.training.state import TrainState

_SEED = 0
"""Seed of evaluations and galleries in every run: runs are compared, so classifiers and draws must not differ."""


class RunReporter:
    """Writes the files of a run and shows how it is doing; changes nothing in the training. Used by rank 0 alone.

    Args:
        config: The run's config.
        data: Its data.
        state: The networks; their averages are shown where there are any.
        store: The run's folder.
        device: Where the networks are.
    """

    def __init__(self, config: Config, data: RunData, state: TrainState, store: Store, device: torch.device) -> None:
        self._config = config
        self._data = data
        self._state = state
        self._device = device
        self._folder = RunWriter(store)
        self._display: TrainingProgressDisplay | None = None

    def say(self, text: str) -> None:
        """Show a line to the user."""
        if self._display is not None:
            self._display.message(text)
        else:
            sys.stderr.write(f"{text}\n")  # the progress line is not there yet

    def begin_training(self, progress: TrainingProgress) -> None:
        """Begin to show a training that starts, or goes on, from `progress`."""
        config = self._config
        state = self._state
        self._folder.forget_after(progress.images)
        self._folder.write_json("config.json", config.to_mapping())
        sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in state.ali.named_children()}
        self.say(
            f"Training {config.run.name!r} on {config.data.url}: "
            + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            + f" parameters; {state.step.rule.name} update, {state.precision.name} on {self._device}."
        )
        self.say(f"Results go to {self._folder.store.url}.")
        if self._data.holdout is None:
            self.say(f"The data have no split {config.data.holdout!r}: evaluation is left out.")
        self._display = TrainingProgressDisplay(config.run.images, start_images=progress.images)

    def count_images(self, images: int) -> None:
        """Show that so many images have been seen; cheap enough for every step."""
        if self._display is not None:
            self._display.update(images)

    def log_record(self, record: Record) -> None:
        """Write and show one record of metrics."""
        self._folder.log_record(record)
        if self._display is not None:
            self._display.update(record["images"], record)

    def publish(self) -> None:
        """Bring what has been written to the run folder, where that is not on this machine."""
        self._folder.publish()

    def evaluate(self, position: Record) -> dict[str, float]:
        """Measure the current networks on the holdout split, and log it; empty where there are no metrics.

        Args:
            position: Step, images and seconds of the record.
        """
        if self._config.report.evaluation == "none" or self._data.holdout is None or self._evaluator is None:
            return {}
        metrics = self._evaluator.evaluate(self._make_inference_model())
        self.log_record({"event": "evaluation", **position, **metrics})
        return metrics

    def draw_galleries(self, images: int) -> None:
        """Draw what the current networks make of the same latents and images as at every other time.

        Args:
            images: Images seen, for the files' names.
        """
        spec = self._data.train.index.spec
        if not has_galleries(spec):
            return
        has_holdout = self._data.holdout is not None
        images_shown = self._holdout if has_holdout else self._load_split(self._data.train, IMAGES_NEEDED)
        model = self._make_inference_model()
        for kind, gallery in draw_run_galleries(model, images_shown, spec, seed=_SEED, device=self._device).items():
            path = self._folder.path / "images" / f"{kind}-{images:09d}.png"
            gallery.save_picture(path)
            self._folder.log_image(path, images)

    def write_summary(self, outcome: Record, substituted: list[str]) -> Record:
        """Write the summary and the report page.

        Args:
            outcome: Status, images, steps and metrics of the run.
            substituted: Samples that could not be read and were replaced by others.

        Returns:
            The whole summary.
        """
        summary = {
            "run": self._config.run.name,
            **outcome,
            "precision": self._state.precision.name,
            "device": _device_name(self._device),
            "update": self._state.step.rule.name,
            "weights": "ema" if self._state.average is not None else "raw",
        }
        if substituted:
            summary["substituted"] = substituted
        self._folder.write_json("summary.json", summary)
        write_page(self._folder.path)
        self._folder.publish()
        return summary

    def read_finished_summary(self) -> Record | None:
        """Read the summary of a run that has finished before; None if it has not."""
        summary = self._folder.read_json("summary.json")
        return summary if summary and summary.get("status") == "finished" else None

    def close(self) -> None:
        """Release the terminal and the files."""
        if self._display is not None:
            self._display.close()
        self._folder.close()

    def _make_inference_model(self) -> InferenceModel:
        def make_untrained(seed: int) -> dict[str, torch.nn.Module]:
            return dict(build_networks(self._config, self._data.train.index.spec, seed)[0].named_children())

        return InferenceModel(self._state.inference_networks(), self._state.space, make_untrained)

    @functools.cached_property
    def _evaluator(self) -> ModelEvaluator | None:
        """What measures the run, made at the first evaluation; None where nothing can."""
        index = self._data.train.index
        megabytes = megabytes_in_memory(index, self._state.space)
        if index.spec.is_images and megabytes > self._config.data.memory_mb:
            self.say(f"Evaluation is skipped: it would hold {megabytes:,.0f} MB (data.memory_mb allows less).")
            return None
        evaluator = make_evaluator(
            index.spec,
            lambda: self._load_split(self._data.train),
            lambda: self._holdout,
            samples=self._config.report.evaluation_samples,
            seed=_SEED,
            native_from_unit=self._state.space.native_from_unit,
            device=self._device,
        )
        if evaluator is None:
            self.say("Evaluation is skipped: there are no metrics for points that are of no known mixture.")
        return evaluator

    @functools.cached_property
    def _holdout(self) -> LabelledArrays:
        assert self._data.holdout is not None
        return self._load_split(self._data.holdout)

    def _load_split(self, split: DataSplit, limit: int | None = None) -> LabelledArrays:
        return load_labelled_arrays(split.store, split.index, self._state.space, limit)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
