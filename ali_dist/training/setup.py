"""Everything a run works with, built once and in order: data, networks, reporter, checkpoints, resume."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import torch

from ali_dist.config import Config
from ali_dist.data.order import check_batch
from ali_dist.distributed import World, failing_together, sum_over_ranks
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI
from ali_dist.model.batch_norm import BatchNorm
from ali_dist.report.library_warnings import say_warnings
from ali_dist.report.terminal import TrainingProgressDisplay
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.datasets import RunData, open_run_data, open_run_store
from ali_dist.runs.lease import take_lease
from ali_dist.runs.trackers import Record, check_tracker_names, check_trackers
from ali_dist.storage import is_local
from ali_dist.training.context import Context
from ali_dist.training.health_probe import HealthProbe
from ali_dist.training.labelled_batches import LabelledBatches
from ali_dist.training.loss_meter import LossMeter
from ali_dist.training.randomness import seed_after_rollbacks
from ali_dist.training.reporting import RunReporter
from ali_dist.training.resume import TrainingProgress, resume_run
from ali_dist.training.state import TrainState, build_train_state
from ali_dist.training.time_budget import add_up
from ali_dist.training.train_batches import TrainBatches, rows_of_rank


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """What the loop works with on this rank.

    Attributes:
        config: The config of the run.
        context: Which rank this is, and who may stop it.
        data: The training split, and the one that is held out.
        rows: This rank's rows of a global batch.
        state: The networks and how they move.
        labelled: The labelled data, where D classifies.
        reporter: Writes and shows; rank 0 alone has one.
        checkpoints: The checkpoints of the run.
        progress: How far the run is.
        meter: Losses and speed since the last record.
        probe: Measures the networks where losses are recorded.
        batches: This rank's batches; there once training has started.
        substituted_before: Samples that were replaced in batches before a rollback.
        started: The value of `time.monotonic` when set-up was done.
        is_first_update: Whether this start has made none yet.
        is_concluded: Whether the summary says how this start has ended.
        last_vote: The step of the last vote on stopping; -1: there was none.
        last_vote_at: The value of `time.monotonic` then.
        updates_to_vote: Updates until the next one.
        leaving_machines: Machines that were said to leave, and for which a checkpoint has been saved.
    """

    config: Config
    context: Context
    data: RunData
    rows: slice
    state: TrainState
    labelled: LabelledBatches | None
    reporter: RunReporter | None
    checkpoints: CheckpointStore
    progress: TrainingProgress
    meter: LossMeter
    probe: HealthProbe
    batches: TrainBatches = field(init=False)
    substituted_before: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    is_first_update: bool = True
    is_concluded: bool = False
    last_vote: int = -1
    last_vote_at: float = 0.0
    updates_to_vote: int = 1
    leaving_machines: int = 0

    @property
    def world(self) -> World:
        """This rank among all ranks."""
        return self.context.world

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.context.device

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.config.total_steps()

    @property
    def global_batch_size(self) -> int:
        """B, in images."""
        return self.config.data.global_batch_size

    def start_training(self, stack: ExitStack) -> None:
        """Open the batches from the next update on, and start the clock. `stack` closes them. Collective."""
        with failing_together(self.device, self.world, "the beginning of the run's records"):
            if self.reporter is not None:
                self.reporter.begin_training(self.progress)
        self._recall_rollbacks()
        self.open_batches()
        stack.callback(lambda: self.batches.close())  # those that are open by then

    def _recall_rollbacks(self) -> None:
        """Count rollbacks that no checkpoint knows of: the run was ended before it saved the next. Collective."""
        recorded = self.reporter.count_rollbacks() if self.reporter is not None else 0
        total = sum_over_ranks(torch.tensor([recorded], dtype=torch.float64, device=self.device), self.world)
        self.progress.rollbacks = max(self.progress.rollbacks, int(total.item()))

    def open_batches(self) -> None:
        """Open the batches from the next update on, with the noise of the progress, and start the clock."""
        seed = seed_after_rollbacks(self.config.run.seed, self.progress.rollbacks)
        self.state.step.reseed(seed)
        embedding = self.state.ali.embedding
        self.batches = TrainBatches(
            self.config,
            self.data.train,
            self.state.space,
            self.labelled,
            world=self.world,
            device=self.device,
            condition_size=embedding.in_features if isinstance(embedding, torch.nn.Linear) else 0,
            start_step=self.progress.step,
            noise_seed=seed,
        )
        self.meter.start(self.progress.images, self.batches.wait_seconds)

    def close_batches(self) -> None:
        """Close them to open others, and remember which samples were replaced."""
        self.substituted_before += self.batches.substituted
        self.batches.close()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Show within the block what is done in place of training; on rank 0 alone."""
        return self.reporter.phase(name) if self.reporter is not None else nullcontext()

    def seconds(self) -> float:
        """Wall time since set-up, over all starts of the run."""
        return self.progress.seconds + time.monotonic() - self.started

    def position(self) -> Record:
        """Where the run is, as records have it."""
        return {
            "step": self.progress.step,
            "images": self.progress.images,
            "seconds": round(self.seconds(), 3),
        }

    def outcome(self, status: str) -> Record:
        """How the run has ended, as the summary has it."""
        return {
            "status": status,
            **self.position(),
            "world_size": self.world.size,
            "restarts": self.progress.restarts,
            "rollbacks": self.progress.rollbacks,
            "metrics": self.progress.metrics,
            "metrics_split": self.progress.metrics_split,
            "time": self.spent(),
            "starts": self.progress.starts,
        }

    def spent(self) -> dict[str, float]:
        """Seconds over all starts, by what they went to; on rank 0 alone, which draws, measures and saves."""
        if self.reporter is None:
            return {}
        return add_up(self.progress.spent, self.reporter.spent(), self.meter.waited)


def set_up_run(config: Config, context: Context, stack: ExitStack) -> TrainingRun:
    """Build everything, and go on from the newest checkpoint. Collective.

    Args:
        config: What to do.
        context: Which rank this is, and who may stop it.
        stack: Closes what is opened here.

    Raises:
        InputError: Config, data and checkpoint do not go together, or another process trains the run.
        StorageError: The storage fails.
    """
    world, device = context.world, context.device
    display = stack.enter_context(TrainingProgressDisplay(config.run.images)) if world.is_main else None
    say = display.message if display is not None else _say_nothing
    if world.is_main:
        stack.enter_context(say_warnings(say))
    begin_phase = display.begin_phase if display is not None else _say_nothing
    _check_trackers(config, world, device)

    # The data first: what they are decides the networks.
    begin_phase("reading what the data are")
    data = open_run_data(config)
    rows = rows_of_rank(config, world)

    # Networks, optimizer, average, and the update that is exact for them.
    begin_phase("building the networks")
    state = build_train_state(config, data.train.index, device, world)
    check_rows(config, state.ali, rows, world)
    check_batch(data.train.index.num_samples, config.data.global_batch_size)
    labelled = None
    if config.objective.supervised:
        begin_phase("reading labelled data")
        labelled = LabelledBatches(data.train, config, rows, device)

    # Rank 0 writes, and nobody else's rank 0.
    begin_phase("opening the run's folder")
    store = open_run_store(config)
    lease, reporter = None, None
    with failing_together(device, world, "the opening of the run's folder"):
        if display is not None:
            lease = take_lease(store, config.run.name, say)
            stack.callback(lease.release)
            reporter = RunReporter(config, data, state, store, device, display, context.stop_requested)
            stack.callback(reporter.close)
    if state.captured is not None:
        state.captured.say = say
    # A folder that cannot be written is full or forbidden, which no wait mends.
    outage_seconds = 0.0 if is_local(store.url) else 60 * config.storage.outage_minutes
    checkpoints = CheckpointStore(store, config.report.keep_checkpoints, say, lease, outage_seconds=outage_seconds)
    stack.callback(checkpoints.close)

    # Every rank goes on from the same checkpoint, or all begin.
    begin_phase("looking for a checkpoint")
    progress = resume_run(config, checkpoints, state, data.train.index.fingerprint, world, say)
    return TrainingRun(
        config=config,
        context=context,
        data=data,
        rows=rows,
        state=state,
        labelled=labelled,
        reporter=reporter,
        checkpoints=checkpoints,
        progress=progress,
        meter=LossMeter(config.objective.loss, device, world, logits=_count_logits(config)),
        probe=HealthProbe(config, state, rows, world, device),
    )


def _check_trackers(config: Config, world: World, device: torch.device) -> None:
    """Refuse trackers that cannot work where rank 0 is. Collective.

    Raises:
        InputError: One does not exist, or lacks its package or its key.
    """
    names = config.report.tracker_names()
    check_tracker_names(names)
    with failing_together(device, world, "a vote on trackers"):
        if world.is_main:
            check_trackers(names)


def _count_logits(config: Config) -> int:
    """How many logits D gives to each pair: none where there is no D, and two more for x and z alone."""
    if config.objective.game == "inverse":
        return 0
    return 3 if config.objective.unary else 1


def _say_nothing(text: str) -> None:
    """What ranks other than 0 do with messages for the user."""
    del text


def check_rows(config: Config, ali: ALI, rows: slice, world: World) -> None:
    """Refuse a share of the batch, or a part of it, that batch norm cannot work on.

    Raises:
        InputError: Batch norm would see a single row.
    """
    if not any(isinstance(m, BatchNorm) for m in ali.modules()):
        return
    batch_size = config.data.global_batch_size
    if batch_size < 2:
        raise InputError(
            f"data.global_batch_size is {batch_size}, but batch norm needs at least 2 images: raise it, or choose an "
            "architecture without batch norm."
        )
    count = rows.stop - rows.start
    if count < 2 and config.scale.batch_norm == "local":
        raise InputError(
            f"A worker has {count} image of each batch (data.global_batch_size is {batch_size}, workers {world.size}), "
            "but scale.batch_norm is 'local', which needs at least 2: use 'global', raise data.global_batch_size, or "
            "use fewer workers."
        )
    micro_batch = config.scale.micro_batch
    if micro_batch is not None and (micro_batch == 1 or (count > micro_batch and count % micro_batch == 1)):
        raise InputError(
            f"scale.micro_batch is {micro_batch}, which leaves one of a worker's {count} images by itself, but "
            f"batch norm needs at least 2: use another, such as {_nearest_fitting(micro_batch, count)}."
        )


def _nearest_fitting(micro_batch: int, count: int) -> int:
    """The nearest larger part that leaves no image by itself."""
    return next(size for size in range(max(2, micro_batch), count + 2) if count % size != 1)
