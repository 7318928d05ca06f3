"""What rank 0 shows of a run: metric records, image grids, evaluations, the summary and the report page."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import torch
from torch import Tensor

from ali_dist.config import Config
from ali_dist.data.shards.reader import load_arrays
from ali_dist.evaluation import batched as inference
from ali_dist.evaluation.evaluators import ImageEvaluator, evaluate_mixture
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.interpolation import lerp_path
from ali_dist.model.build import build_networks
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.image_grids import save_conditions, save_interpolations, save_reconstructions, save_samples
from ali_dist.report.page import write_page
from ali_dist.report.terminal import TrainingProgressDisplay
from ali_dist.runs.datasets import DataSplit, RunData
from ali_dist.runs.run_writer import RunWriter
from ali_dist.runs.trackers import Record
from ali_dist.storage.base import Store
from ali_dist.training.resume import TrainingProgress
from ali_dist.training.state import TrainState

_GRID = 100  # samples in a grid
_PAIRS = 50  # reconstructions in a grid
_LINES, _STEPS = 8, 9  # interpolations in a grid, decoded steps of each
_POINTS = 2_500  # points in a mixture's figure
_SEED = 0  # of evaluation and pictures in every run: runs are compared, so judge and draws must not differ


class RunReporter:
    """Writes and shows; changes nothing in the training.

    Args:
        config: Of the run.
        inputs: Its data.
        players: The networks; their averages are shown where there are any.
        store: The run's folder.
        device: Where the networks are.
    """

    def __init__(
        self, config: Config, inputs: RunData, players: TrainState, store: Store, device: torch.device
    ) -> None:
        self._config, self._inputs, self._players = config, inputs, players
        self._device = device
        self._folder = RunWriter(store)
        self._progress: TrainingProgressDisplay | None = None

    def say(self, text: str) -> None:
        """One line for the user."""
        if self._progress is not None:
            self._progress.message(text)
        else:
            sys.stderr.write(f"{text}\n")  # the progress line is not there yet

    def begin(self, at: TrainingProgress) -> None:
        """Training starts, or goes on, from `at`."""
        config, players = self._config, self._players
        self._folder.forget_after(at.images)
        self._folder.write_json("config.json", config.to_mapping())
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in players.ali.named_children()}
        self.say(
            f"Training {config.run.name!r} on {config.data.url}: "
            + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            + f" parameters; {players.step.rule.name} update, {players.precision.name} on {self._device}."
        )
        self.say(f"Results go to {self._folder.store.url}.")
        if self._inputs.holdout is None:
            self.say(f"The data have no split {config.data.holdout!r}: evaluation is left out.")
        self._progress = TrainingProgressDisplay(config.run.images, start_images=at.images)

    def advance(self, images: int) -> None:
        """So many images have been seen; cheap."""
        if self._progress is not None:
            self._progress.update(images)

    def log(self, record: Record) -> None:
        """A line of training metrics."""
        self._folder.log_record(record)
        if self._progress is not None:
            self._progress.update(record["images"], record)

    def publish(self) -> None:
        """Bring what has been written to an s3:// run folder."""
        self._folder.publish()

    def evaluate(self, position: Record) -> dict[str, float]:
        """Metrics of the current networks on the holdout split; empty where none apply."""
        if self._config.report.evaluation == "none" or self._inputs.holdout is None:
            return {}
        samples = self._config.report.evaluation_samples
        model = self._model()
        mixture = self._inputs.train.index.extra.get("mixture")
        if mixture is not None:
            metrics = evaluate_mixture(
                model,
                self._holdout,
                means=torch.tensor(mixture["means"]),
                std=mixture["std"],
                samples=samples,
                seed=_SEED,
                device=self._device,
            )
        elif self._evaluator is not None:
            metrics = self._evaluator.evaluate(model)
        else:
            return {}
        self.log({"event": "evaluation", **position, **metrics})
        return metrics

    def gallery(self, images: int) -> None:
        """Grids of samples, reconstructions and interpolations, from the same z and images each time."""
        model = self._model()
        part = self._inputs.holdout or self._inputs.train
        mixture = part.index.extra.get("mixture")
        if mixture is not None:
            self._mixture_figure(model, mixture, images)
            return
        if len(part.index.shape) != 3 or part.index.shape[0] not in (1, 3):
            return
        shown = self._holdout if self._inputs.holdout else _load_split(part, self._players, _PAIRS + 2 * _LINES)
        order = torch.randperm(len(shown.x), generator=torch.Generator().manual_seed(_SEED))
        x, c = shown.x[order], inference.conditions_from_labels(model, shown.y)
        c = None if c is None else c[order]
        folder, when = self._folder.path / "images", f"{images:09d}"
        asked = None if c is None else inference.draw_rows(c, _GRID, _SEED)
        x_tilde = inference.sample_decoder(model, _GRID, _SEED, self._device, asked)
        save_samples(folder / f"samples-{when}.png", x_tilde)
        pairs, c_pairs = x[:_PAIRS], None if c is None else c[:_PAIRS]
        _, _, z_hat = inference.encode_batched(model, pairs, _SEED, self._device, c_pairs)
        x_rec = inference.decode_batched(model, z_hat, self._device, c_pairs)
        save_reconstructions(folder / f"reconstructions-{when}.png", pairs, x_rec)
        many = len(x) // 2 * 2
        lines = self._interpolations(model, x[-2 * _LINES :][:many], None if c is None else c[-2 * _LINES :][:many])
        save_interpolations(folder / f"interpolations-{when}.png", *lines)
        if c is not None:
            save_conditions(folder / f"conditions-{when}.png", *self._conditions(model, c))
        for path in sorted(folder.glob(f"*-{when}.png")):
            self._folder.log_image(path, images)

    def _conditions(self, model: InferenceModel, c: Tensor) -> tuple[Tensor, list[str]]:
        """The same z in every row: under each class, or with the usual attributes and one after the other turned over.

        `c` [N, A] are conditions of data. Gives rows [R, S, C, H, W] and what the S columns are.
        """
        index, size = self._inputs.train.index, model.condition_size
        if self._config.model.condition == "classes":
            columns, labels = torch.eye(size), list(index.classes)
        else:
            usual = (c.mean(0) > 0.5).float()
            columns = torch.cat([usual[None], (usual - torch.eye(size)).abs()])
            signs = ["-" if has else "+" for has in usual.bool().tolist()]
            labels = ["usual", *(sign + name for sign, name in zip(signs, index.attributes, strict=True))]
        z = torch.randn(_LINES, model.latent_size, generator=inference.make_generator(_SEED, "prior"))
        z_rows, c_rows = z.repeat_interleave(len(columns), dim=0), columns.repeat(_LINES, 1)
        rows = inference.decode_batched(model, z_rows, self._device, c_rows)
        return rows.unflatten(0, (_LINES, len(columns))), labels

    def _interpolations(self, model: InferenceModel, ends: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decoded straight lines (as in the paper) between neighbours of `ends` [2 L, ...], and the ends."""
        _, _, z = inference.encode_batched(model, ends, _SEED, self._device, c)
        z_lines = lerp_path(z[::2], z[1::2], _STEPS)
        c_lines = None if c is None else lerp_path(c[::2], c[1::2], _STEPS).flatten(0, 1)
        lines = inference.decode_batched(model, z_lines.flatten(0, 1), self._device, c_lines)
        return lines.unflatten(0, z_lines.shape[:2]), ends.unflatten(0, (-1, 2))

    def finish(self, outcome: Record, substituted: list[str]) -> Record:
        """Write the summary and the page that shows everything."""
        summary = {
            "run": self._config.run.name,
            **outcome,
            "precision": self._players.precision.name,
            "device": _device_name(self._device),
            "update": self._players.step.rule.name,
            "weights": "ema" if self._players.average is not None else "raw",
        }
        if substituted:
            summary["substituted"] = substituted
        self._folder.write_json("summary.json", summary)
        write_page(self._folder.path)
        self._folder.publish()
        return summary

    def finished(self) -> Record | None:
        """The summary of a run that has finished before; None otherwise."""
        summary = self._folder.read_json("summary.json")
        return summary if summary and summary.get("status") == "finished" else None

    def close(self) -> None:
        """Let go of the terminal and the files."""
        if self._progress is not None:
            self._progress.close()
        self._folder.close()

    def _model(self) -> InferenceModel:
        def fresh(seed: int) -> dict[str, torch.nn.Module]:
            return dict(build_networks(self._config, self._inputs.train.index.spec, seed)[0].named_children())

        return InferenceModel(self._players.inference_networks(), self._players.space, fresh)

    def _mixture_figure(self, model: InferenceModel, mixture: dict[str, Any], images: int) -> None:
        from ali_dist.report.mixture_figure import save_mixture_figure

        split = self._holdout
        assert split.y is not None
        x, c = split.x[:_POINTS], inference.conditions_from_labels(model, split.y[:_POINTS])
        _, _, z = inference.encode_batched(model, x, _SEED, self._device, c)
        path = self._folder.path / "images" / f"mixture-{images:09d}.png"
        save_mixture_figure(
            path,
            means=torch.tensor(mixture["means"]),
            std=mixture["std"],
            samples=inference.sample_decoder(
                model, _POINTS, _SEED, self._device, None if c is None else inference.draw_rows(c, _POINTS, _SEED)
            ),
            x=x,
            x_rec=inference.decode_batched(model, z, self._device, c),
            z=z,
            y=split.y[:_POINTS],
        )
        self._folder.log_image(path, images)

    @functools.cached_property
    def _holdout(self) -> LabelledArrays:
        assert self._inputs.holdout is not None
        return _load_split(self._inputs.holdout, self._players)

    @functools.cached_property
    def _evaluator(self) -> ImageEvaluator | None:
        index = self._inputs.train.index
        megabytes = 4e-6 * index.num_samples * math.prod(self._players.space.model_shape)
        if len(index.shape) != 3 or megabytes > self._config.data.memory_mb:
            self.say(f"Evaluation is skipped: it would hold {megabytes:,.0f} MB (data.memory_mb allows less).")
            return None
        return ImageEvaluator(
            _load_split(self._inputs.train, self._players),
            self._holdout,
            samples=self._config.report.evaluation_samples,
            seed=_SEED,
            native=self._players.space.native_from_unit,
            device=self._device,
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _load_split(part: DataSplit, players: TrainState, limit: int | None = None) -> LabelledArrays:
    """A whole split at the training size, in memory."""
    x, y = load_arrays(part.store, part.index)
    names = part.index.classes or part.index.attributes
    return LabelledArrays(players.space.unit_from_stored(x[:limit]), None if y is None else y[:limit], names)
