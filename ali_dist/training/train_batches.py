"""This rank's part of every global batch: data, noise, conditions and labelled data.

Which samples a global batch has and which noise it is given follow from (seed, step) alone, so that neither world size
nor a restart changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ali_dist.config import Config
from ali_dist.data.batch import BatchSource
from ali_dist.data.loader import open_batches
from ali_dist.data.order import lanes_of_rank
from ali_dist.distributed import World
from ali_dist.errors import InputError
from ali_dist.model.ali import LabelledBatch
from ali_dist.model.data_space import DataSpace, condition_vectors, lay_out_for_device
from ali_dist.runs.datasets import DataSplit
from ali_dist.storage import is_local
from ali_dist.training.labelled_batches import LabelledBatches
from ali_dist.training.randomness import HorizontalFlips, NoiseSource
from ali_dist.training.step import TrainBatch


def rows_of_rank(config: Config, world: World) -> slice:
    """This rank's rows of a global batch: those of its lanes.

    Raises:
        InputError: There are more ranks than lanes.
    """
    lanes = config.data.num_lanes()
    own_lanes = lanes_of_rank(lanes, world.rank, world.size)
    lane_batch_size = config.data.global_batch_size // lanes
    return slice(own_lanes.start * lane_batch_size, own_lanes.stop * lane_batch_size)


class TrainBatches:
    """Endless batches of this rank, from a given update on. A context manager, which stops the reading threads.

    Args:
        config: The config of the run.
        split: The training split.
        space: The ranges of stored, [0, 1] and model values.
        labelled: The labelled data, where D classifies.
        world: The ranks.
        device: Where batches are wanted.
        condition_size: A, numbers in a condition; 0: an unconditional model.
        start_step: The first update that is asked for.
        noise_seed: Of noise and flips; None: the run's.
    """

    def __init__(
        self,
        config: Config,
        split: DataSplit,
        space: DataSpace,
        labelled: LabelledBatches | None,
        *,
        world: World,
        device: torch.device,
        condition_size: int,
        start_step: int,
        noise_seed: int | None = None,
    ) -> None:
        self._config = config
        self._space = space
        self._labelled = labelled
        self._condition_size = condition_size
        rows, batch_size = rows_of_rank(config, world), config.data.global_batch_size
        seed = config.run.seed if noise_seed is None else noise_seed
        self._flips = HorizontalFlips(seed, batch_size, rows, device) if config.data.flip else None
        self._noise = NoiseSource(
            seed,
            batch_size,
            config.model.latent_size,
            rows,
            device,
            labelled=labelled is not None,
        )
        self._source = _open_source(config, split, world, device, start_step)

    def wait_for_next(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until the next batch has been read; False if this was asked to stop before."""
        return self._source.wait_for_next(should_stop)

    def next_batch(self, step: int) -> TrainBatch:
        """The batch of update `step`; updates are asked for in order."""
        data = next(self._source)
        x = data.x if self._flips is None else self._flips.at_step(data.x, step)
        z, epsilon, *labelled_epsilon = self._noise.at_step(step)
        labelled = None
        if self._labelled is not None:
            x_labelled, y = self._labelled.at_step(step)
            labelled = LabelledBatch(self._to_model(x_labelled), y, labelled_epsilon[0])
        return TrainBatch(self._to_model(x), z, epsilon, self._conditions(data.y), labelled)

    def _to_model(self, x: Tensor) -> Tensor:
        return lay_out_for_device(self._space.model_from_unit(self._space.unit_from_stored(x)))

    def _conditions(self, y: Tensor | None) -> Tensor | None:
        if not self._condition_size:
            return None
        if y is None:
            raise InputError(
                f"model.condition is {self._config.model.condition!r}, and the index of {self._config.data.url} names "
                f"such labels, but its samples have none: prepare the data again, or set it to 'none'."
            )
        return condition_vectors(y, self._condition_size)

    @property
    def residency(self) -> str:
        """Where samples live: device, ram or stream."""
        return self._source.residency

    @property
    def wait_seconds(self) -> float:
        """Seconds that training has waited for data so far."""
        return self._source.wait_seconds

    @property
    def substituted(self) -> list[str]:
        """One sentence for each bad sample that was replaced."""
        return self._source.substituted

    def close(self) -> None:
        """Stop the reading threads; may be called twice."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_source(config: Config, split: DataSplit, world: World, device: torch.device, start_step: int) -> BatchSource:
    data = config.data
    return open_batches(
        split.store,
        split.index,
        seed=config.run.seed,
        lanes=data.num_lanes(),
        global_batch_size=data.global_batch_size,
        rank=world.rank,
        world_size=world.size,
        start_step=start_step,
        device=device,
        residency=data.residency,
        memory_mb=data.memory_mb,
        window_mb=data.window_mb,
        prefetch=data.prefetch,
        bad_samples=data.bad_samples,
        outage_seconds=0.0 if is_local(split.store.url) else 60 * config.storage.outage_minutes,
    )
