"""The images of the data that an explorer knows: what the encoder makes of them, and which are near to a picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ali_dist.data.order import SampleRun
from ali_dist.data.shards.reader import ShardReader, load_origins, load_samples
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import make_generator
from ali_dist.evaluation.monitor import Advance
from ali_dist.inference.features import features_of_samples
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples
from ali_dist.report.nearest_images import nearest_rows
from ali_dist.runs.datasets import DataSplit

FEATURES = "mu+hidden"
"""What images are compared by."""
_MOST_BYTES = 256_000_000  # of images that are kept
_ROWS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class ImagePool:
    """Some images of a split, encoded.

    Attributes:
        split: Name of the split.
        total: Images of the whole split.
        x: The images as they are stored, [N, C, H, W].
        c: Their conditions float32 [N, A]; None for an unconditional model.
        y: Their labels, int64 [N] or float32 [N, A]; None where the data have none.
        origins: What the user knows each by, [N]; None for those that have no name.
        features: mu beside the encoder's last hidden layer, float32 [N, F].
        latent_size: Numbers n_z in a latent.
    """

    split: str
    total: int
    x: Tensor
    c: Tensor | None
    y: Tensor | None
    origins: tuple[str | None, ...]
    features: Tensor
    latent_size: int

    def __len__(self) -> int:
        return len(self.x)

    @property
    def mu(self) -> Tensor:
        """The means of q(z|x), float32 [N, n_z]."""
        return self.features[:, : self.latent_size]

    def some(self, most: int) -> ImagePool:
        """At most so many of the images, evenly spaced."""
        places = torch.linspace(0, len(self) - 1, min(most, len(self))).round().long()
        c, y = (None if part is None else part[places] for part in (self.c, self.y))
        origins = tuple(self.origins[place] for place in places.tolist())
        return dataclasses.replace(self, x=self.x[places], c=c, y=y, origins=origins, features=self.features[places])

    def nearest(self, features: Tensor, k: int) -> tuple[list[float], list[int]]:
        """Distances and places of the `k` images nearest to features [1, F], the nearest first."""
        distances, places = nearest_rows(features, self.features, k)
        return distances[0].tolist(), places[0].tolist()


def read_pool(
    run: LoadedRun, split: DataSplit, count: int, *, device: torch.device, advance: Advance | None = None
) -> ImagePool:
    """Read images that are drawn from a whole split, the same ones each time, and encode them.

    Args:
        run: The run of the model.
        split: The data.
        count: How many; all, where the split has fewer, and fewer where they would take more than 256 MB.
        device: Where the model is.
        advance: Called with the number of images that are done.

    Raises:
        InputError: The split has fewer than 2 images, an image is damaged, or labels that the model needs are missing.
        StorageError: The storage itself failed.
    """
    total = split.index.num_samples
    if total < 2:
        raise InputError(f"The split in {split.store.url} has {total} images, but at least 2 are needed.")
    count = max(2, min(count, total, _MOST_BYTES // split.index.decoded_bytes))
    chosen = torch.randperm(total, generator=make_generator(0, "explored images"))[:count].sort().values.numpy()
    reader = ShardReader(split.store, split.index)
    y = _read_labels(reader, split, chosen)
    c = conditions_for_samples(run, split, y)
    x, features = [], []
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        some = torch.from_numpy(load_samples(split.store, split.index, chosen[rows]))
        features.append(features_of_samples(run, FEATURES, some, None if c is None else c[rows], device=device))
        x.append(some)
        if advance is not None:
            advance(len(some))
    origins = tuple(load_origins(split.store, split.index, chosen))
    return ImagePool(split.name, total, torch.cat(x), c, y, origins, torch.cat(features), run.model.latent_size)


def _read_labels(reader: ShardReader, split: DataSplit, chosen: np.ndarray) -> Tensor | None:
    """Labels of samples by their ascending ids; None where the data have none."""
    starts = np.cumsum([0, *(shard.samples for shard in split.index.shards)])
    shards = np.searchsorted(starts, chosen, side="right") - 1
    runs = [
        SampleRun(shard, sample, sample + 1)
        for shard, sample in zip(shards.tolist(), (chosen - starts[shards]).tolist(), strict=True)
    ]
    labels = reader.read_labels(tuple(runs))
    return None if labels is None else torch.from_numpy(labels)
