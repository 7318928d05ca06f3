"""Going on from a checkpoint, and refusing to where the run would no longer be the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ali_dist.config import Config, DataConfig
from ali_dist.config.loading import flatten_mapping
from ali_dist.distributed import World, sum_over_ranks, waiting_for_ranks
from ali_dist.errors import InputError
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.checkpoint_files import Checkpoint, CheckpointMetadata
from ali_dist.runs.checkpoint_tensors import UnusableCheckpoint
from ali_dist.runs.provenance import read_starts
from ali_dist.training.alarms import AlarmWatch
from ali_dist.training.schedules import learning_rate_factor
from ali_dist.training.state import TrainState
from ali_dist.training.time_budget import read_spent

# What decides which numbers the run computes: a checkpoint goes on only with the same.
_FIXED_SECTIONS = ("model.",)
_FIXED_SETTINGS = (
    "run.seed",
    "data.global_batch_size",
    "data.lanes",
    "data.window_mb",
    "data.labelled",
    "data.labelled_seed",
    "data.labelled_shift",
    # These decide D's layers.
    "objective.game",
    "objective.unary",
    "objective.packing",
)
_TENSOR_FILES = ("model", "optimizer", "ema")  # of a checkpoint
# What may change without a word: where and how the run goes, not what it computes.
_FREE_SECTIONS = ("run.", "scale.", "report.", "storage.", "data.")
# What of these is said all the same.
_SAID_SETTINGS = ("run.images", "scale.batch_norm", "data.flip")
# Settings that came later, with what runs computed before there was a choice; a preset may choose otherwise.
_VALUES_BEFORE = {"optim.warmup": 0.0, "optim.eps_inside": False, "scale.batch_norm": "local"}

_SMALLEST_SAID = 0.005  # of the learning rates


@dataclass(slots=True)
class TrainingProgress:
    """How far a run is.

    Attributes:
        step: Updates done.
        images: Real images seen, over all ranks.
        seconds: Training time of earlier starts.
        restarts: Starts before this one; on rank 0, with those that were killed before they saved anything.
        metrics: Metrics of the last evaluation; empty if there was none, or if the one at the end has given none.
        metrics_split: Name of the split that they are of; empty where an older checkpoint does not say it.
        planned_images: The length of the run that the checkpoint was saved in; 0 if there is none.
        rollbacks: How often the run went back to an earlier checkpoint because of an alarm.
        watch: What alarms are raised by.
        spent: Seconds of earlier starts by what they went to; see `time_budget.py`.
        starts: All starts that led here; on rank 0, with this one once training has begun. See `runs/provenance.py`.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    restarts: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_split: str = ""
    planned_images: int = 0
    rollbacks: int = 0
    watch: AlarmWatch = field(default_factory=AlarmWatch)
    spent: dict[str, float] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)

    def advance(self, images: int) -> None:
        """Count one update of so many images."""
        self.step += 1
        self.images += images


def resume_run(
    config: Config,
    checkpoints: CheckpointStore,
    state: TrainState,
    fingerprint: str,
    world: World,
    say: Callable[[str], None],
) -> TrainingProgress:
    """Load the newest checkpoint that can be used into `state`. Collective.

    Args:
        config: The config of this start.
        checkpoints: The checkpoints of the run.
        state: Receives the weights.
        fingerprint: Fingerprint of the training data's index.
        world: The ranks; all must see the same checkpoints.
        say: Takes messages for the user.

    Returns:
        Where to go on; the start if there is no checkpoint.

    Raises:
        InputError: The checkpoint belongs to other data or another model, or not all ranks see it.
    """
    changes: list[str] = []

    def check(checkpoint: Checkpoint) -> None:
        changes[:] = _find_changes(config, checkpoint.metadata, fingerprint, world)
        _read_watch(checkpoint.metadata)
        state.check_tensors(checkpoint.tensors, checkpoint.metadata.step)

    newest = checkpoints.read_newest(check=check)
    newest_step = newest.metadata.step if newest else 0
    _check_ranks_agree(newest_step, world, state.step.theta_g[0].device)
    if newest is None:
        return TrainingProgress()
    metadata = newest.metadata
    state.restore(newest.tensors, metadata.precision)
    planned = dict(flatten_mapping(metadata.config)).get("run.images")
    planned_images = planned if isinstance(planned, int) and planned > 0 else config.run.images
    if metadata.step < config.total_steps():  # else nothing is trained, and nothing changes
        say(f"Continuing from the checkpoint at image {metadata.images_seen:,} (update {metadata.step:,}).")
        for change in changes:
            say(f"Changed since the checkpoint: {change}.")
        if note := describe_new_rates(config, metadata.images_seen, planned_images):
            say(note)
    return TrainingProgress(
        step=metadata.step,
        images=metadata.images_seen,
        seconds=metadata.seconds,
        restarts=metadata.restarts + 1,
        metrics=dict(metadata.metrics),
        metrics_split=metadata.metrics_split,
        planned_images=planned_images,
        rollbacks=metadata.rollbacks,
        watch=_read_watch(metadata),
        spent=read_spent(metadata.spent),
        starts=read_starts(metadata.starts),
    )


def _read_watch(metadata: CheckpointMetadata) -> AlarmWatch:
    """The watch for sick runs as the checkpoint holds it.

    Raises:
        UnusableCheckpoint: What it holds is none.
    """
    try:
        return AlarmWatch.restored(metadata.alarms, metadata.step)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnusableCheckpoint(f"state.json has alarms {str(metadata.alarms)[:40]!r}") from error


def check_continues(config: Config, checkpoints: CheckpointStore, fingerprint: str) -> None:
    """Refuse a config that `resume_run` would refuse for what the newest checkpoint says; its weights are not read.

    Args:
        config: The config of a start.
        checkpoints: The checkpoints of the run, if there are any.
        fingerprint: Fingerprint of the training data's index.

    Raises:
        InputError: That checkpoint is of other data, or of settings that decide what is computed.
    """

    def check(checkpoint: Checkpoint) -> None:
        _find_changes(config, checkpoint.metadata, fingerprint, World())

    checkpoints.read_newest(_TENSOR_FILES, check)


def _find_changes(config: Config, metadata: CheckpointMetadata, fingerprint: str, world: World) -> list[str]:
    """`_check_same_run` of a checkpoint that may be of another version.

    Raises:
        InputError: As there.
        UnusableCheckpoint: The checkpoint's config is not one.
    """
    try:
        return _check_same_run(config, metadata, fingerprint, world)
    except (AttributeError, KeyError, TypeError) as error:
        raise UnusableCheckpoint(f"its config lacks {error}") from error


def describe_new_rates(config: Config, images: int, planned_images: int) -> str:
    """Say where another length of the run puts the learning rates; empty where they stay as they were.

    Args:
        config: The config of this start.
        images: Images seen.
        planned_images: The length of the run until now.
    """
    optim, batch = config.optim, config.data.global_batch_size
    before, now = (learning_rate_factor(optim, batch, images, total) for total in (planned_images, config.run.images))
    if abs(now - before) < _SMALLEST_SAID:
        return ""
    return (
        f"With run.images {config.run.images:,} in place of {planned_images:,}, the {optim.schedule} schedule is at "
        f"{now:.0%} of the learning rates where it was at {before:.0%}, and comes to 0 at the new end."
    )


def _check_ranks_agree(step: int, world: World, device: torch.device) -> None:
    """Refuse to go on if ranks see different newest checkpoints. Collective.

    Raises:
        InputError: They do.
    """
    with waiting_for_ranks("the comparison of checkpoints"):
        sums = sum_over_ranks(torch.tensor([step, step * step], dtype=torch.float64, device=device), world).tolist()
    if sums[0] ** 2 != world.size * sums[1]:  # equality in Cauchy-Schwarz: all steps are the same
        raise InputError(
            "Not all workers see the same newest checkpoint, so run.dir is not shared between machines: "
            "use an s3:// url or a folder that every machine mounts."
        )


def _check_same_run(config: Config, metadata: CheckpointMetadata, fingerprint: str, world: World) -> list[str]:
    """Refuse what cannot be continued, and describe in words what else differs.

    A setting that the checkpoint does not have yet counts as unchanged, but for those of `_VALUES_BEFORE`.

    Raises:
        InputError: The data or a setting that decides what is computed differ.
    """
    name = config.run.name
    if metadata.fingerprint != fingerprint:
        raise InputError(
            f"Run {name!r} was trained on other data (index {metadata.fingerprint}), but {config.data.url} has index "
            f"{fingerprint}: give the old data.url, or choose another --run.name."
        )
    old = dict(flatten_mapping(metadata.config))
    new = dict(flatten_mapping(config.to_mapping()))
    old["data.lanes"] = _lanes_in_force(old)
    new["data.lanes"] = _lanes_in_force(new)
    old = _VALUES_BEFORE | old
    if metadata.world_size == 1:
        old["scale.batch_norm"] = "global"  # one rank's part of the batch is the whole
    if world.size == 1:
        new["scale.batch_norm"] = "global"
    changes = []
    for key, value in new.items():
        old_value = old.get(key, value)
        if old_value == value:
            continue
        makes_d_classify = key == "objective.supervised" and not (old_value and value)
        if key in _FIXED_SETTINGS or key.startswith(_FIXED_SECTIONS) or makes_d_classify:
            raise InputError(
                f"Run {name!r} was started with {key} {old_value!r}, but now it is {value!r}: "
                "give the old value, or choose another --run.name."
            )
        if not key.startswith(_FREE_SECTIONS) or key in _SAID_SETTINGS:
            changes.append(f"{key} from {old_value!r} to {value!r}")
    return changes


def _lanes_in_force(flat: Mapping[str, Any]) -> int:
    return DataConfig(global_batch_size=flat["data.global_batch_size"], lanes=flat["data.lanes"]).num_lanes()
