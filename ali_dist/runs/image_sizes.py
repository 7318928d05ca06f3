"""What follows from the pictures themselves in presets with `sized_by: images`: a setting for everything left open.

The rules are stated in `sizes_for_images`. What the user gives is kept, and what follows from it follows (a larger
batch changes the length's number of updates, and nothing else).
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from ali_dist.config import Config, StorageConfig
from ali_dist.config.loading import flatten_mapping, from_mapping, parse_setting
from ali_dist.config.wording import format_count
from ali_dist.data.preparation.advice import list_splits
from ali_dist.data.shards.index import Index
from ali_dist.errors import InputError
from ali_dist.runs.datasets import open_run_data, open_run_store, open_training_index, open_url
from ali_dist.storage.base import MissingObject

Settings = dict[str, Any]

_PASSES = 100  # over the pictures
_LENGTHS = (256_000, 10_000_000)  # images of the shortest and of the longest run
_LEAST_PICTURES = 2  # batch norm compares the pictures of a batch
_FEW_PICTURES = 5_000
_PENALTY_AT_32 = 2.0


def sizes_for_images(side: int, pictures: int, *, length: int | None = None, batch: int | None = None) -> Settings:
    """Settings for pictures of a side, by dotted name.

    - batch: 8 in runs of less than 300,000 images, 16 up to 500,000, 32 up to 2 million, then 64; from 128 px on at
      most 16. With equally many images, half the batch is twice the updates, and that is what short runs lack. Never
      more than there are pictures.
    - latent size: 64 up to 32 px, then 128.
    - warm-up: 100 updates, at most a twentieth of the run.
    - learning rates: D's is 7e-4 up to 32 px, then falling with the side, to 1.7e-4 at 256; E and G have twice that,
      which brought samples closer to the pictures (the table in docs/own-images.md).
    - penalty: 2 at 32 px, proportional to the number of pixels, over which a gradient of a given size per pixel adds
      up; 128 at 256 px, where arXiv 2501.05441 takes 150.
    - length: 100 passes, at least 256,000 images and at most 10 million.
    - average: a half-life of a twentieth of the run, at most half a million images (as there).
    - augmentation: color and translation of what D sees (arXiv 2006.10738) for fewer than 5,000 pictures.

    Args:
        side: In pixels, at which the networks work.
        pictures: Of the training split.
        length: Images of the run, where the user says it.
        batch: Images of an update, where the user says it.
    """
    images = length or min(max(_PASSES * pictures, _LENGTHS[0]), _LENGTHS[1])
    penalty = _PENALTY_AT_32 * (side / 32) ** 2
    rate = 7e-4 * min(1.0, (32 / side) ** (2 / 3))
    batch = batch or min(_batch_for(images), 16 if side > 64 else 64, pictures)
    settings: Settings = {
        "data.global_batch_size": batch,
        "model.latent_size": 64 if side <= 32 else 128,
        "objective.r1": penalty,
        "objective.r2": penalty,
        "optim.lr_d": float(f"{rate:.1e}"),
        "optim.lr_g": float(f"{2 * rate:.1e}"),
        "optim.warmup": min(100.0 * batch, images / 20),
        "optim.ema_half_life": min(images / 20, 500_000.0),
        "run.images": images,
        **{f"report.{name}": max(batch, images // times) for name, times in _REPORTS.items()},
    }
    if pictures < _FEW_PICTURES:
        settings["objective.augment"] = "color,translation"
    return settings


def _batch_for(images: int) -> int:
    return next((batch for batch, below in _BATCHES if images < below), 64)


_BATCHES = ((8, 300_000), (16, 500_000), (32, 2_000_000))
"""Batches of runs with less than so many images."""


_REPORTS = {"log_every": 200, "gallery_every": 20, "checkpoint_every": 20}
"""How often in a run something is written, by setting of `report`."""


def settings_from_data(preset: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Settings, str]:
    """What a preset that is sized by its images leaves to the training split, read from its index.

    A run that is there already keeps what it was started with: rules may have changed since, and so may the data.

    Args:
        preset: Its settings, by dotted name, `run.name` among them.
        given: The user's, likewise.

    Returns:
        The settings, and one sentence about them.

    Raises:
        InputError: There are no such data, they are no pictures, or no networks are of their size.
    """
    # The user's settings may go together only with those that follow: those that decide are read one by one.
    config = from_mapping({**preset, **{key: value for key, value in given.items() if key in _PLACES}})
    length, batch = (parse_setting(key, given[key]) if key in given else None for key in _GIVEN_SIZES)
    index = _open_index(config, given)
    if len(index.shape) != 3:
        raise InputError(
            f"The preset is for pictures, but the data at {config.data.url} have samples of shape {list(index.shape)}: "
            "choose another data.url or --preset."
        )
    if index.num_samples < _LEAST_PICTURES:
        raise InputError(
            f"The split {config.data.split!r} of {config.data.url} holds {format_count(index.num_samples, 'picture')}, "
            f"but training needs at least {_LEAST_PICTURES}, and hundreds to learn anything: add pictures, and prepare "
            f"them again."
        )
    from ali_dist.model.build import find_architecture  # loads torch, which `check_shrink` does without

    find_architecture(config, index.spec)  # refuses sizes that there are no networks for
    side = config.data.image_size or index.shape[1]
    sizes = sizes_for_images(side, index.num_samples, length=length, batch=batch)
    earlier = _earlier_settings(config)
    follows = {**sizes, **_switches(earlier)}
    settings = {key: earlier.get(key, value) for key, value in follows.items() if key not in given}
    chosen = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
    )
    if earlier:
        return settings, f"As the run {config.run.name!r} was started with: {chosen}."
    return settings, f"Chosen by the number and size of the pictures: {chosen}."


_PLACES = (
    *("data.url", "data.split", "data.holdout", "data.image_size", "model.architecture", "model.depth"),
    *("run.dir", "run.name"),
    *(f"storage.{field.name}" for field in dataclasses.fields(StorageConfig)),
)
_GIVEN_SIZES = ("run.images", "data.global_batch_size")


def _open_index(config: Config, given: Mapping[str, Any]) -> Index:
    try:
        return open_run_data(config).train.index
    except InputError as error:
        if "data.url" in given or list_splits(open_url(config.data.url, config.storage)):
            raise
        raise InputError(
            f"There are no pictures at {config.data.url}: write yours with `python -m ali_dist.prepare folder "
            f"{shlex.quote(config.data.url)} --from PICTURES --size 64`, or give --data.url."
        ) from error


def check_shrink(config: Config, preset: str, asked: Collection[str]) -> None:
    """Refuse to shrink images by more than 2 because a preset for other data says so.

    Args:
        config: The config of the run.
        preset: Name of the preset, for the message.
        asked: Names of the settings that the user has given: whoever gives `data.image_size` means it.

    Raises:
        InputError: The data are there, and more than half of each side would be lost.
    """
    side = config.data.image_size
    if side is None or "data.image_size" in asked:
        return
    try:
        shape = open_training_index(config).shape
    except InputError:
        return  # whoever opens the data to use them says what is wrong with them
    if len(shape) == 3 and max(shape[1:]) > 2 * side:
        height, width = shape[1:]
        url = shlex.quote(config.data.url)
        raise InputError(
            f"The images in {config.data.url} have {height}x{width} pixels, but preset {preset!r} works at "
            f"{side}x{side}: train at their own size with `python -m ali_dist.train --preset images --data.url {url}`, "
            f"or give --data.image_size {side} to have them shrunk."
        )


def _earlier_settings(config: Config) -> Settings:
    """What the run of this name was started with; empty if there is none."""
    try:
        mapping = json.loads(open_run_store(config).get("config.json"))
    except (MissingObject, ValueError):
        return {}
    return dict(flatten_mapping(mapping)) if isinstance(mapping, dict) else {}


def _switches(earlier: Settings) -> Settings:
    """What the rules leave out at other numbers of pictures."""
    return {"objective.augment": earlier["objective.augment"]} if "objective.augment" in earlier else {}
