"""Which samples make global batch t of epoch e: a pure function that knows nothing of the world size.

1. The shards are permuted (seed, epoch), laid end to end and rotated by a random number of samples, so that even
   one shard is cut elsewhere, and drops another tail, in every epoch.
2. The first `steps_per_epoch * global_batch_size` samples are cut into C equal *lanes*; cuts fall inside shards.
3. A lane is cut into *windows* of at most `window_bytes`; each window is permuted (seed, epoch, lane, window).
4. Global batch t is the concatenation over lanes of their samples [t * B / C, (t + 1) * B / C).

A rank owns a contiguous run of lanes, so its part of a batch is a contiguous part of the global batch, for every
world size from 1 to C. A window is a few contiguous runs of samples in shards: one range read each.

Randomness is the raw output of Philox under a SeedSequence, both of which numpy keeps stable across releases
(its NEP 19), unlike `Generator.permutation`: a run resumes under another numpy.

Legend: N samples, S shards, C lanes, B global batch size, b = B / C samples of a lane in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ali_dist.errors import InputError

Ids = NDArray[np.int64]
_EPOCH, _WINDOW = 0, 1  # keeps the random streams of epochs and of windows apart


class SampleRun(NamedTuple):
    """Samples [first, last) of one shard."""

    shard: int
    first: int
    last: int


class Window(NamedTuple):
    """Positions [start, stop) of a lane that are shuffled together, and where their samples lie."""

    epoch: int
    lane: int
    number: int
    start: int
    stop: int
    runs: tuple[SampleRun, ...]


@dataclass(frozen=True)
class DataOrder:
    """The order of a data set under one seed.

    Args:
        shard_samples: samples in each shard, in index order; sample ids count through them from 0.
        sample_bytes: mean bytes that a sample occupies while it is read.
        seed: seed of the order.
        lanes: C, which divides `global_batch_size`.
        global_batch_size: B, in samples.
        window_bytes: most bytes of a lane that are shuffled together (at least one sample is).

    Raises:
        InputError: the data is smaller than one global batch, or C does not divide B.
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
                f"must be a multiple of the lanes."
            )
        if self.num_samples < self.global_batch_size:
            raise InputError(
                f"The data has {self.num_samples} samples in {len(self.shard_samples)} shards, which is "
                f"{self.global_batch_size - self.num_samples} fewer than one global batch "
                f"(data.global_batch_size is {self.global_batch_size}): use a smaller batch or more data."
            )

    # ---- sizes ------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """N, over all shards."""
        return sum(self.shard_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch: N // B."""
        return self.num_samples // self.global_batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """Samples that an epoch leaves out: N mod B; other ones in every epoch."""
        return self.num_samples % self.global_batch_size

    @property
    def lane_batch_size(self) -> int:
        """b, samples that one lane gives to a global batch."""
        return self.global_batch_size // self.lanes

    @property
    def lane_samples(self) -> int:
        """Samples of one lane in an epoch."""
        return self.steps_per_epoch * self.lane_batch_size

    # ---- which samples ----------------------------------------------------------------------------------------

    def batch(self, epoch: int, step: int, lanes: range | None = None) -> Ids:
        """Sample ids [n] that `lanes` (default: all) give to global batch `step` of `epoch`, in batch order."""
        chosen = range(self.lanes) if lanes is None else lanes
        return np.concatenate([self.lane_batch(epoch, step, lane) for lane in chosen])

    def lane_batch(self, epoch: int, step: int, lane: int) -> Ids:
        """Sample ids [b] that one lane gives to global batch `step` (0 <= step < steps_per_epoch) of `epoch`."""
        assert 0 <= step < self.steps_per_epoch, f"step {step} is not within the epoch"
        start = step * self.lane_batch_size
        stop = start + self.lane_batch_size
        windows = [w for w in self.windows(epoch, lane) if w.start < stop and w.stop > start]
        ids = np.concatenate([self.window_ids(w) for w in windows])
        return ids[start - windows[0].start : stop - windows[0].start]

    def lane_ids(self, epoch: int, lane: int) -> Ids:
        """Sample ids [lane_samples] of a whole lane, in the order in which they are used."""
        return np.concatenate([self.window_ids(w) for w in self.windows(epoch, lane)])

    def window_ids(self, window: Window) -> Ids:
        """Sample ids of a window, in the order in which they are used."""
        base = np.concatenate([[0], np.cumsum(self.shard_samples)])
        stored = np.concatenate([base[run.shard] + np.arange(run.first, run.last) for run in window.runs])
        return stored[self.permutation(window)]

    def permutation(self, window: Window) -> Ids:
        """For each sample of a window in order of use, its place in the window as stored (run after run)."""
        return _draw_permutation(
            window.stop - window.start, _WINDOW, self.seed, window.epoch, window.lane, window.number
        )[0]

    # ---- where they lie ---------------------------------------------------------------------------------------

    def windows(self, epoch: int, lane: int) -> list[Window]:
        """The windows of a lane in order of use."""
        bounds = self._window_bounds(lane)
        offset = lane * self.lane_samples
        layout = self._layout(epoch)
        return [
            Window(epoch, lane, number, start, stop, _find_runs(layout, offset + start, offset + stop))
            for number, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        ]

    def _window_bounds(self, lane: int) -> list[int]:
        """Lane positions between which windows lie, from 0 to `lane_samples`.

        Lanes that need several windows begin with a part of one, another part in each lane: so the lanes of a
        rank ask for new windows in turn, which evens out reading and halves the memory that reading ahead needs.
        """
        size = max(1, self.window_bytes // self.sample_bytes)
        first = size - size * lane // self.lanes if size < self.lane_samples else self.lane_samples
        return [0, *range(first, self.lane_samples, size), self.lane_samples]

    def _layout(self, epoch: int) -> _EpochLayout:
        shards, words = _draw_permutation(len(self.shard_samples), _EPOCH, self.seed, epoch, 0, 0)
        ends = np.cumsum(np.asarray(self.shard_samples, dtype=np.int64)[shards])
        return _EpochLayout(shards, ends, rotation=int(words[-1] % np.uint64(self.num_samples)))

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard, number within the shard) of a sample id."""
        ends = np.cumsum(self.shard_samples)
        shard = int(np.searchsorted(ends, sample, side="right"))
        return shard, int(sample - ends[shard] + self.shard_samples[shard])


class _EpochLayout(NamedTuple):
    """An epoch's shards laid end to end: shard numbers [S], their ends [S], and the sample it starts at."""

    shards: Ids
    ends: Ids
    rotation: int


def _find_runs(layout: _EpochLayout, start: int, stop: int) -> tuple[SampleRun, ...]:
    """Where the epoch's samples [start, stop) lie."""
    runs = []
    while start < stop:
        at = (start + layout.rotation) % int(layout.ends[-1])
        k = int(np.searchsorted(layout.ends, at, side="right"))  # right: passes over empty shards
        begin = int(layout.ends[k - 1]) if k else 0
        take = min(stop - start, int(layout.ends[k]) - at)
        runs.append(SampleRun(int(layout.shards[k]), at - begin, at - begin + take))
        start += take
    return tuple(runs)


def _draw_permutation(n: int, *key: int) -> tuple[Ids, NDArray[np.uint64]]:
    """A random permutation of n under `key`, and the n + 1 random words it is made of (the last is left over)."""
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(n + 1)
    return np.argsort(words[:n], kind="stable").astype(np.int64), words


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> range:
    """The contiguous run of lanes that a rank owns; the runs differ in length by at most one.

    Raises:
        InputError: there are more ranks than lanes.
    """
    if world_size > lanes:
        raise InputError(
            f"There are {world_size} workers but only {lanes} lanes, and every worker needs at least one: "
            f"use at most {lanes} workers, or set data.lanes to {world_size} or more (a divisor of "
            f"data.global_batch_size)."
        )
    return range(rank * lanes // world_size, (rank + 1) * lanes // world_size)


def find_substitutes(good: NDArray[np.bool_]) -> Ids:
    """For every position [n] of a window, the position whose sample is used: its own, or the next good one's.

    'Next' wraps from the window's end to its beginning, so that a window is all that is needed to decide.

    Raises:
        InputError: no sample of the window is good.
    """
    places = np.flatnonzero(good)
    if not len(places):
        raise InputError(
            f"All {len(good)} samples of a window are damaged, so none can stand in for them: restore the shards "
            f"(python -m ali_dist.prepare ... --verify lists the damage)."
        )
    return places[np.searchsorted(places, np.arange(len(good))) % len(places)]
