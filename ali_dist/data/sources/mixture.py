"""The mixtures of Gaussians of the GAN literature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.sources.base import SourceSplit, samples_from_arrays
from ali_dist.errors import InputError


def mixture_means(layout: Literal["grid", "ring"]) -> tuple[NDArray[np.float64], float]:
    """The means [K, 2] and the standard deviation of a mixture's components.

    A grid has 25 components on {-4, -2, 0, 2, 4}^2 with deviation 0.05, a ring 8 on the unit circle with 0.01.

    Raises:
        InputError: There is no such layout.
    """
    if layout == "grid":
        side = np.arange(-4.0, 5.0, 2.0)
        return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2), 0.05
    if layout == "ring":
        angle = 2 * np.pi * np.arange(8) / 8
        return np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.01
    raise InputError(f"The mixture's layout is {layout!r}, but must be 'grid' or 'ring'.")


def mixture_splits(layout: Literal["grid", "ring"] = "grid", samples: int = 100_000) -> Iterator[SourceSplit]:
    """Give float32 [2] with the component as the class, and `means` and `std` in the index's extra.

    Args:
        layout: See `mixture_means`.
        samples: Points to train on; a tenth as many more are for testing.

    Raises:
        InputError: Fewer than 10 samples are asked for, or there is no such layout.
    """
    means, std = mixture_means(layout)
    if samples < 10:
        raise InputError(f"The mixture is to have {samples} samples, but must have at least 10.")
    for seed, (name, count) in enumerate((("train", samples), ("test", samples // 10))):
        rng = np.random.default_rng(seed)
        component = rng.integers(len(means), size=count)
        x = (means[component] + std * rng.standard_normal((count, 2))).astype(np.float32)
        yield SourceSplit(
            name=name,
            num_samples=count,
            shape=(2,),
            dtype="float32",
            select_samples=samples_from_arrays(x, component, f"Point of {name}"),
            settings={"name": f"mixture-{layout}", "samples": samples},
            classes=tuple(str(k) for k in range(len(means))),
            extra={"mixture": {"means": means.tolist(), "std": std}},
            is_shuffled=True,
        )
