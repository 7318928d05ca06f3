"""Going on from a checkpoint, and refusing to where the run would no longer be the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ali_dist.config import Config, DataConfig
from ali_dist.config.loading import flatten_mapping
from ali_dist.distributed import World, sum_over_ranks
from ali_dist.errors import InputError
from ali_dist.runs.checkpoint import CheckpointMetadata, CheckpointStore
from ali_dist.training.state import TrainState

# What decides which numbers the run computes; a checkpoint goes on only with the same.
_FIXED = (
    "run.seed",
    *(
        "data.global_batch_size",
        "data.lanes",
        "data.window_mb",
        "data.labelled",
        "data.labelled_seed",
        "data.labelled_shift",
    ),
    *("objective.game", "objective.unary", "objective.packing"),  # decide D's layers
)
_FIXED_SECTIONS = ("model.",)
# What may change without a word: where and how, not what.
_FREE_SECTIONS = ("run.", "scale.", "report.", "storage.", "data.")


@dataclass(slots=True)
class TrainingProgress:
    """How far a run is."""

    step: int = 0  # updates done
    images: int = 0
    seconds: float = 0.0  # training time of earlier starts
    restarts: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation


def resume_run(
    config: Config,
    checkpoints: CheckpointStore,
    players: TrainState,
    fingerprint: str,
    world: World,
    say: Callable[[str], None],
) -> TrainingProgress:
    """Load the newest complete checkpoint into `players`. Collective.

    Args:
        config: Of this start.
        checkpoints: Of the run.
        players: Receive the weights.
        fingerprint: Of the training data's index.
        world: The ranks; all must see the same checkpoints.
        say: Where messages for the user go.

    Returns:
        Where to go on; the start if there is no checkpoint.

    Raises:
        InputError: The checkpoint belongs to other data or another model, or not all ranks see it.
    """
    newest = checkpoints.newest()
    step = newest.state.step if newest else 0
    _check_ranks_agree(step, world, players.step.theta_g[0].device)
    if newest is None:
        return TrainingProgress()
    state = newest.state
    changes = _check_same_run(config, state, fingerprint)
    players.restore(newest.tensors, state.precision)
    say(f"Continuing from the checkpoint at image {state.images_seen:,} (update {state.step:,}).")
    for change in changes:
        say(f"Changed since the checkpoint: {change}.")
    return TrainingProgress(state.step, state.images_seen, state.seconds, state.restarts + 1, dict(state.metrics))


def _check_ranks_agree(step: int, world: World, device: torch.device) -> None:
    total = sum_over_ranks(torch.tensor([step, step * step], dtype=torch.float64, device=device), world)
    if float(total[0]) ** 2 != world.size * float(total[1]):  # equality in Cauchy-Schwarz: all the same
        raise InputError(
            "Not all workers see the same newest checkpoint, so run.dir is not shared between machines: "
            "use an s3:// url or a folder that every machine mounts."
        )


def _check_same_run(config: Config, state: CheckpointMetadata, fingerprint: str) -> list[str]:
    """Refuse what cannot be continued; what differs otherwise, in words."""
    run = config.run.name
    if state.fingerprint != fingerprint:
        raise InputError(
            f"Run {run!r} was trained on other data (index {state.fingerprint}), but {config.data.url} has index "
            f"{fingerprint}: give the old data.url, or choose another --run.name."
        )
    old, new = dict(flatten_mapping(state.config)), dict(flatten_mapping(config.to_mapping()))
    old["data.lanes"], new["data.lanes"] = _lanes_in_force(old), _lanes_in_force(new)
    changes = []
    for key, value in new.items():
        before = old.get(key, value)
        if before == value:
            continue
        makes_d_classify = key == "objective.supervised" and not (before and value)
        if key in _FIXED or key.startswith(_FIXED_SECTIONS) or makes_d_classify:
            raise InputError(
                f"Run {run!r} was started with {key} {before!r}, but now it is {value!r}: "
                "give the old value, or choose another --run.name."
            )
        if not key.startswith(_FREE_SECTIONS) or key == "run.images":
            changes.append(f"{key} from {before!r} to {value!r}")
    return changes


def _lanes_in_force(flat: Mapping[str, Any]) -> int:
    return DataConfig(global_batch_size=flat["data.global_batch_size"], lanes=flat["data.lanes"]).num_lanes()
