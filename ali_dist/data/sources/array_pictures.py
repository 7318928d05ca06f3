"""Pictures that a source has as one array, which are brought to a side that networks exist for.

28 pixels, as MNIST and all that is made like it have, are no side of any network here: they get a black frame of 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.codec import channels_first
from ali_dist.data.shards.labels import Label
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.sources.base import SampleNumbers, ShardSamples
from ali_dist.errors import InputError

Pictures = NDArray[np.uint8]  # [n, C, H, W]
_FRAMED = {28: 32}  # sides that get a black frame, and with it


@dataclass(frozen=True, slots=True)
class SideFit:
    """Makes squares of a side.

    Attributes:
        size: Pixels of a side to which the middle square is resized (smoothed). None: the square is kept as it is, but
            for 28 pixels, which get a black frame of 2 and so become 32.
    """

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"--size is {self.size}, but must be at least 1.")

    def side_of(self, height: int, width: int) -> int:
        """The side of what is made of pictures of a size."""
        side = min(height, width)
        return self.size or _FRAMED.get(side, side)

    def shape_of(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, side, side) of what is made of pictures of a shape (C, H, W)."""
        side = self.side_of(height, width)
        return channels, side, side

    def __call__(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Make uint8 [C, side, side] of uint8 [C, H, W]."""
        _, height, width = x.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = x[:, top : top + side, left : left + side]
        wanted = self.side_of(height, width)
        if wanted == side:
            return square
        if self.size is None:
            frame = (wanted - side) // 2
            return np.pad(square, ((0, 0), (frame, frame), (frame, frame)))
        return _resize(square, wanted)


def _resize(x: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    from PIL import Image as Images

    image = Images.fromarray(np.ascontiguousarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0)))
    return channels_first(image.resize((side, side), Images.Resampling.LANCZOS))


def require_same_shape(shapes: Mapping[str, tuple[int, int, int]]) -> None:
    """Refuse splits that no one model could take.

    Args:
        shapes: The shape (C, H, W) of a sample by split, as it would be written.

    Raises:
        InputError: They differ.
    """
    (first, shape), *others = shapes.items()
    for name, other in others:
        if other == shape:
            continue
        texts = (f"{c} {'channel' if c == 1 else 'channels'} of {h}x{w} pixels" for c, h, w in (shape, other))
        has_same_channels = other[0] == shape[0]
        advice = "give --size, to which all are resized" if has_same_channels else "store all in gray, or all in RGB"
        raise InputError(
            f"The pictures of {first} have {next(texts)} and those of {name} {next(texts)}, but all splits must be "
            f"alike: {advice}, or choose one with --splits."
        )


def describe_cut(shapes: Iterable[tuple[int, int, int]]) -> list[str]:
    """Sentences on what pictures of shapes (C, H, W) lose to be square."""
    sizes = sorted({(height, width) for _, height, width in shapes if height != width})
    return [f"Pictures of {h}x{w} are cut to the square in their middle, {min(h, w)}x{min(h, w)}." for h, w in sizes]


@dataclass(frozen=True, slots=True)
class ArrayPictures:
    """Pictures of one shard, uint8 [n, C, H, W], with their labels and names."""

    x: Pictures
    labels: tuple[Label | None, ...]
    origins: tuple[str, ...]
    fit: SideFit

    def __len__(self) -> int:
        return len(self.x)

    def describe_sample(self, number: int) -> str:
        return self.origins[number]

    def read_sample(self, number: int) -> PreparedSample:
        x = np.ascontiguousarray(self.fit(self.x[number]))
        return PreparedSample(x, self.labels[number], self.origins[number])


def samples_from_pictures(
    x: Pictures, labels: NDArray[Any] | None, fit: SideFit, origin: str, rows: NDArray[np.int64] | None = None
) -> Callable[[SampleNumbers], ShardSamples]:
    """A split's `select_samples` for pictures that are in memory.

    Args:
        x: All pictures of an array.
        labels: Class numbers [n] or attribute vectors [n, A] of all of them, or None.
        fit: Brings them to their side.
        origin: What names a picture, with its place in the array in place of `{}`.
        rows: The places of the split's pictures in the array; None: all.
    """

    def select_samples(numbers: SampleNumbers) -> ShardSamples:
        places = numbers if rows is None else rows[numbers]
        found = (None,) * len(places) if labels is None else tuple(labels[places])
        return ArrayPictures(
            np.asarray(x[places]), found, tuple(origin.format(place) for place in places.tolist()), fit
        )

    return select_samples
