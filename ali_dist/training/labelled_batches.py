"""The few samples whose class a discriminator with K + 1 classes may see, as endless batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ali_dist.config import Config
from ali_dist.data.shards.reader import load_labels, load_samples
from ali_dist.errors import InputError
from ali_dist.runs.datasets import DataSplit

_ORDER, _DRAW, _SHIFT = 0x0D, 0xDA, 0x5F  # purposes of random numbers


def labelled_ids(split: DataSplit, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Ascending ids and classes of the `data.labelled` samples that count as labelled, equally many of each class.

    Raises:
        InputError: The data have no classes, or too few samples of one.
    """
    labels = load_labels(split.store, split.index)
    count = config.data.labelled
    if labels is None or labels.ndim != 1:
        raise InputError(
            f"objective.supervised is {config.objective.supervised:g}, but the samples of {split.store.url} have no "
            f"class labels: set it to 0, or give data with classes."
        )
    if count is None:
        return np.arange(len(labels)), labels
    classes, sizes = np.unique(labels, return_counts=True)
    if count % len(classes) or count // len(classes) > sizes.min():
        raise InputError(
            f"data.labelled is {count}, but must be a multiple of the {len(classes)} classes, up to "
            f"{int(sizes.min()) * len(classes)}: the rarest class has {int(sizes.min())} samples."
        )
    rng = np.random.default_rng([_DRAW, config.data.labelled_seed])
    per_class = count // len(classes)
    ids_by_class = [rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in classes]
    ids = np.sort(np.concatenate(ids_by_class))
    return ids, labels[ids]


class LabelledBatches:
    """Batches of labelled samples, as large as the global batch: shuffled anew each time all have been used.

    A pure function of (seed, update): nothing of it is in a checkpoint, and world size does not change it.

    Args:
        split: The training split.
        config: The config of the run.
        rows: This rank's rows of a global batch.
        device: Where batches are wanted.

    Raises:
        InputError: See `labelled_ids`.
    """

    def __init__(self, split: DataSplit, config: Config, rows: slice, device: torch.device) -> None:
        ids, classes = labelled_ids(split, config)
        self._x = torch.from_numpy(load_samples(split.store, split.index, ids)).to(device)
        self._y = torch.from_numpy(classes.astype(np.int64)).to(device)
        self._seed = config.run.seed
        self._global_batch_size = config.data.global_batch_size
        self._rows = rows
        self._shift = config.data.labelled_shift
        if self._shift and self._x.dim() != 4:
            raise InputError(
                f"data.labelled_shift is {self._shift}, but samples of shape {list(self._x.shape[1:])} are no images: "
                "set it to 0."
            )

    def at_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Samples as stored [b, ...] and classes int64 [b] of update `step`, this rank's."""
        count = len(self._y)
        positions = np.arange(self._rows.start, self._rows.stop) + step * self._global_batch_size
        turns, places = np.divmod(positions, count)
        rows = [self._permutation(int(turn), count)[places[turns == turn]] for turn in np.unique(turns)]
        chosen = torch.from_numpy(np.concatenate(rows)).to(self._y.device)
        return self._shift_images(self._x[chosen], step), self._y[chosen]

    def _shift_images(self, x: Tensor, step: int) -> Tensor:
        """Each image moved by up to `data.labelled_shift` pixels along both sides; its border fills what that bares."""
        if not self._shift:
            return x
        rng = np.random.default_rng([_SHIFT, self._seed, step])
        offsets = rng.integers(-self._shift, self._shift + 1, (2, self._global_batch_size, 1))[:, self._rows]
        ys, xs = (
            torch.from_numpy((np.arange(side) + offset).clip(0, side - 1)).to(x.device)
            for side, offset in zip(x.shape[2:], offsets, strict=True)
        )
        places = torch.arange(len(x), device=x.device)[:, None, None]
        return x[places, :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)

    def _permutation(self, turn: int, count: int) -> np.ndarray:
        return np.random.default_rng([_ORDER, self._seed, turn]).permutation(count)
