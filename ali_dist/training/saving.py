"""What a run leaves behind: checkpoints while it trains, and its summary and page at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ali_dist.distributed import (
    average_buffers,
    check_replicas,
    failing_together,
    gather_texts,
    waiting_for_ranks,
)
from ali_dist.errors import NotFiniteError, Stopped, StorageError
from ali_dist.runs.checkpoint_files import CheckpointMetadata
from ali_dist.runs.checkpoint_tensors import find_non_finite
from ali_dist.runs.trackers import Record
from ali_dist.training.setup import TrainingRun


def save_checkpoint(run: TrainingRun) -> None:
    """Snapshot this moment as a checkpoint, written in the background. Collective.

    Raises:
        NotFiniteError: A weight, a statistic, an average or a moment of Adam is not finite.
        OutageError: Checkpoints could not be written for too long.
        StorageError, InputError: The previous checkpoint could not be written, to a folder.
    """
    with run.phase("saving"):
        settle_checkpoints(run, run.checkpoints.wait_for_turn)
        _save_checkpoint(run)


def settle_checkpoints(run: TrainingRun, wait: Callable[[], None]) -> None:
    """Wait for checkpoints in flight, and raise on every rank what has ended their saving. Collective.

    Args:
        run: The run.
        wait: One of the waits of `run.checkpoints`.

    Raises:
        OutageError, StorageError, InputError, TrainingError: They could not be saved.
    """
    with failing_together(run.device, run.world, "a vote on checkpoints"):
        wait()  # at once where this rank does not write
    if run.reporter is not None:
        run.reporter.record_failures("checkpoint", run.checkpoints.take_failures(), run.position())


def _save_checkpoint(run: TrainingRun) -> None:
    check_replicas(run.state.ali, run.world)
    average_statistics(run)
    with waiting_for_ranks("the sum of augmentation's counts"):
        run.state.gather_counts()
    tensors = run.state.tensors()
    if (name := find_non_finite(tensors)) is not None:  # it would be written over the last good ones
        raise NotFiniteError(
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
        spent=run.spent(),
        starts=run.progress.starts,
    )
    # What an alarm may have to go back to stays, however many checkpoints come after it.
    spare = None if run.config.run.on_alarm == "warn" else run.progress.watch.clear_step
    reporter = run.reporter
    images = run.progress.images
    reporter.flush()
    run.checkpoints.save(
        metadata,
        tensors,
        spare=spare,
        first=reporter.upload,  # so that no checkpoint is newer than the records of how it was come to
        then=lambda: reporter.say(f"checkpoint at {images:,} images"),
    )


def average_statistics(run: TrainingRun) -> None:
    """Give all ranks the same batch-norm statistics, for drawing, evaluating and saving. Collective."""
    share = (run.rows.stop - run.rows.start) / run.global_batch_size
    average_buffers(run.state.ali, share, run.world)
    if run.state.average is not None:
        average_buffers(run.state.average, share, run.world)


def conclude(run: TrainingRun, status: str) -> Record | None:
    """Wait for the last checkpoint, then write summary and page; the summary on rank 0. Collective."""
    substituted = gather_texts(run.substituted_before + run.batches.substituted, run.world)
    with run.phase("saving the last checkpoint"):
        # A run is what its checkpoints are: nothing is finished before they are written.
        settle_checkpoints(run, run.checkpoints.wait)
    run.is_concluded = True
    if run.reporter is None:
        return None
    outcome = run.outcome(status) | run.meter.speed() | {"residency": run.batches.residency}
    with run.context.all_saved(run.checkpoints.is_idle):
        return run.reporter.write_summary(outcome, substituted)


def note_failure(
    run: TrainingRun, kind: type[BaseException] | None, error: BaseException | None, trace: object
) -> None:
    """Say in summary and page that an error ends the run, and which; called when `fit` is left. Not a collective.

    Nothing is said where the storage itself failed, which would only be waited for once more.
    """
    is_told = run.is_concluded or isinstance(error, Stopped | StorageError | OSError)
    if run.reporter is None or not isinstance(error, Exception) or is_told:
        return
    with suppress(Exception):  # the error that ends the run is the one to be told
        reason = " ".join(f"{error}".split()) or type(error).__name__
        run.reporter.write_summary(run.outcome("failed") | {"reason": reason}, [])
