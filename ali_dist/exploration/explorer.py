"""What an explorer computes: everything that its page asks for, as JSON-able answers. It knows nothing of HTTP."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.batched import make_generator
from ali_dist.evaluation.interpolation import lerp_path
from ali_dist.exploration.directions import Components, LabelDirection, find_components, find_label_directions
from ali_dist.exploration.pictures import picture_url, read_picture
from ali_dist.exploration.pool import FEATURES, ImagePool
from ali_dist.inference.given_conditions import class_turns
from ali_dist.inference.trained_model import TrainedModel
from ali_dist.names import printable_name
from ali_dist.report.galleries import choose_path_function

NEIGHBORS = 8
"""Images of the data that are shown beside a picture."""
PRIOR_DRAWS = 1000
"""Draws of the prior whose components stand in for those of the data."""
_SEEDS = 2**31
LARGE, SMALL = 256, 96
"""Pixels of a side that pictures are enlarged to, about."""

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """What a picture is decoded from.

    Attributes:
        z: The latent, float32 [n_z].
        c: The condition, float32 [A]; None for an unconditional model.
    """

    z: Tensor
    c: Tensor | None


class Explorer:
    """A trained model, and what is known of its latent space. Its methods may be called from several threads.

    Pictures in answers are `data:` urls, latents and conditions lists of numbers.

    Args:
        model: The model, of images of 1 or 3 channels.
        pool: Images of the data, encoded; None where they cannot be read.

    Attributes:
        model: As given.
        pool: As given.
        components: The principal components of the encoder's means, over the pool or else over pictures that were
            decoded from draws of the prior.
        labels: What labels add to z, for an unconditional model of data that have some.
        usual_condition: The condition to begin with, float32 [A]: the first class, or the attributes that more than
            half of the pool have; None for an unconditional model.

    Raises:
        FloatingPointError: The model has diverged.
    """

    def __init__(self, model: TrainedModel, pool: ImagePool | None) -> None:
        self.model = model
        self.pool = pool
        self._lock = threading.Lock()
        mu = self._means_of_prior() if pool is None else pool.mu
        self.components: Components = find_components(mu)
        self.labels: tuple[LabelDirection, ...] = ()
        if pool is not None and pool.y is not None and model.condition == "none":
            self.labels = find_label_directions(pool.mu, pool.y, model.classes or model.attributes)
        self.usual_condition = self._choose_condition()

    def decode(self, point: Point) -> Answer:
        """Decode a point: its `image`."""
        return {"image": picture_url(self._decode(point.z[None], _row(point.c))[0], LARGE)}

    def draw(self) -> Answer:
        """Draw a `z` from the prior, and say by which `seed` `TrainedModel.sample` draws the same."""
        seed = secrets.randbelow(_SEEDS)
        z = torch.randn(1, self.model.latent_size, generator=make_generator(seed, "prior"))
        return {"z": z[0].tolist(), "seed": seed}

    def encode_picture(self, payload: bytes, c: Tensor | None) -> Answer:
        """Encode and reconstruct a picture that somebody gives, under a condition [A].

        Returns:
            `z`, the mean of q(z|x), and `c`; the picture as the model sees it, `image`, beside its `reconstruction`
            G(z); and the mean squared `error` between the two, of pixels from 0 to 1.

        Raises:
            InputError: It is no picture that can be used.
        """
        with self._lock:  # of large files one at a time is decoded
            x = torch.from_numpy(read_picture(payload, self.model.run.spec))[None]
        return self._show(x, c)

    def show_image(self, place: int | None) -> Answer:
        """Encode and reconstruct an image of the pool, by its place, or any: as `encode_picture`, and its `name`.

        Raises:
            InputError: There is no such image.
        """
        pool = self._require_pool()
        if place is None:
            place = secrets.randbelow(len(pool))
        if not 0 <= place < len(pool):
            raise InputError(f"place is {place}, but the images are numbered from 0 to {len(pool) - 1}.")
        c = None if pool.c is None else pool.c[place]
        return {**self._show(pool.x[place : place + 1], c), "name": self.name_image(pool, place)}

    def walk(self, first: Point, last: Point, steps: int, *, spherical: bool) -> Answer:
        """Decode a path between two points: `steps` `images`, ends included, as `TrainedModel.interpolate` does."""
        z = choose_path_function(spherical=spherical)(first.z[None], last.z[None], steps)[0]
        c = None if first.c is None or last.c is None else lerp_path(first.c[None], last.c[None], steps)[0]
        return {"images": [picture_url(x, SMALL) for x in self._decode(z, c)]}

    def neighbors(self, point: Point) -> Answer:
        """Find the images of the pool that are nearest to G(z), by the encoder's features.

        Returns:
            `neighbors`, the nearest first, each with its `place` in the pool, its `image`, its `name` and its
            `distance`: the root mean square of the differences of features.
        """
        pool = self._require_pool()
        x = self._decode(point.z[None], _row(point.c))
        with self._lock:
            features = self.model.tensors.encode(x, _row(point.c), features=FEATURES)
        distances, places = pool.nearest(features, NEIGHBORS)
        return {
            "neighbors": [
                {
                    "place": place,
                    "image": picture_url(self.as_seen(pool.x[place : place + 1])[0], SMALL),
                    "name": self.name_image(pool, place),
                    "distance": distance,
                }
                for distance, place in zip(distances, places, strict=True)
            ]
        }

    def as_seen(self, x: Tensor) -> Tensor:
        """Stored images [N, C, H, W] in [0, 1], as large as the model's own."""
        space = self.model.run.space
        return space.native_from_unit(space.unit_from_stored(x)).clamp(0, 1)

    def name_image(self, pool: ImagePool, place: int) -> str:
        """What an image is known by, and its class."""
        origin = pool.origins[place]
        words = [printable_name(origin)] if origin else []
        if pool.y is not None and pool.y.dim() == 1:
            number = int(pool.y[place])
            names = self.model.classes
            words.insert(0, printable_name(names[number]) if number < len(names) else f"class {number}")
        return ", ".join(words)

    def _show(self, x: Tensor, c: Tensor | None) -> Answer:
        """Encode and reconstruct one image as it is stored, [1, C, H, W]."""
        with self._lock:
            z = self.model.tensors.encode(x, _row(c))
        reconstruction = self._decode(z, _row(c))
        seen = self.as_seen(x)
        return {
            "z": z[0].tolist(),
            "c": None if c is None else c.tolist(),
            "image": picture_url(seen[0], LARGE),
            "reconstruction": picture_url(reconstruction[0], LARGE),
            "error": float((seen - reconstruction).square().mean()),
        }

    def _decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        with self._lock:
            return self.model.tensors.decode(z, c)

    def _means_of_prior(self) -> Tensor:
        run, tensors = self.model.run, self.model.tensors
        c: Tensor | None = None
        if self.model.condition == "classes":
            c = class_turns(run, PRIOR_DRAWS)
        elif self.model.condition == "attributes":
            c = torch.zeros(PRIOR_DRAWS, run.model.condition_size)
        return tensors.encode(tensors.sample(PRIOR_DRAWS, c), c)

    def _choose_condition(self) -> Tensor | None:
        size = self.model.run.model.condition_size
        if self.model.condition == "none":
            return None
        if self.model.condition == "classes":
            return torch.eye(size)[0]
        known = None if self.pool is None else self.pool.c
        return torch.zeros(size) if known is None else (known.mean(dim=0) > 0.5).float()

    def _require_pool(self) -> ImagePool:
        if self.pool is None:
            raise InputError("The data cannot be read here, so there are no images of theirs to show.")
        return self.pool


def _row(c: Tensor | None) -> Tensor | None:
    return None if c is None else c[None]
