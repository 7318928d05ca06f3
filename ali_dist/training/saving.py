"""What a run leaves behind: checkpoints while it trains, and its summary and page at the end."""

from __future__ import annotations

from ali_dist.distributed import average_buffers, check_replicas, gather_texts, waiting_for_ranks
from ali_dist.errors import TrainingError
from ali_dist.runs.checkpoint import CheckpointMetadata
from ali_dist.runs.checkpoint_tensors import find_non_finite
from ali_dist.runs.trackers import Record
from ali_dist.training.setup import TrainingRun


def save_checkpoint(run: TrainingRun) -> None:
    """Snapshot this moment as a checkpoint, written in the background. Collective.

    Raises:
        TrainingError: A weight, a statistic, an average or a moment of Adam is not finite.
        StorageError: The previous checkpoint could not be written.
    """
    check_replicas(run.state.ali, run.world)
    average_statistics(run)
    with waiting_for_ranks("the sum of augmentation's counts"):
        run.state.gather_counts()
    tensors = run.state.tensors()
    if (name := find_non_finite(tensors)) is not None:  # it would be written over the last good ones
        raise TrainingError(
            f"{name} is not finite after image {run.progress.images:,}; earlier checkpoints are kept: lower "
            "optim.lr_d and optim.lr_g, or raise objective.r1 and objective.r2, under another --run.name."
        )
    if run.reporter is None:
        return
    index = run.data.train.index
    is_last = run.progress.step >= run.total_steps  # its evaluation is to come, which whoever goes on must see
    metadata = CheckpointMetadata(
        step=run.progress.step,
        images_seen=run.progress.images,
        epoch=run.progress.images // index.num_samples,
        seconds=run.seconds(),
        restarts=run.progress.restarts,
        fingerprint=index.fingerprint,
        world_size=run.world.size,
        config=run.config.to_mapping(),
        precision=run.state.precision.state_dict(),
        metrics={} if is_last else run.progress.metrics,
        metrics_split="" if is_last else run.progress.metrics_split,
        data=index.spec.to_mapping(),
        rollbacks=run.progress.rollbacks,
        alarms=run.progress.watch.state(),
    )
    # What an alarm may have to go back to stays, however many checkpoints come after it.
    spare = None if run.config.run.on_alarm == "warn" else run.progress.watch.clear_step
    run.checkpoints.save(metadata, tensors, spare=spare)
    run.reporter.publish()


def average_statistics(run: TrainingRun) -> None:
    """Give all ranks the same batch-norm statistics, for drawing, evaluating and saving. Collective."""
    share = (run.rows.stop - run.rows.start) / run.global_batch_size
    average_buffers(run.state.ali, share, run.world)
    if run.state.average is not None:
        average_buffers(run.state.average, share, run.world)


def conclude(run: TrainingRun, status: str) -> Record | None:
    """Wait for the last checkpoint, then write summary and page; the summary on rank 0. Collective."""
    substituted = gather_texts(run.substituted_before + run.batches.substituted, run.world)
    run.checkpoints.wait()  # a run is what its checkpoints are: nothing is finished before they are written
    if run.reporter is None:
        return None
    outcome = run.outcome(status) | run.meter.speed() | {"residency": run.batches.residency}
    with run.context.all_saved(run.checkpoints.is_idle):
        return run.reporter.write_summary(outcome, substituted)
