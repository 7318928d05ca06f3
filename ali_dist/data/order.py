"""Which samples make up global batch t of epoch e: a pure function of the seed that does not know the world size.

Algorithm. Given N samples in S shards, a seed, C lanes and the global batch size B:

1. Permute the shards (seed, epoch), lay them end to end and rotate the result by a random number of samples, so that
   even a single shard is cut elsewhere, and loses another tail, in every epoch.
2. Cut the first (N // B) * B samples into C equal *lanes*. The cuts may fall inside shards.
3. Cut each lane into *windows* of at most `window_bytes`, and permute each window (seed, epoch, lane, window).
4. Global batch t is the concatenation, over the lanes, of their samples [t * b, (t + 1) * b), where b = B / C.

A rank owns a contiguous range of lanes, so its share of a batch is a contiguous part of the global batch, for every
world size from 1 to C. A window lies in a few contiguous *runs* of samples in shards, and a run is one range read.

All randomness is the raw output of Philox under a SeedSequence. numpy keeps both stable across releases (its NEP 19),
unlike `Generator.permutation`, so a run may be resumed under another version of numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ali_dist.config.wording import format_count
from ali_dist.errors import InputError

Ids = NDArray[np.int64]
_EPOCH_STREAM = 0
_WINDOW_STREAM = 1  # a number of its own, so that no window is permuted as an epoch's shards are


class SampleRun(NamedTuple):
    """Samples [start, stop) of one shard."""

    shard: int
    start: int
    stop: int


class Window(NamedTuple):
    """Positions [start, stop) of a lane that are shuffled together, and the runs in which their samples lie."""

    epoch: int
    lane: int
    number: int
    start: int
    stop: int
    runs: tuple[SampleRun, ...]


def check_batch(samples: int, global_batch_size: int) -> None:
    """Refuse data that do not fill one batch.

    Raises:
        InputError: They do not.
    """
    if samples < global_batch_size:
        raise InputError(
            f"The data have {format_count(samples, 'sample')}, which is {global_batch_size - samples} fewer than one "
            f"global batch (data.global_batch_size is {global_batch_size}): use a smaller batch or more data."
        )


@dataclass(frozen=True)
class DataOrder:
    """The order in which the samples of a data set are used, under one seed.

    Attributes:
        shard_samples: Number of samples in each shard, in index order. Sample ids count through them from 0.
        sample_bytes: Mean number of bytes that a sample occupies while it is read.
        seed: Seed of the order.
        lanes: C, a divisor of the global batch size.
        global_batch_size: B, in samples.
        window_bytes: Most bytes of a lane that are shuffled together; a window holds at least one sample.

    Raises:
        InputError: The data is smaller than one global batch, or C does not divide B.
    """

    shard_samples: tuple[int, ...]
    sample_bytes: int
    seed: int
    lanes: int
    global_batch_size: int
    window_bytes: int

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.global_batch_size % self.lanes:
            raise InputError(
                f"data.global_batch_size is {self.global_batch_size} and data.lanes is {self.lanes}, but the batch "
                f"must be a multiple of the lanes: change one of them."
            )
        check_batch(self.num_samples, self.global_batch_size)

    # ---- Sizes ------------------------------------------------------------------------------------------------

    @cached_property
    def num_samples(self) -> int:
        """N, the number of samples in all shards."""
        return sum(self.shard_samples)

    @cached_property
    def steps_per_epoch(self) -> int:
        """N // B, the number of global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """N mod B, the number of samples that an epoch leaves out; a different set in every epoch."""
        return self.num_samples % self.global_batch_size

    @property
    def lane_batch_size(self) -> int:
        """b = B / C, the number of samples that one lane gives to a global batch."""
        return self.global_batch_size // self.lanes

    @property
    def lane_samples(self) -> int:
        """The number of samples of one lane in an epoch."""
        return self.steps_per_epoch * self.lane_batch_size

    # ---- Step 4: global batches out of lanes ------------------------------------------------------------------

    def batch_ids(self, epoch: int, step: int, lanes: range | None = None) -> Ids:
        """The sample ids [n] that `lanes` (default: all) give to global batch `step` of `epoch`, in batch order.

        Raises:
            ValueError: The epoch has no such step.
        """
        chosen = range(self.lanes) if lanes is None else lanes
        return np.concatenate([self.lane_batch_ids(epoch, step, lane) for lane in chosen])

    def lane_batch_ids(self, epoch: int, step: int, lane: int) -> Ids:
        """The sample ids [b] that one lane gives to global batch `step` of `epoch`.

        Raises:
            ValueError: The epoch has no such step.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"Step {step} is not one of the {self.steps_per_epoch} steps of an epoch.")
        start = step * self.lane_batch_size
        stop = start + self.lane_batch_size
        windows = [window for window in self.windows(epoch, lane) if window.start < stop and window.stop > start]
        ids = np.concatenate([self.window_ids(window) for window in windows])
        return ids[start - windows[0].start : stop - windows[0].start]

    def lane_ids(self, epoch: int, lane: int) -> Ids:
        """The sample ids [lane_samples] of a whole lane, in the order in which they are used."""
        return np.concatenate([self.window_ids(window) for window in self.windows(epoch, lane)])

    # ---- Step 3: windows, and the order within them -----------------------------------------------------------

    def window_ids(self, window: Window) -> Ids:
        """The sample ids [n] of a window, in the order in which they are used."""
        return self.stored_ids(window)[self.window_permutation(window)]

    def stored_ids(self, window: Window) -> Ids:
        """The sample ids [n] of a window as stored, run after run."""
        first_ids = self._first_ids
        return np.concatenate(
            [np.arange(first_ids[run.shard] + run.start, first_ids[run.shard] + run.stop) for run in window.runs]
        )

    @cached_property
    def _first_ids(self) -> list[int]:
        """The id of each shard's first sample."""
        return [0, *np.cumsum(self.shard_samples[:-1]).tolist()]

    def window_permutation(self, window: Window) -> Ids:
        """For each sample [n] of a window in order of use, its place in the window as stored (run after run)."""
        permutation, _ = _draw_permutation(
            window.stop - window.start, _WINDOW_STREAM, self.seed, window.epoch, window.lane, window.number
        )
        return permutation

    def windows(self, epoch: int, lane: int) -> list[Window]:
        """The windows of a lane, in order of use."""
        layout = self._lay_out_shards(epoch)
        lane_start = lane * self.lane_samples
        bounds = self._window_bounds(lane)
        return [
            Window(epoch, lane, number, start, stop, _find_runs(layout, lane_start + start, lane_start + stop))
            for number, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        ]

    def _window_bounds(self, lane: int) -> list[int]:
        """The positions of a lane between which its windows lie, from 0 to `lane_samples`.

        A lane that needs several windows begins with a part of one, and each lane with another part. So the lanes of
        a rank need new windows in turn, which evens out reading and halves the memory that reading ahead takes.
        """
        size = max(1, self.window_bytes // self.sample_bytes)
        first = size - size * lane // self.lanes if size < self.lane_samples else self.lane_samples
        return [0, *range(first, self.lane_samples, size), self.lane_samples]

    # ---- Steps 1 and 2: the epoch's shards, end to end --------------------------------------------------------

    def _lay_out_shards(self, epoch: int) -> _EpochLayout:
        """The layout of an epoch; the last one is kept, because every lane asks for it."""
        kept = self._kept_layout.get(epoch)
        if kept is not None:
            return kept
        shards, words = _draw_permutation(len(self.shard_samples), _EPOCH_STREAM, self.seed, epoch, 0, 0)
        ends = np.cumsum(np.asarray(self.shard_samples, dtype=np.int64)[shards])
        layout = _EpochLayout(shards, ends, rotation=int(words[-1] % np.uint64(self.num_samples)))
        self._kept_layout.clear()
        self._kept_layout[epoch] = layout
        return layout

    @cached_property
    def _kept_layout(self) -> dict[int, _EpochLayout]:
        return {}

    def locate_sample(self, sample_id: int) -> tuple[int, int]:
        """Find the shard of a sample, and the sample's number within that shard."""
        ends = np.cumsum(self.shard_samples)
        shard = int(np.searchsorted(ends, sample_id, side="right"))
        return shard, int(sample_id - ends[shard] + self.shard_samples[shard])


class _EpochLayout(NamedTuple):
    """An epoch's shards laid end to end: their numbers [S], where each ends [S], and the position that comes first."""

    shards: Ids
    ends: Ids
    rotation: int


def _find_runs(layout: _EpochLayout, start: int, stop: int) -> tuple[SampleRun, ...]:
    """Find the runs in which the epoch's samples [start, stop) lie."""
    runs = []
    while start < stop:
        position = (start + layout.rotation) % int(layout.ends[-1])
        k = int(np.searchsorted(layout.ends, position, side="right"))  # right: passes over empty shards
        shard_start = int(layout.ends[k - 1]) if k else 0
        length = min(stop - start, int(layout.ends[k]) - position)
        first = position - shard_start
        runs.append(SampleRun(int(layout.shards[k]), first, first + length))
        start += length
    return tuple(runs)


def _draw_permutation(n: int, *key: int) -> tuple[Ids, NDArray[np.uint64]]:
    """Draw a permutation of n under `key`; also returns the n + 1 random words, of which the last one is unused."""
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(n + 1)
    return np.argsort(words[:n], kind="stable").astype(np.int64), words


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> range:
    """The contiguous range of lanes that a rank owns; the ranges of all ranks differ in length by at most one.

    Raises:
        InputError: There are more ranks than lanes.
    """
    if world_size > lanes:
        raise InputError(
            f"There are {world_size} workers but only {lanes} lanes, and every worker needs at least one: "
            f"use at most {lanes} workers, or set data.lanes to {world_size} or more (a divisor of "
            f"data.global_batch_size)."
        )
    return range(rank * lanes // world_size, (rank + 1) * lanes // world_size)


def find_substitutes(is_good: NDArray[np.bool_]) -> Ids:
    """For every position [n] of a window, find the position whose sample is used: its own, or the next good one.

    The search wraps from the window's end to its beginning, so that a window is all that is needed to decide.

    Raises:
        InputError: No sample of the window is good.
    """
    good_positions = np.flatnonzero(is_good)
    if not len(good_positions):
        raise InputError(
            f"All {len(is_good)} samples of a window are damaged, so none can be used in their place: restore the "
            f"shards (python -m ali_dist.prepare ... --verify lists the damage)."
        )
    return good_positions[np.searchsorted(good_positions, np.arange(len(is_good))) % len(good_positions)]
