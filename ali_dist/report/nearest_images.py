"""Whether a decoder memorizes: its samples beside the training images that are nearest to them.

Distances are root mean squares of the differences of pixels in [0, 1], after images are reduced to at most
`SIDE` pixels a side, so that a shift by less than a pixel of that size counts little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.report.image_grids import save_neighbors

SIDE = 16
NEIGHBORS = 4
ROWS = 20
"""Samples that are shown: those that lie nearest to a training image."""
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class NearestGallery:
    """Samples beside their nearest training images.

    Attributes:
        x_tilde: Decoder samples [R, C, H, W], the one with the nearest neighbor first.
        neighbors: The training images [R, K, C, H, W] that are nearest to each, the nearest first.
        text: What the distances are.
    """

    x_tilde: Tensor
    neighbors: Tensor
    text: str

    def save_picture(self, path: Path) -> None:
        """Write a grid: in each row, two samples, each with its neighbors behind it."""
        save_neighbors(path, self.x_tilde, self.neighbors, self.text)

    def named_images(self) -> dict[str, Tensor]:
        """The samples by their number, and their neighbors by sample and rank."""
        samples = {f"{i:05d}": image for i, image in enumerate(self.x_tilde)}
        return samples | {f"{i:05d}-{j}": image for i, row in enumerate(self.neighbors) for j, image in enumerate(row)}


@dataclass(frozen=True, slots=True)
class NearestDistances:
    """Median distances to the nearest training image.

    Attributes:
        samples: Of decoder samples.
        holdout: Of images that were not trained on; None where there are none.
    """

    samples: float
    holdout: float | None

    def to_record(self) -> dict[str, float]:
        """The two by their names; `holdout` is missing where there are none."""
        return {"samples": self.samples} | ({} if self.holdout is None else {"holdout": self.holdout})


class ReducedImages:
    """Training images, reduced to what distances are measured by.

    Args:
        pieces: Functions that load images [n, C, H, W] in [0, 1]; each is called once, and its images are let go.
        count: How many images there are in all, at least 1.
    """

    def __init__(self, pieces: Iterable[Callable[[], Tensor]], count: int) -> None:
        self._features = torch.empty(0)
        start = 0
        for load in pieces:
            features = reduce_images(load()).half()
            if start == 0:
                self._features = torch.empty(count, features.shape[1], dtype=torch.float16)
            self._features[start : start + len(features)] = features
            start += len(features)

    def nearest(self, images: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Distances float32 [M, k] of `images` [M, C, H, W] to the nearest training images, and their places [M, k]."""
        return nearest_rows(reduce_images(images), self._features, k)


def nearest_rows(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The rows that are nearest to queries, by the root mean square of the differences of their entries.

    Args:
        queries: Features [M, F].
        rows: Features [N, F] that are searched, in any precision.
        k: How many are wanted of each; at most N are given.

    Returns:
        Distances float32 [M, k], the nearest first, and the places int64 [M, k] of these rows.
    """
    queries = queries.float()
    distances = torch.full((len(queries), 0), 0.0)
    places = torch.full((len(queries), 0), 0, dtype=torch.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE].float()
        distances = torch.cat([distances, torch.cdist(queries, some)], dim=1)
        places = torch.cat([places, torch.arange(start, start + len(some)).expand(len(queries), -1)], dim=1)
        distances, kept = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
        places = places.gather(1, kept)
    # Once more without the products that make the search fast, which leave noise in place of 0 for a copy.
    differences = rows[places].float() - queries[:, None]
    exact, order = differences.square().mean(dim=2).sqrt().sort(dim=1, stable=True)
    return exact, places.gather(1, order)


def reduce_images(images: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1] as their pixels [N, F], averaged to at most `SIDE` a side."""
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images.float(), (min(SIDE, height), min(SIDE, width))).flatten(1)


def draw_nearest(
    x_tilde: Tensor,
    holdout: Tensor | None,
    reduced: ReducedImages,
    load: Callable[[Tensor], Tensor],
    *,
    compared: int,
    total: int,
) -> tuple[NearestGallery, NearestDistances]:
    """Find the nearest training images of decoder samples.

    Args:
        x_tilde: Decoder samples [N, C, H, W].
        holdout: Images [M, C, H, W] that were not trained on, for comparison; None where there are none.
        reduced: The training images that are looked at.
        load: Gives some of them [n, C, H, W], by their places int64 [n].
        compared: How many of them there are.
        total: How many training images there are.
    """
    distances, places = reduced.nearest(x_tilde, min(NEIGHBORS, compared))
    order = distances[:, 0].argsort(stable=True)[:ROWS]
    found, inverse = places[order].flatten().unique(return_inverse=True)
    neighbors = load(found)[inverse].unflatten(0, (len(order), -1))
    of_holdout = None if holdout is None else float(reduced.nearest(holdout, 1)[0].median())
    medians = NearestDistances(float(distances[:, 0].median()), of_holdout)
    return NearestGallery(x_tilde[order], neighbors, _describe(medians, compared, total)), medians


def _describe(medians: NearestDistances, compared: int, total: int) -> str:
    among = f"{compared:,}" if compared == total else f"{compared:,} of the {total:,}"
    beside = "" if medians.holdout is None else f", holdout images {medians.holdout:.3f}"
    return (
        f"Median distance to the nearest of {among} training images: samples {medians.samples:.3f}{beside}. "
        f"The {ROWS} nearest samples, each with its neighbors:"
    )
