"""Whose updates the floor bench counts and measures: presets on data of their shape, of which no sample is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.shards.index import Index
from ali_dist.model.ali import ALI
from ali_dist.model.data_space import DataSpace
from ali_dist.runs.image_sizes import sizes_for_images
from ali_dist.training.step import TrainBatch
from tests.helpers.runs import index_without_shards

_PICTURES = 20_000  # of a user, for the preset `images`: enough not to be augmented


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorCase:
    """One preset.

    Attributes:
        preset: Its name.
        shape: Of a stored sample.
        attributes: How many attributes the data have.
        sized: Whether what the preset leaves open follows from the pictures.
    """

    preset: str
    shape: tuple[int, ...]
    attributes: int = 0
    sized: bool = False


CASES = {
    "cifar10": FloorCase(preset="cifar10", shape=(3, 32, 32)),
    "svhn": FloorCase(preset="svhn", shape=(3, 32, 32)),
    "celeba": FloorCase(preset="celeba", shape=(3, 64, 64)),
    "celeba-conditional": FloorCase(preset="celeba-conditional", shape=(3, 64, 64), attributes=40),
    "imagenet64": FloorCase(preset="imagenet64", shape=(3, 64, 64)),
    "digits": FloorCase(preset="digits", shape=(1, 8, 8)),
    "shapes": FloorCase(preset="shapes", shape=(3, 32, 32)),
    "images-32": FloorCase(preset="images", shape=(3, 32, 32), sized=True),
    "images-64": FloorCase(preset="images", shape=(3, 64, 64), sized=True),
    "mixture": FloorCase(preset="mixture", shape=(2,)),
}
"""By the name of the row; `shapes` has the networks `rgb32`, and `images-32` is the preset `images` at 32 pixels."""


def configure(case: FloorCase, *, batch: int | None = None, width: float | None = None, **changes: Any) -> Config:
    """The config of a run, but with nothing that needs data.

    Args:
        case: Whose.
        batch: Images of an update; None: as in the preset.
        width: Factor on the channels of hidden layers; None: as in the preset.
        changes: Further settings, with `__` for the dot.
    """
    sized = sizes_for_images(case.shape[1], _PICTURES) if case.sized else {}
    settings: dict[str, Any] = {
        "model.output_bias_from_data": False,
        "optim.eps_inside": False,  # as after its first 16,000 updates: no update can be replayed until then
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    if batch is not None:
        settings |= {"data.global_batch_size": batch, "run.images": batch}
    if width is not None:
        settings["model.width"] = width
    return from_mapping(load_preset(case.preset), sized, settings)


def index_of(case: FloorCase) -> Index:
    """An index of no samples."""
    names = tuple(f"attribute {number}" for number in range(case.attributes))
    index = index_without_shards(case.shape, attributes=names)
    return index if len(case.shape) == 3 else replace(index, dtype="float32")


def draw_batch(config: Config, ali: ALI, space: DataSpace, device: torch.device) -> TrainBatch:
    """Random inputs of one update; on the meta device they have shapes and no numbers."""
    rows = config.data.global_batch_size
    x = torch.rand(rows, *space.model_shape, device=device)
    z, epsilon = torch.randn(2, rows, config.model.latent_size, device=device)
    embedding = ali.embedding
    c = torch.rand(rows, embedding.in_features, device=device) if isinstance(embedding, torch.nn.Linear) else None
    return TrainBatch(x, z, epsilon, c)
