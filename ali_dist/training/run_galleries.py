"""The pictures that a run draws of itself, and the few samples of its data that they need; used by rank 0."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.data.shards.reader import load_labels, load_samples
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.split_loading import choose_samples, load_rows
from ali_dist.model.ali import ALI
from ali_dist.model.data_space import DataSpace, condition_vectors
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.galleries import IMAGES_NEEDED, choose_shown, draw_run_galleries
from ali_dist.report.gallery_layouts import Gallery
from ali_dist.report.latent_map import LATENTS_SHOWN, LatentMap, draw_latent_map
from ali_dist.report.nearest_images import NearestDistances, NearestGallery, ReducedImages, draw_nearest
from ali_dist.runs.datasets import RunData
from ali_dist.training.distributions import measure_distributions
from ali_dist.training.run_evaluation import SEED

_LATENT_VALUES = {"cpu": 2_000_000, "cuda": 20_000_000}  # of a latent map's images: encoding them takes a few seconds
_NEIGHBOR_VALUES = 30_000_000  # of the training images that samples are compared with, read once
_MOST_COMPARED = 10_000
_MOST_MEASURED = 256  # images whose latents and logits histograms show
_LEAST = 100  # images of either, however large they are
_BLOCK = 25  # training images that are read at once: a request each, where they are in an object store
_AT_ONCE = 500


class RunGalleries:
    """Draws what the networks make of the same latents and images at every time; what it reads, it reads once.

    Args:
        data: The run's splits.
        space: The ranges that the networks work in.
        device: Where the networks are.
    """

    def __init__(self, data: RunData, space: DataSpace, device: torch.device) -> None:
        self._data = data
        self._spec = data.train.index.spec
        self._space = space
        self._device = device

    def draw(self, model: InferenceModel) -> dict[str, Gallery]:
        """Samples, reconstructions and what else there is for such data; see `draw_run_galleries`."""
        data, labels = self._shown
        return draw_run_galleries(model, data, self._spec, seed=SEED, device=self._device, labels=labels)

    def draw_latents(self, model: InferenceModel) -> LatentMap | None:
        """The map of holdout images in latent space; None for points, whose figure has it, and for a single image."""
        data = self._mapped
        return None if data is None else draw_latent_map(model, data, self._spec, device=self._device)

    def draw_nearest(self, x_tilde: Tensor) -> tuple[NearestGallery, NearestDistances]:
        """Decoder samples [N, C, H, W] beside the training images that are nearest to them.

        Raises:
            InputError: A training image is damaged.
        """
        train = self._data.train
        holdout = None if self._data.holdout is None else self._shown[0].x

        def load(places: Tensor) -> Tensor:
            return self._load_training_images(self._compared[places.numpy()])

        return draw_nearest(
            x_tilde,
            holdout,
            self._reduced,
            load,
            compared=len(self._compared),
            total=train.index.num_samples,
        )

    def measure_distributions(self, ali: ALI, game: str, *, packing: int) -> dict[str, NDArray[np.float32]]:
        """How latents and D's logits are spread over the same images and latents at every time."""
        data = self._measured
        count = len(data.x) // packing * packing
        if not count:  # not a single pack
            return {}
        device = self._device
        generator = torch.Generator().manual_seed(SEED)
        latent_size = ali.encoder.latent_size
        assert isinstance(latent_size, int)
        z, epsilon = (torch.randn(count, latent_size, generator=generator).to(device) for _ in range(2))
        c = None
        if isinstance(ali.embedding, torch.nn.Linear) and data.y is not None:
            c = condition_vectors(data.y[:count], ali.embedding.in_features).to(device)
        x = self._space.model_from_unit(data.x[:count].to(device))
        return measure_distributions(ali, game, x, z, epsilon, c)

    @functools.cached_property
    def _measured(self) -> LabelledArrays:
        """The images that distributions are measured on."""
        split = self._data.holdout or self._data.train
        count = min(split.index.num_samples, _MOST_MEASURED, self._images_of(_LATENT_VALUES["cpu"]))
        return load_rows(
            split.store, split.index, self._space, choose_samples(split.index.num_samples, count, "distributions")
        )

    @functools.cached_property
    def _shown(self) -> tuple[LabelledArrays, Tensor | None]:
        """The samples that galleries show, and the labels of all that they are from; nothing else is read."""
        split = self._data.holdout or self._data.train
        count = split.index.num_samples
        if self._data.holdout is None:
            count = min(count, IMAGES_NEEDED)
        shown = choose_shown(split.index.spec, count, seed=SEED)
        data = load_rows(split.store, split.index, self._space, shown.numpy())
        labels = load_labels(split.store, split.index)
        return data, None if labels is None else torch.from_numpy(labels[:count])

    @functools.cached_property
    def _mapped(self) -> LabelledArrays | None:
        """The images of the latent map, with their labels."""
        split = self._data.holdout or self._data.train
        count = min(
            split.index.num_samples,
            LATENTS_SHOWN,
            self._images_of(_LATENT_VALUES.get(self._device.type, _LATENT_VALUES["cpu"])),
        )
        if self._spec.mixture is not None or count < 2:
            return None
        ids = choose_samples(split.index.num_samples, count, "latent map")
        return load_rows(split.store, split.index, self._space, ids)

    @functools.cached_property
    def _compared(self) -> NDArray[np.int64]:
        """Ids of the training images that samples are compared with, ascending: all, or blocks from everywhere."""
        total = self._data.train.index.num_samples
        count = min(total, _MOST_COMPARED, self._images_of(_NEIGHBOR_VALUES))
        return choose_blocks(total, count, _BLOCK)

    @functools.cached_property
    def _reduced(self) -> ReducedImages:
        ids = self._compared

        def load_later(rows: NDArray[np.int64]) -> Callable[[], Tensor]:
            return lambda: self._load_training_images(rows)

        parts = np.split(ids, range(_AT_ONCE, len(ids), _AT_ONCE))
        return ReducedImages(map(load_later, parts), len(ids))

    def _load_training_images(self, ids: NDArray[np.int64]) -> Tensor:
        """Training images [n, C, H, W] without their labels; `ids` ascend."""
        train = self._data.train
        return self._space.unit_from_stored(torch.from_numpy(load_samples(train.store, train.index, ids)))

    def _images_of(self, values: int) -> int:
        """How many images have so many values at the size the networks work at."""
        return max(_LEAST, values // math.prod(self._space.model_shape))


def choose_blocks(total: int, count: int, block: int) -> NDArray[np.int64]:
    """Choose about `count` of `total` ids, always the same ones: blocks of neighbors, evenly spread, ascending.

    Returns:
        All ids where `count` is all of them; else at least one block, and no more than `count` and one block.
    """
    if count >= total:
        return np.arange(total)
    blocks, wanted = math.ceil(total / block), math.ceil(count / block)
    chosen = np.arange(wanted) * blocks // wanted
    ids = (chosen[:, None] * block + np.arange(block)).ravel()
    return ids[ids < total]
