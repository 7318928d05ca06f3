"""How fast updates are on this machine, measured on a few of noise."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from ali_dist.config import Config
from ali_dist.data.shards.index import Index
from ali_dist.distributed import World
from ali_dist.model.ali import LabelledBatch
from ali_dist.model.data_space import condition_vectors, lay_out_for_device
from ali_dist.model.data_spec import DataSpec
from ali_dist.training.state import TrainState, build_train_state
from ali_dist.training.step import TrainBatch, loss_weights_at

_MOST_ROWS_ON_CPU = 16  # a CPU takes as long for each image of a larger batch
_LONGEST_SECONDS = 2.0
_MOST_UPDATES = 20
_WARM_UP = 1
_WARM_UP_ON_GPU = 5  # until updates are replayed, see `captured_update.py`


def time_updates(config: Config, spec: DataSpec, device: torch.device) -> tuple[float, int]:
    """Time updates of one worker with the whole global batch, with the penalty wherever one is due.

    Args:
        config: Of the run; takes no decoder of another run.
        spec: What the data are.
        device: Where to compute.

    Returns:
        Seconds that an image takes, and the number of updates that were timed.

    Raises:
        InputError: Model, objective and data do not go together.
    """
    packing = config.objective.packing
    rows = config.data.global_batch_size
    if device.type == "cpu":
        rows = min(rows, packing * max(1, _MOST_ROWS_ON_CPU // packing))
    data = dataclasses.replace(config.data, global_batch_size=rows, lanes=1)
    model = dataclasses.replace(config.model, output_bias_from_data=False)
    config = dataclasses.replace(config, data=data, model=model)
    with torch.random.fork_rng(devices=[]):
        state = build_train_state(config, _index_of(spec), device, World())
        batch = _draw_noise(config, state, rows, device)
        warm_up = _WARM_UP_ON_GPU if device.type == "cuda" else _WARM_UP
        began = spent = 0.0
        for number in range(-warm_up, _MOST_UPDATES):
            if number == 0:
                _wait_for(device)
                began = time.perf_counter()
            state.step.start_update(number + warm_up)
            state.update(batch, loss_weights_at(config.objective, number + warm_up, 1.0))
            if number >= 0:
                _wait_for(device)
                spent = time.perf_counter() - began
                if spent > _LONGEST_SECONDS:
                    break
    return spent / ((number + 1) * rows), number + 1


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _draw_noise(config: Config, state: TrainState, rows: int, device: torch.device) -> TrainBatch:
    """A batch of this rank, which is all of it."""
    x = lay_out_for_device(torch.rand(rows, *state.space.model_shape, device=device))
    z, epsilon = torch.randn(2, rows, config.model.latent_size, device=device)
    embedding = state.ali.embedding
    c = None
    if isinstance(embedding, torch.nn.Linear):
        c = condition_vectors(torch.zeros(rows, dtype=torch.int64, device=device), embedding.in_features)
    labelled = None
    if config.objective.supervised:
        labelled = LabelledBatch(x, torch.zeros(rows, dtype=torch.int64, device=device), epsilon)
    return TrainBatch(x, z, epsilon, c, labelled)


def _index_of(spec: DataSpec) -> Index:
    """An index of no samples."""
    per_channel = (0.5,) * spec.shape[0]
    return Index(
        encoding="raw",
        dtype="uint8" if len(spec.shape) == 3 else "float32",
        shape=spec.shape,
        shards=(),
        mean=per_channel,
        std=per_channel,
        pixel_mean=(0.5,) * math.prod(spec.shape),
        classes=spec.classes,
        attributes=spec.attributes,
    )
